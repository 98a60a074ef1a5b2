// Gradients of a depthwise convolution: of the input for any stride, and of the weight.
#pragma once
#include "core/cuda/depthwise.cuh"

namespace sepconv::cuda {

// The geometry is the forward's: `output` lies on its input grid, what is read on its output grid.
template <class T>
struct InputGradientArguments {
  const T* grad_output;
  T* grad_input;
  const T* weight;
  Strides grad_out, grad_in;
  Geometry geometry;
  int channels;       // of the input
  int first_channel;  // of this launch
  int multiplier;     // output channels of one input channel
  unsigned items;     // input positions in all rows of all images
};

template <class T, int kLanes, bool kShared>
__global__ void __launch_bounds__(256, 2) depthwise_input_gradient_kernel(const InputGradientArguments<T> a) {
  const Geometry& g = a.geometry;
  const int taps = g.kernel[0] * g.kernel[1];
  const int block_channel = a.first_channel + static_cast<int>(blockIdx.y * blockDim.x) * kLanes;
  const auto weights =
      weights_of_block<T, kLanes, kShared>(a.weight, a.channels, block_channel, a.multiplier, taps, false);
  const int channel = block_channel + static_cast<int>(threadIdx.x) * kLanes;
  if (channel >= a.channels) return;

  for (int j = 0; j < kItemsOfDepthwise; ++j) {
    const unsigned item = (blockIdx.x * kItemsOfDepthwise + j) * blockDim.y + threadIdx.y;
    if (item >= a.items) return;
    const unsigned row = item / g.width, image = row / g.height;
    const int y = row - image * g.height, x = item - row * g.width;
    Compute<T> sum[kLanes] = {};
    // With several output channels for one input channel a vector has one lane, and their weights follow one
    // another.
    for (int m = 0; m < a.multiplier; ++m) {
      const int64_t from = static_cast<int64_t>(channel) * a.multiplier + m;
      const T* const grad = a.grad_output + image * a.grad_out.n + from * a.grad_out.c;
      for (int ky = 0; ky < g.kernel[0]; ++ky) {
        const int scaled_y = y + g.padding[0] - ky * g.dilation[0];
        const int out_y = scaled_y / g.stride[0];
        if (scaled_y < 0 || out_y * g.stride[0] != scaled_y || out_y >= g.out_height) continue;
        for (int kx = 0; kx < g.kernel[1]; ++kx) {
          const int scaled_x = x + g.padding[1] - kx * g.dilation[1];
          const int out_x = scaled_x / g.stride[1];
          if (scaled_x < 0 || out_x * g.stride[1] != scaled_x || out_x >= g.out_width) continue;
          Compute<T> in[kLanes], weight[kLanes];
          load<T, kLanes>(grad + out_y * a.grad_out.h + out_x * a.grad_out.w, in);
          weights.read(m * taps + ky * g.kernel[1] + kx, weight);
#pragma unroll
          for (int i = 0; i < kLanes; ++i) sum[i] += weight[i] * in[i];
        }
      }
    }
    store<T, kLanes>(
        sum, a.grad_input + image * a.grad_in.n + channel * a.grad_in.c + y * a.grad_in.h + x * a.grad_in.w);
  }
}

template <class T>
struct WeightGradientArguments {
  const T* grad_output;
  const T* input;
  Compute<T>* partial;  // (splits, taps, channels)
  Strides grad_out, in;
  Geometry geometry;
  int channels, multiplier;
  unsigned items, items_of_split;
};

// A block sums over the items of one split for blockDim.x vectors of channels. blockIdx.z is the kernel row
// (kRows 1), or the tap (kColumns 1), or nothing where kRows rows are the whole kernel.
template <class T, int kLanes, int kRun, int kRows, int kColumns>
__global__ void __launch_bounds__(256) depthwise_weight_gradient_kernel(const WeightGradientArguments<T> a) {
  SEPCONV_SHARED(Compute<T>, shared);
  const Geometry& g = a.geometry;
  const int channel = (blockIdx.x * blockDim.x + threadIdx.x) * kLanes;
  const bool exists = channel < a.channels;
  const int first_row = kRows > 1 ? 0 : kColumns > 1 ? blockIdx.z : blockIdx.z / g.kernel[1];
  const int first_column = kColumns > 1 ? 0 : blockIdx.z % g.kernel[1];

  Compute<T> sum[kRows][kColumns][kLanes] = {};
  if (exists) {
    const T* const input = a.input + channel / a.multiplier * a.in.c;
    const T* const grads = a.grad_output + channel * a.grad_out.c;
    const unsigned begin = blockIdx.y * a.items_of_split;
    const unsigned end = begin + a.items_of_split < a.items ? begin + a.items_of_split : a.items;
    for (unsigned item = begin + threadIdx.y; item < end; item += blockDim.y) {
      const Run run = run_of<kRun>(item, g);
      Compute<T> grad[kRun][kLanes];
      const T* const grad_row = grads + run.n * a.grad_out.n + run.y * a.grad_out.h;
#pragma unroll
      for (int o = 0; o < kRun; ++o)
        if (run.x + o < g.out_width) load<T, kLanes>(grad_row + (run.x + o) * a.grad_out.w, grad[o]);
#pragma unroll
      for (int ky = 0; ky < kRows; ++ky) {
        const int row = run.y * g.stride[0] - g.padding[0] + (first_row + ky) * g.dilation[0];
        if (static_cast<unsigned>(row) >= static_cast<unsigned>(g.height)) continue;
        const T* const line = input + run.n * a.in.n + row * a.in.h;
        constexpr int kReads = kRun + kColumns - 1;
        Compute<T> in[kReads][kLanes];
#pragma unroll
        for (int r = 0; r < kReads; ++r) {
          const int column = kColumns > 1
                                 ? run.x - g.padding[1] + r
                                 : (run.x + r) * g.stride[1] - g.padding[1] + first_column * g.dilation[1];
          if (static_cast<unsigned>(column) < static_cast<unsigned>(g.width)) {
            load<T, kLanes>(line + column * a.in.w, in[r]);
          } else {
#pragma unroll
            for (int i = 0; i < kLanes; ++i) in[r][i] = 0;
          }
        }
#pragma unroll
        for (int o = 0; o < kRun; ++o) {
          if (run.x + o >= g.out_width) continue;
#pragma unroll
          for (int kx = 0; kx < kColumns; ++kx)
#pragma unroll
            for (int i = 0; i < kLanes; ++i) sum[ky][kx][i] += grad[o][i] * in[o + kx][i];
        }
      }
    }
  }

  // The threads along y in a tree, one tap after the other.
  const int taps = g.kernel[0] * g.kernel[1];
  Compute<T>* const own = shared + (threadIdx.y * blockDim.x + threadIdx.x) * kLanes;
#pragma unroll
  for (int ky = 0; ky < kRows; ++ky)
#pragma unroll
    for (int kx = 0; kx < kColumns; ++kx) {
      Compute<T>(&total)[kLanes] = sum[ky][kx];
      store<Compute<T>, kLanes>(total, own);
      for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
        device::synchronize();
        if (threadIdx.y < half) {
          Compute<T> other[kLanes];
          load<Compute<T>, kLanes>(own + half * blockDim.x * kLanes, other);
#pragma unroll
          for (int i = 0; i < kLanes; ++i) total[i] += other[i];
          store<Compute<T>, kLanes>(total, own);
        }
      }
      if (threadIdx.y == 0 && exists) {
        const int tap = (first_row + ky) * g.kernel[1] + first_column + kx;
        store_global<Compute<T>, kLanes>(
            total, a.partial + (static_cast<int64_t>(blockIdx.y) * taps + tap) * a.channels + channel);
      }
      device::synchronize();
    }
}

inline constexpr int kChannelsOfSum = 32;  // of a block; its other threads share the splits

// grad_weight (channels, taps) from the partial sums (splits, taps, channels), always in the same order.
template <class T>
__global__ void __launch_bounds__(256)
    sum_of_splits_kernel(const Compute<T>* partial, T* grad_weight, int channels, int taps, int splits) {
  SEPCONV_SHARED(Compute<T>, shared);
  const int channel = blockIdx.x * kChannelsOfSum + threadIdx.x, tap = blockIdx.y;
  Compute<T> sum = 0;
  const int64_t step = static_cast<int64_t>(blockDim.y) * taps * channels;
  const Compute<T>* from = partial + (static_cast<int64_t>(threadIdx.y) * taps + tap) * channels + channel;
  const int count = channel < channels
                        ? (splits - static_cast<int>(threadIdx.y) + static_cast<int>(blockDim.y) - 1) /
                              static_cast<int>(blockDim.y)
                        : 0;
#pragma unroll 8  // loads of several are under way together
  for (int i = 0; i < count; ++i, from += step) sum += *from;
  shared[threadIdx.y * kChannelsOfSum + threadIdx.x] = sum;
  device::synchronize();
  if (threadIdx.y != 0 || channel >= channels) return;
  for (int y = 1; y < static_cast<int>(blockDim.y); ++y) sum += shared[y * kChannelsOfSum + threadIdx.x];
  grad_weight[static_cast<int64_t>(channel) * taps + tap] = narrow<T>(sum);
}

}  // namespace sepconv::cuda
