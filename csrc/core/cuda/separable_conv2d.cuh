// The fused forward: a block computes the depthwise results of a tile of pixels for all channels into a panel
// in shared memory, then multiplies the panel with the pointwise weights, which stream through shared memory,
// on the tensor cores. The depthwise result never leaves the multiprocessor and is computed once.
#pragma once
#include "core/cuda/depthwise.cuh"

namespace sepconv::cuda {

inline constexpr int kFusedThreads = 256;
inline constexpr int kFusedRun = 4;        // pixels of one row that one thread computes
inline constexpr int kFusedOutputs = 128;  // output channels whose sums are in registers at once
inline constexpr int kFusedStages = 4;     // chunks of weights under way

// Elements of one row of 16 bytes, of one step of the tensor cores, of one chunk of weights, and what keeps
// the rows of a matrix on different banks.
template <class T>
inline constexpr int kRowElements = 16 / sizeof(T);
template <class T>
inline constexpr int kStepElements = 32 / sizeof(T);
template <class T>
inline constexpr int kChunkElements = 64 / sizeof(T);

template <class T>
struct FusedArguments {
  const T *input, *depthwise_weight, *depthwise_bias, *pointwise_weight, *pointwise_bias;
  T* output;
  Strides in, out;
  Geometry geometry;
  int channels, padded_channels;  // of the panel; padded to whole chunks
  int out_channels;
  int tile_width;                    // in runs; 0: the tile is a band of whole rows
  unsigned tiles_along, tiles_down;  // tiles of one image
  unsigned runs;                     // of a band: runs in all rows of all images
  int output_tiles_of_block;         // tiles of kFusedOutputs that one block computes
};

// Bytes of each part of the shared memory, in this order.
template <class T, int kPixels>
struct FusedShared {
  int64_t panel, weights, depthwise, offsets;
  __host__ __device__ FusedShared(int padded_channels, int taps)
      : panel(int64_t{kPixels} * (padded_channels + kRowElements<T>)*sizeof(T)),
        weights(int64_t{kFusedStages} * kFusedOutputs * (kChunkElements<T> + kRowElements<T>)*sizeof(T)),
        depthwise((int64_t{taps} * padded_channels * sizeof(T) + 15) / 16 * 16),
        offsets(int64_t{kPixels} * sizeof(int64_t)) {}
  __host__ __device__ int64_t bytes() const { return panel + weights + depthwise + offsets; }
};

// Where a run of the block's tile lies; n < 0: nowhere.
template <class T, int kPixels>
__device__ __forceinline__ Run fused_run(const FusedArguments<T>& a, int run) {
  const Geometry& g = a.geometry;
  if (a.tile_width == 0) {
    const unsigned item = blockIdx.x * (kPixels / kFusedRun) + run;
    return item < a.runs ? run_of<kFusedRun>(item, g) : Run{-1, 0, 0};
  }
  const unsigned tiles = a.tiles_along * a.tiles_down;
  const unsigned n = blockIdx.x / tiles, tile = blockIdx.x - n * tiles;
  const unsigned down = tile / a.tiles_along, along = tile - down * a.tiles_along;
  const int tile_height = kPixels / kFusedRun / a.tile_width;
  const int y = static_cast<int>(down) * tile_height + run / a.tile_width;
  const int x = (static_cast<int>(along) * a.tile_width + run % a.tile_width) * kFusedRun;
  return y < g.out_height && x < g.out_width ? Run{static_cast<int>(n), y, x} : Run{-1, 0, 0};
}

// Writes the panel, and for each pixel the offset of its outputs or -1.
template <class T, int kPixels, int kColumns, int kStep>
__device__ __forceinline__ void fill_panel(const FusedArguments<T>& a, T* panel, T* depthwise_weight,
                                           int64_t* offsets) {
  constexpr int kLanes = kRowElements<T>;
  const Geometry& g = a.geometry;
  const int taps = g.kernel[0] * g.kernel[1];
  transpose_weights(a.depthwise_weight, a.channels, 0, a.padded_channels, taps, false, depthwise_weight,
                    a.padded_channels, threadIdx.x, kFusedThreads);
  for (int pixel = threadIdx.x; pixel < kPixels; pixel += kFusedThreads) {
    const Run run = fused_run<T, kPixels>(a, pixel / kFusedRun);
    const int x = run.x + pixel % kFusedRun;
    offsets[pixel] = run.n >= 0 && x < g.out_width ? run.n * a.out.n + run.y * a.out.h + x * a.out.w : -1;
  }
  device::synchronize();

  const int vectors = a.padded_channels / kLanes, stride = a.padded_channels + kLanes;
  for (int item = threadIdx.x; item < kPixels / kFusedRun * vectors; item += kFusedThreads) {
    const int at = item / vectors, channel = (item - at * vectors) * kLanes;
    const Run run = fused_run<T, kPixels>(a, at);
    Compute<T> sum[kFusedRun][kLanes] = {};
    if (run.n >= 0 && channel < a.channels) {
      if (a.depthwise_bias != nullptr) {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          const Compute<T> bias = widen(a.depthwise_bias[channel + i]);
#pragma unroll
          for (int o = 0; o < kFusedRun; ++o) sum[o][i] = bias;
        }
      }
      const WeightsInShared<T, kLanes> weights{depthwise_weight + channel, a.padded_channels};
      depthwise_run<T, kLanes, kFusedRun, kColumns, kStep>(g, a.input + run.n * a.in.n + channel, a.in,
                                                           weights, run.y, run.x, sum);
    }
    T* const row = panel + at * kFusedRun * stride + channel;
#pragma unroll
    for (int o = 0; o < kFusedRun; ++o) store<T, kLanes>(sum[o], row + o * stride);
  }
}

// Warps of a block share the tile: kWarpsDown along pixels, the others along output channels.
template <class T, int kPixels, int kColumns, int kStep>
__global__ void __launch_bounds__(kFusedThreads, kStep == 2 ? 1 : 2)
    separable_conv2d_kernel(const FusedArguments<T> a) {
  constexpr int kWarpsDown = kPixels / 32, kWarpsAcross = kFusedThreads / 32 / kWarpsDown;
  constexpr int kDown = 2, kAcross = kFusedOutputs / kWarpsAcross / 8;  // tensor core tiles of a warp: 16 x 8
  constexpr int kChunk = kChunkElements<T>, kWeightStride = kChunk + kRowElements<T>;
  constexpr int kStage = kFusedOutputs * kWeightStride;

  SEPCONV_SHARED(unsigned char, shared);
  const FusedShared<T, kPixels> parts(a.padded_channels, a.geometry.kernel[0] * a.geometry.kernel[1]);
  T* const panel = reinterpret_cast<T*>(shared);
  T* const stages = reinterpret_cast<T*>(shared + parts.panel);
  T* const depthwise_weight = reinterpret_cast<T*>(shared + parts.panel + parts.weights);
  int64_t* const offsets = reinterpret_cast<int64_t*>(shared + parts.panel + parts.weights + parts.depthwise);

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int chunks = a.padded_channels / kChunk;
  const int first_output = blockIdx.y * a.output_tiles_of_block * kFusedOutputs;
  const int last_output = min(a.out_channels, first_output + a.output_tiles_of_block * kFusedOutputs);
  const int steps = (last_output - first_output + kFusedOutputs - 1) / kFusedOutputs * chunks;

  // Chunk `step` of the weights of this block: kFusedOutputs rows of kChunk elements.
  const auto copy_chunk = [&](int step) {
    if (step < steps) {
      const int tile = step / chunks, from = (step - tile * chunks) * kChunk;
      T* const stage = stages + step % kFusedStages * kStage;
      constexpr int kRows = kChunk / kRowElements<T>;  // of 16 bytes, in one output channel
#pragma unroll
      for (int i = thread; i < kFusedOutputs * kRows; i += kFusedThreads) {
        const int output = i / kRows, at = i % kRows * kRowElements<T>;
        const int row = first_output + tile * kFusedOutputs + output;
        const bool exists = row < a.out_channels && from + at < a.channels;
        device::copy_async(
            stage + output * kWeightStride + at,
            a.pointwise_weight + (exists ? static_cast<int64_t>(row) * a.channels + from + at : 0), exists);
      }
    }
    device::commit_copies();
  };
#pragma unroll
  for (int step = 0; step < kFusedStages - 1; ++step) copy_chunk(step);

  fill_panel<T, kPixels, kColumns, kStep>(a, panel, depthwise_weight, offsets);

  const int down = warp % kWarpsDown * (kDown * 16), across = warp / kWarpsDown * (kAcross * 8);
  const int panel_stride = a.padded_channels + kRowElements<T>;
  // Rows of the matrices that this lane points at (device::load_matrices).
  const T* const a_row = panel + (down + lane % 16) * panel_stride + lane / 16 * kRowElements<T>;
  const int b_row = (across + lane / 16 * 8 + lane % 8) * kWeightStride + lane / 8 % 2 * kRowElements<T>;

  float sum[kDown][kAcross][4] = {};
  for (int step = 0, chunk = 0, output = first_output + across; step < steps; ++step) {
    device::wait_for_copies<kFusedStages - 2>();
    device::synchronize();  // everybody's part of this chunk is there, and the stage before it has been read
    copy_chunk(step + kFusedStages - 1);
    const T* const a_chunk = a_row + chunk * kChunk;
    const T* const b_chunk = stages + step % kFusedStages * kStage + b_row;
#pragma unroll
    for (int k = 0; k < kChunk; k += kStepElements<T>) {
      uint32_t left[kDown][4];
#pragma unroll
      for (int i = 0; i < kDown; ++i) device::load_matrices(left[i], a_chunk + i * 16 * panel_stride + k);
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        uint32_t right[4];
        device::load_matrices(right, b_chunk + j * 8 * kWeightStride + k);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          device::mma(T{}, sum[i][j], left[i], right[0], right[1]);
          device::mma(T{}, sum[i][j + 1], left[i], right[2], right[3]);
        }
      }
    }
    if (++chunk < chunks) continue;
    chunk = 0;
    // A lane holds two adjacent channels of two pixels in each 16 x 8 tile.
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t offset = offsets[down + i * 16 + half * 8 + lane / 4];
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
          const int channel = output + j * 8 + lane % 4 * 2;
          if (offset >= 0 && channel < a.out_channels) {
            Compute<T> pair[2] = {sum[i][j][half * 2], sum[i][j][half * 2 + 1]};
            if (a.pointwise_bias != nullptr) {  // may lie anywhere in a flat buffer of parameters
              pair[0] += widen(a.pointwise_bias[channel]);
              pair[1] += widen(a.pointwise_bias[channel + 1]);
            }
            store<T, 2>(pair, a.output + offset + channel);
          }
          sum[i][j][half * 2] = sum[i][j][half * 2 + 1] = 0;
        }
      }
    output += kFusedOutputs;
  }
}

}  // namespace sepconv::cuda
