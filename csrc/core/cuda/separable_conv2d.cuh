// The fused forward: a block computes the depthwise results of a tile of pixels for all channels into a panel
// in shared memory, then multiplies the panel with the pointwise weights, which stream through shared memory,
// on the tensor cores. The depthwise result never leaves the multiprocessor and is computed once.
#pragma once
#include "core/cuda/depthwise_rows.cuh"

namespace sepconv::cuda {

inline constexpr int kFusedThreads = 256;
inline constexpr int kFusedRun = 2;        // columns of a thread
inline constexpr int kFusedOutputs = 128;  // output channels whose sums are in registers at once
inline constexpr int kFusedStages = 4;     // chunks of weights under way

// Elements of one row of 16 bytes, of one step of the tensor cores, of one chunk of weights.
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
  int tile_width_shift;              // tiles are kPixels of 2^tile_width_shift columns
  int rows_of_thread;                // of the tile, that one thread walks down
  unsigned tiles_along, tiles_down;  // tiles of one image
  int output_tiles_of_block;         // tiles of kFusedOutputs that one block computes
  bool quads;                        // outputs are stored by four channels
};

// Bytes of each part of the shared memory, in this order.
template <class T, int kPixels>
struct FusedShared {
  int64_t panel, weights, offsets;
  __host__ __device__ explicit FusedShared(int padded_channels)
      : panel(int64_t{kPixels} * (padded_channels + kRowElements<T>)*sizeof(T)),
        weights(int64_t{kFusedStages} * kFusedOutputs * kChunkElements<T> * sizeof(T)),
        offsets(int64_t{kPixels} * sizeof(int64_t)) {}
  __host__ __device__ int64_t bytes() const { return panel + weights + offsets; }
};

// Where the block's tile begins.
struct TilePlace {
  int n, y, x;
};
template <class T, int kPixels>
__device__ __forceinline__ TilePlace place_of_tile(const FusedArguments<T>& a) {
  const unsigned tiles = a.tiles_along * a.tiles_down;
  const unsigned n = blockIdx.x / tiles, tile = blockIdx.x - n * tiles, down = tile / a.tiles_along;
  return {static_cast<int>(n), static_cast<int>(down) * (kPixels >> a.tile_width_shift),
          static_cast<int>(tile - down * a.tiles_along) << a.tile_width_shift};
}

// One thread's part of the panel: a column group of rows_of_thread rows, by the walk down the rows.
template <class T, int kSize, int kStep>
__device__ __forceinline__ void fill_rows(const FusedArguments<T>& a, const TilePlace& tile, int item,
                                          T* panel) {
  const int vectors = a.padded_channels / kRowsLanes, stride = a.padded_channels + kRowElements<T>;
  const int group = item / vectors, channel = (item - group * vectors) * kRowsLanes;
  const int pixel = group * kFusedRun, tile_width = 1 << a.tile_width_shift;
  const int row = (pixel >> a.tile_width_shift) * a.rows_of_thread, column = pixel & (tile_width - 1);
  const int y = tile.y + row, x = tile.x + column;
  const int rows = min(a.rows_of_thread, a.geometry.out_height - y);
  if (rows <= 0 || x >= a.geometry.out_width) return;
  T* to = panel + (row * tile_width + column) * stride + channel;
  const auto write = [&](const auto& sums) {
#pragma unroll
    for (int o = 0; o < kFusedRun; ++o) store<T, kRowsLanes>(sums[o], to + o * stride);
    to += tile_width * stride;
  };
  if (channel >= a.channels) {  // what fills the last chunk
    const Compute<T> zeros[kFusedRun][kRowsLanes] = {};
    for (int r = 0; r < rows; ++r) write(zeros);
    return;
  }
  const WeightsInRegisters<T, kSize> weights(a.depthwise_weight + channel * kSize * kSize, false);
  Compute<T> bias[kRowsLanes];
  load_bias(a.depthwise_bias, channel, bias);
  depthwise_rows<T, kFusedRun, kSize, kStep>(a.geometry, a.input + tile.n * a.in.n + channel, a.in, weights,
                                             bias, NoPrologue<T, kRowsLanes>(), y, x, rows, write);
}

// The same for any window: a column group of one row.
template <class T>
__device__ __forceinline__ void fill_run(const FusedArguments<T>& a, const TilePlace& tile, int item,
                                         T* panel) {
  const int vectors = a.padded_channels / kRowsLanes, stride = a.padded_channels + kRowElements<T>;
  const int group = item / vectors, channel = (item - group * vectors) * kRowsLanes;
  const int pixel = group * kFusedRun, tile_width = 1 << a.tile_width_shift;
  const int row = pixel >> a.tile_width_shift, column = pixel & (tile_width - 1);
  const int y = tile.y + row, x = tile.x + column;
  if (y >= a.geometry.out_height || x >= a.geometry.out_width) return;
  Compute<T> sum[kFusedRun][kRowsLanes] = {};
  if (channel < a.channels) {
#pragma unroll
    for (int o = 0; o < kFusedRun; ++o) load_bias(a.depthwise_bias, channel, sum[o]);
    const int taps = a.geometry.kernel[0] * a.geometry.kernel[1];
    const WeightsInTensor<T, kRowsLanes> weights{a.depthwise_weight + static_cast<int64_t>(channel) * taps,
                                                 taps, false};
    depthwise_run<T, kRowsLanes, kFusedRun, 0, 0>(a.geometry, a.input + tile.n * a.in.n + channel, a.in,
                                                  weights, y, x, sum);
  }
#pragma unroll
  for (int o = 0; o < kFusedRun; ++o)
    store<T, kRowsLanes>(sum[o], panel + (row * tile_width + column + o) * stride + channel);
}

// Writes the panel, and for each pixel the offset of its outputs or -1. Pixels that do not exist are left as
// they are: nothing is stored of them.
template <class T, int kPixels, int kSize, int kStep>
__device__ __forceinline__ void fill_panel(const FusedArguments<T>& a, T* panel, int64_t* offsets) {
  const Geometry& g = a.geometry;
  const TilePlace tile = place_of_tile<T, kPixels>(a);
  for (int pixel = threadIdx.x; pixel < kPixels; pixel += kFusedThreads) {
    const int row = pixel >> a.tile_width_shift;
    const int y = tile.y + row, x = tile.x + pixel - (row << a.tile_width_shift);
    const bool exists = y < g.out_height && x < g.out_width;
    offsets[pixel] = exists ? tile.n * a.out.n + y * a.out.h + x * a.out.w : -1;
  }
  const int items = kPixels / kFusedRun / a.rows_of_thread * (a.padded_channels / kRowsLanes);
  for (int item = threadIdx.x; item < items; item += kFusedThreads) {
    if constexpr (kSize > 0)
      fill_rows<T, kSize, kStep>(a, tile, item, panel);
    else
      fill_run<T>(a, tile, item, panel);
  }
}

// Where a piece of 16 bytes of a row of weights lies in that row: rows are half of all banks long, and those
// of a matrix, eight from a multiple of eight on, have the same piece on different banks; so have two rows
// all of theirs, which threads copy together.
__device__ __forceinline__ int place_of_piece(int row, int piece) {
  return piece ^ (row / 2 % 4);
}

// Brings the pointwise weights of a block to its stages: a chunk is kFusedOutputs rows of kChunkElements, in
// such an order that the two columns that a lane gets of each of two tensor core tiles are four adjacent
// channels. What follows from the thread alone is computed once.
template <class T>
struct WeightCopies {
  static constexpr int kStride = kChunkElements<T>;
  static constexpr int kPieces = kStride / kRowElements<T>;  // of 16 bytes, in one row
  static constexpr int kRows = kFusedThreads / kPieces;      // that the block copies at once
  static_assert(kRows % 16 == 0 && kPieces == 4);
  T *first, *to;
  const T* from;
  int first_channel, channel, output;  // of what is copied next: input and output channel
  int stage = 0;

  __device__ __forceinline__ WeightCopies(const FusedArguments<T>& a, T* stages, int first_output) {
    const int row = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
    first_channel = channel = piece * kRowElements<T>;
    output = first_output + row / 16 * 16 + row % 8 / 2 * 4 + row % 16 / 8 * 2 + row % 2;
    from = a.pointwise_weight + static_cast<int64_t>(output) * a.channels + channel;
    first = to = stages + row * kStride + place_of_piece(row, piece) * kRowElements<T>;
  }

  __device__ __forceinline__ void start(const FusedArguments<T>& a, bool exists) {
    if (exists) {
#pragma unroll
      for (int i = 0; i < kFusedOutputs / kRows; ++i) {
        const bool valid = channel < a.channels && output + i * kRows < a.out_channels;
        device::copy_async(to + i * kRows * kStride,
                           valid ? from + static_cast<int64_t>(i * kRows) * a.channels : a.pointwise_weight,
                           valid);
      }
      channel += kChunkElements<T>;
      from += kChunkElements<T>;
      if (channel >= a.padded_channels) {
        channel = first_channel;
        output += kFusedOutputs;
        from += static_cast<int64_t>(kFusedOutputs) * a.channels - a.padded_channels;
      }
      stage = (stage + 1) % kFusedStages;
      to = first + stage * (kFusedOutputs * kStride);
    }
    device::commit_copies();
  }
};

// Stores a warp's sums of kDown x kAcross tensor core tiles, 16 x 8 each, and clears them. A lane holds four
// adjacent channels of two pixels in each pair of tiles, from `channel` on in the first; `offsets` are those
// of its first pixel and the others. The bias may lie anywhere in a flat buffer of parameters.
template <class T, int kDown, int kAcross>
__device__ __forceinline__ void store_sums(const FusedArguments<T>& a, const int64_t* offsets, int channel,
                                           float (&sum)[kDown][kAcross][4]) {
#pragma unroll
  for (int i = 0; i < kDown; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t offset = offsets[i * 16 + half * 8];
      if (offset < 0) continue;
      T* const to = a.output + offset + channel;
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        const int left = a.out_channels - channel - j * 8;
        Compute<T> quad[4] = {sum[i][j][half * 2], sum[i][j][half * 2 + 1], sum[i][j + 1][half * 2],
                              sum[i][j + 1][half * 2 + 1]};
        if (a.pointwise_bias != nullptr) {
#pragma unroll
          for (int v = 0; v < 4; ++v)
            if (v < left) quad[v] += widen(a.pointwise_bias[channel + j * 8 + v]);
        }
        if (a.quads) {
          if (left > 0) store<T, 4>(quad, to + j * 8);
          continue;
        }
#pragma unroll
        for (int v = 0; v < 4; v += 2) {
          const Compute<T> pair[2] = {quad[v], quad[v + 1]};
          if (v < left) store<T, 2>(pair, to + j * 8 + v);
        }
      }
    }
#pragma unroll
  for (int i = 0; i < kDown; ++i)
#pragma unroll
    for (int j = 0; j < kAcross; ++j)
#pragma unroll
      for (int v = 0; v < 4; ++v) sum[i][j][v] = 0;
}

// Warps of a block share the tile: kWarpsDown along pixels, the others along output channels.
template <class T, int kPixels, int kSize, int kStep>
__global__ void __launch_bounds__(kFusedThreads, kStep == 2 ? 1 : 2)
    separable_conv2d_kernel(const FusedArguments<T> a) {
  constexpr int kWarpsDown = kPixels / 32, kWarpsAcross = kFusedThreads / 32 / kWarpsDown;
  constexpr int kDown = 2, kAcross = kFusedOutputs / kWarpsAcross / 8;  // tensor core tiles of a warp: 16 x 8
  constexpr int kChunk = kChunkElements<T>, kStage = kFusedOutputs * kChunk;

  SEPCONV_SHARED(unsigned char, shared);
  const FusedShared<T, kPixels> parts(a.padded_channels);
  T* const panel = reinterpret_cast<T*>(shared);
  T* const stages = reinterpret_cast<T*>(shared + parts.panel);
  int64_t* const offsets = reinterpret_cast<int64_t*>(shared + parts.panel + parts.weights);

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int chunks = a.padded_channels / kChunk;
  const int first_output = blockIdx.y * a.output_tiles_of_block * kFusedOutputs;
  const int last_output = min(a.out_channels, first_output + a.output_tiles_of_block * kFusedOutputs);
  const int steps = (last_output - first_output + kFusedOutputs - 1) / kFusedOutputs * chunks;

  WeightCopies<T> copies(a, stages, first_output);
#pragma unroll
  for (int stage = 0; stage < kFusedStages - 1; ++stage) copies.start(a, stage < steps);

  fill_panel<T, kPixels, kSize, kStep>(a, panel, offsets);

  const int down = warp % kWarpsDown * (kDown * 16), across = warp / kWarpsDown * (kAcross * 8);
  const int panel_stride = a.padded_channels + kRowElements<T>;
  // Rows of the matrices that this lane points at (device::load_matrices).
  const T* const a_row = panel + (down + lane % 16) * panel_stride + lane / 16 * kRowElements<T>;
  const int b_row = (across + lane / 16 * 8 + lane % 8) * kChunk;
  const int b_piece = place_of_piece(lane % 8, lane / 8 % 2);

  float sum[kDown][kAcross][4] = {};
  for (int step = 0, chunk = 0, output = first_output + across; step < steps; ++step) {
    device::wait_for_copies<kFusedStages - 2>();
    device::synchronize();  // everybody's part of this chunk is there, and the stage before it has been read
    copies.start(a, step + kFusedStages - 1 < steps);
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
        device::load_matrices(right,
                              b_chunk + j * 8 * kChunk + (b_piece ^ k / kRowElements<T>)*kRowElements<T>);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          device::mma(T{}, sum[i][j], left[i], right[0], right[1]);
          device::mma(T{}, sum[i][j + 1], left[i], right[2], right[3]);
        }
      }
    }
    if (++chunk < chunks) continue;
    chunk = 0;
    store_sums(a, offsets + down + lane / 4, output + lane % 4 * 4, sum);
    output += kFusedOutputs;
  }
}

}  // namespace sepconv::cuda
