// Depthwise convolutions: a thread computes a run of adjacent outputs of one row for a vector of adjacent
// channels. The block's shape decides what adjacent threads share: along x threads take the next channels
// (NHWC), along y the next run of the row (NCHW, with one thread along x).
#pragma once
#include <type_traits>

#include "core/cuda/device.cuh"
#include "core/cuda/geometry.h"

namespace sepconv::cuda {

template <class T>
struct DepthwiseArguments {
  const T* input;
  T* output;
  const T* weight;  // (channels, 1, kh, kw)
  const T* bias;
  Strides in, out;
  Geometry geometry;
  int channels;       // of the output
  int first_channel;  // of this launch
  int multiplier;     // output channels of one input channel
  bool flipped;       // the kernel is read from its end
  unsigned items;     // runs in all rows of all images
};

// Weights of a vector of channels, one tap after the other: where they lie in the tensor...
template <class T, int kLanes>
struct WeightsInTensor {
  const T* first;
  int taps;
  bool flipped;
  __device__ __forceinline__ void read(int tap, Compute<T> (&weight)[kLanes]) const {
    const int at = flipped ? taps - 1 - tap : tap;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) weight[i] = widen(first[i * taps + at]);
  }
};
// ... or in shared memory, transposed to (taps, channels) and flipped already.
template <class T, int kLanes>
struct WeightsInShared {
  const T* first;
  int step;
  __device__ __forceinline__ void read(int tap, Compute<T> (&weight)[kLanes]) const {
    load<T, kLanes>(first + tap * step, weight);
  }
};

// Transposes the weights of `count` channels from `from` on; `step` elements lie between taps. Channels past
// the last one read zero. A warp brings four taps of eight channels: few threads in a row read what lies
// together, and few write to the same bank.
template <class T>
__device__ __forceinline__ void transpose_weights(const T* weight, int channels, int from, int count,
                                                  int taps, bool flipped, T* shared, int step, int thread,
                                                  int threads) {
  const int groups = (taps + 3) / 4;  // of taps
  for (int i = thread; i < (count + 7) / 8 * groups * 32; i += threads) {
    const int group = i / 32, lane = i % 32;
    const int channel = group / groups * 8 + lane / 4, tap = group % groups * 4 + lane % 4;
    if (tap >= taps || channel >= count) continue;
    shared[(flipped ? taps - 1 - tap : tap) * step + channel] =
        from + channel < channels ? weight[static_cast<int64_t>(from + channel) * taps + tap] : T{};
  }
}

// Within a row: 32 bits for vectors, which spares registers (moves_vectors sees to it that they suffice).
template <int kLanes>
using RowStep = std::conditional_t<(kLanes > 1), int, int64_t>;

// Adds what one kernel row gives kRun outputs that read columns from `first` on, all in registers at once.
// Where some lie outside (not kInside), their products are left out: with a zero in their place, an infinite
// weight would make NaN of them.
template <class T, int kLanes, int kRun, int kColumns, int kStep, bool kInside, class Weights>
__device__ __forceinline__ void add_row(const Geometry& g, const T* line, int64_t step,
                                        const Weights& weights, int ky, int first,
                                        Compute<T> (*sum)[kLanes]) {
  constexpr int kReads = (kRun - 1) * kStep + kColumns;
  const auto exists = [&](int r) {
    return kInside || static_cast<unsigned>(first + r) < static_cast<unsigned>(g.width);
  };
  Compute<T> in[kReads][kLanes], weight[kLanes];
#pragma unroll
  for (int r = 0; r < kReads; ++r)
    if (exists(r)) load<T, kLanes>(line + (first + r) * step, in[r]);
#pragma unroll
  for (int kx = 0; kx < kColumns; ++kx) {
    weights.read(ky * kColumns + kx, weight);
#pragma unroll
    for (int o = 0; o < kRun; ++o) {
      if (!exists(o * kStep + kx)) continue;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sum[o][i] += weight[i] * in[o * kStep + kx][i];
    }
  }
}

// Adds to `sum` the outputs (y, x), (y, x + 1), ... of kRun; `image` points at the vector's first channel.
// kColumns is the kernel's width and kStep the stride where both are known at compile time and columns are
// not dilated: then each column is read once for all outputs.
template <class T, int kLanes, int kRun, int kColumns, int kStep, class Weights>
__device__ __forceinline__ void depthwise_run(const Geometry& g, const T* image, const Strides& s,
                                              const Weights& weights, int y, int x,
                                              Compute<T> (&sum)[kRun][kLanes]) {
  const int columns = kColumns > 0 ? kColumns : g.kernel[1];
  const auto step = static_cast<RowStep<kLanes>>(s.w);
  for (int ky = 0; ky < g.kernel[0]; ++ky) {
    const int row = y * g.stride[0] - g.padding[0] + ky * g.dilation[0];
    if (static_cast<unsigned>(row) >= static_cast<unsigned>(g.height)) continue;
    const T* const line = image + row * s.h;
    Compute<T> weight[kLanes];
    if constexpr (kColumns > 0) {
      constexpr int kReads = (kRun - 1) * kStep + kColumns;
      const int first = x * kStep - g.padding[1];
      if (first >= 0 && first + kReads <= g.width)
        add_row<T, kLanes, kRun, kColumns, kStep, true>(g, line, step, weights, ky, first, sum);
      else
        add_row<T, kLanes, kRun, kColumns, kStep, false>(g, line, step, weights, ky, first, sum);
    } else {
      for (int kx = 0; kx < columns; ++kx) {
        weights.read(ky * columns + kx, weight);
#pragma unroll
        for (int o = 0; o < kRun; ++o) {
          const int column = (x + o) * g.stride[1] - g.padding[1] + kx * g.dilation[1];
          if (static_cast<unsigned>(column) >= static_cast<unsigned>(g.width)) continue;
          Compute<T> in[kLanes];
          load<T, kLanes>(line + column * step, in);
#pragma unroll
          for (int i = 0; i < kLanes; ++i) sum[o][i] += weight[i] * in[i];
        }
      }
    }
  }
}

// The bias of a vector of channels, which may lie anywhere in a flat buffer of parameters.
template <class T, int kLanes>
__device__ __forceinline__ void load_bias(const T* bias, int channel, Compute<T> (&to)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) to[i] = bias == nullptr ? 0 : widen(bias[channel + i]);
}

// Which run of which row an item is.
struct Run {
  int n, y, x;
};
template <int kRun>
__device__ __forceinline__ Run run_of(unsigned item, const Geometry& g) {
  const unsigned runs = (g.out_width + kRun - 1) / kRun;
  const unsigned row = item / runs;
  const unsigned n = row / g.out_height;
  return {static_cast<int>(n), static_cast<int>(row - n * g.out_height),
          static_cast<int>(item - row * runs) * kRun};
}

// A block takes blockDim.x vectors of channels and kItems * blockDim.y runs.
inline constexpr int kItemsOfDepthwise = 4;

// The weights of this thread's vector of channels, or of all `multiplier` that each of them has; if kShared,
// the whole block brings its own to shared memory.
template <class T, int kLanes, bool kShared>
__device__ __forceinline__ auto weights_of_block(const T* weight, int channels, int first_channel,
                                                 int multiplier, int taps, bool flipped) {
  const int block_channels = blockDim.x * kLanes, lane = threadIdx.x * kLanes;
  if constexpr (kShared) {
    SEPCONV_SHARED(T, shared);
    transpose_weights(weight, channels, first_channel, block_channels, taps, flipped, shared, block_channels,
                      threadIdx.y * blockDim.x + threadIdx.x, blockDim.x * blockDim.y);
    device::synchronize();
    return WeightsInShared<T, kLanes>{shared + lane, block_channels};
  } else {
    return WeightsInTensor<T, kLanes>{weight + static_cast<int64_t>(first_channel + lane) * multiplier * taps,
                                      taps, flipped};
  }
}

template <class T, int kLanes, int kRun, int kColumns, int kStep, bool kShared>
__global__ void __launch_bounds__(256, 2) depthwise_kernel(const DepthwiseArguments<T> a) {
  const Geometry& g = a.geometry;
  const int block_channel = a.first_channel + static_cast<int>(blockIdx.y * blockDim.x) * kLanes;
  const auto weights = weights_of_block<T, kLanes, kShared>(a.weight, a.channels, block_channel, 1,
                                                            g.kernel[0] * g.kernel[1], a.flipped);
  const int channel = block_channel + static_cast<int>(threadIdx.x) * kLanes;
  if (channel >= a.channels) return;

  Compute<T> bias[kLanes];
  load_bias(a.bias, channel, bias);
  const T* const input = a.input + channel / a.multiplier * a.in.c;
  for (int j = 0; j < kItemsOfDepthwise; ++j) {
    const unsigned item = (blockIdx.x * kItemsOfDepthwise + j) * blockDim.y + threadIdx.y;
    if (item >= a.items) return;
    const Run run = run_of<kRun>(item, g);
    Compute<T> sum[kRun][kLanes];
#pragma unroll
    for (int o = 0; o < kRun; ++o)
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sum[o][i] = bias[i];
    const T* const image = input + run.n * a.in.n;
    depthwise_run<T, kLanes, kRun, kColumns, kStep>(g, image, a.in, weights, run.y, run.x, sum);
    T* const output = a.output + run.n * a.out.n + channel * a.out.c + run.y * a.out.h;
#pragma unroll
    for (int o = 0; o < kRun; ++o)
      if (run.x + o < g.out_width) store<T, kLanes>(sum[o], output + (run.x + o) * a.out.w);
  }
}

}  // namespace sepconv::cuda
