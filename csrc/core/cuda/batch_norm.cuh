// Batch norm of NHWC images: a thread has a vector of adjacent channels, threads along y the next pixels.
// Sums are cut into splits of the pixels by the shape alone and added in a fixed order.
#pragma once
#include "core/cuda/device.cuh"
#include "core/cuda/prologue.cuh"

namespace sepconv::cuda {

// The pixels of an image, counted across rows and images.
template <class T>
struct Pixels {
  T* data;
  int64_t stride_n, stride_h, stride_w;
  unsigned height, width;
  bool joined;  // each follows the last by stride_w

  __device__ __forceinline__ T* at(unsigned pixel, int channel) const {
    if (joined) return data + pixel * stride_w + channel;
    const unsigned row = pixel / width, n = row / height;
    return data + n * stride_n + (row - n * height) * stride_h + (pixel - row * width) * stride_w + channel;
  }
};

// Pixels of a thread that are loaded before the first is stored.
inline constexpr int kPixelsAtOnce = 4;

// Calls body(first) for this thread's groups of pixels first, first + blockDim.y, ...
template <class Body>
__device__ __forceinline__ void over_pixels(unsigned pixels, const Body& body) {
  const unsigned of_block = kPixelsAtOnce * blockDim.y;
  // Counted by groups, which 32 bits hold where pixels beyond the last would not fit.
  const unsigned groups = (pixels - 1) / of_block + 1;
  for (unsigned group = blockIdx.x; group < groups; group += gridDim.x) body(group * of_block + threadIdx.y);
}

template <class T>
struct BatchNormArguments {
  Pixels<const T> input;
  Pixels<T> output;
  PrologueArguments<Compute<T>> prologue;
  int channels;
  unsigned pixels;
};

template <class T, int kLanes>
__global__ void __launch_bounds__(256) batch_norm_kernel(const BatchNormArguments<T> a) {
  const int channel = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * kLanes;
  if (channel >= a.channels) return;
  const LoadedPrologue<T, kLanes> prologue(a.prologue, channel);
  over_pixels(a.pixels, [&](unsigned first) {
    Vector<T, kLanes> input[kPixelsAtOnce];
#pragma unroll
    for (int j = 0; j < kPixelsAtOnce; ++j) {
      const unsigned pixel = first + j * blockDim.y;
      if (pixel < a.pixels) input[j] = load<T, kLanes>(a.input.at(pixel, channel));
    }
#pragma unroll
    for (int j = 0; j < kPixelsAtOnce; ++j) {
      const unsigned pixel = first + j * blockDim.y;
      if (pixel >= a.pixels) return;
      Compute<T> x[kLanes];
      widen(input[j], x);
      prologue.apply(x);
      store<T, kLanes>(x, a.output.at(pixel, channel));
    }
  });
}

// --- Sums over all pixels: two of each channel ---

template <class T>
struct SumsArguments {
  Pixels<const T> input;
  Compute<T>* partial;  // (splits, 2, channels)
  int channels;
  unsigned pixels, pixels_of_split;
};

// Elements between the lanes of a block's threads in shared memory: neighbours in a lane have banks of their
// own, and so have a thread's lanes.
__device__ __forceinline__ int step_of_lanes() {
  return static_cast<int>(blockDim.x * blockDim.y) + 4;
}

// add(pixel, sums) for this thread's pixels of the block's split, then the sums of the block's threads.
template <class T, int kLanes, class Add>
__device__ __forceinline__ void sum_pixels(const SumsArguments<T>& a, int channel, const Add& add) {
  using C = Compute<T>;
  SEPCONV_SHARED(C, shared);  // (kLanes, blockDim.y, blockDim.x)
  C sums[2][kLanes] = {};
  const unsigned begin = blockIdx.y * a.pixels_of_split;
  const unsigned end = begin + a.pixels_of_split < a.pixels ? begin + a.pixels_of_split : a.pixels;
  if (channel < a.channels) {
#pragma unroll 4  // loads of several are under way together
    for (unsigned pixel = begin + threadIdx.y; pixel < end; pixel += blockDim.y) add(pixel, sums);
  }
  const int step = step_of_lanes(), thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int block_channels = blockDim.x * kLanes, from = blockIdx.x * block_channels;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    C(&total)[kLanes] = sums[which];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) shared[i * step + thread] = total[i];
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
      device::synchronize();
      if (threadIdx.y >= half) continue;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        total[i] += shared[i * step + thread + half * blockDim.x];
        shared[i * step + thread] = total[i];
      }
    }
    device::synchronize();
    C* const to = a.partial + (static_cast<int64_t>(blockIdx.y) * 2 + which) * a.channels + from;
    for (int i = thread; i < block_channels; i += blockDim.x * blockDim.y)
      if (from + i < a.channels) to[i] = shared[i % kLanes * step + i / kLanes];
    device::synchronize();
  }
}

// A typical value of a channel, the median of three: sums of differences from it do not make the variance a
// small difference of large numbers.
template <class C>
__device__ __forceinline__ C median(C a, C b, C c) {
  const C low = a < b ? a : b, high = a < b ? b : a;
  return c < low ? low : c > high ? high : c;
}
template <class T, int kLanes>
__device__ __forceinline__ void load_typical(const Pixels<const T>& input, unsigned pixels, int channel,
                                             Compute<T> (&to)[kLanes]) {
  Compute<T> some[3][kLanes];
#pragma unroll
  for (unsigned j = 0; j < 3; ++j) load<T, kLanes>(input.at(pixels / 4 * (j + 1), channel), some[j]);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) to[i] = median(some[0][i], some[1][i], some[2][i]);
}

// Of x - x0 and its square, where x0 is typical of the channel.
template <class T, int kLanes>
__global__ void __launch_bounds__(256) batch_norm_sums_kernel(const SumsArguments<T> a) {
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * kLanes;
  Compute<T> typical[kLanes] = {};
  if (channel < a.channels) load_typical<T, kLanes>(a.input, a.pixels, channel, typical);
  sum_pixels<T, kLanes>(a, channel, [&](unsigned pixel, Compute<T>(&sums)[2][kLanes]) {
    Compute<T> x[kLanes];
    load<T, kLanes>(a.input.at(pixel, channel), x);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const Compute<T> difference = x[i] - typical[i];
      sums[0][i] += difference;
      sums[1][i] += difference * difference;
    }
  });
}

template <class T>
struct GradientArguments {
  Pixels<const T> grad_output;
  PrologueArguments<Compute<T>> activated;  // what the activation got: only gradients that pass it count
  const Compute<T>* mean;
};

// Of g, the gradient before the activation, and of g * (x - mean).
template <class T, int kLanes>
__global__ void __launch_bounds__(256)
    batch_norm_gradient_sums_kernel(const SumsArguments<T> a, const GradientArguments<T> of) {
  using C = Compute<T>;
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * kLanes;
  const int own = channel < a.channels ? channel : 0;
  const LoadedPrologue<T, kLanes> activated(of.activated, own);
  C mean[kLanes];
  load_channels(of.mean, own, C{0}, mean);
  sum_pixels<T, kLanes>(a, channel, [&](unsigned pixel, C(&sums)[2][kLanes]) {
    C x[kLanes], g[kLanes];
    load<T, kLanes>(a.input.at(pixel, channel), x);
    load<T, kLanes>(of.grad_output.at(pixel, channel), g);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (!passes(activated.affine(x[i], i), activated.bounds)) continue;
      sums[0][i] += g[i];
      sums[1][i] += g[i] * (x[i] - mean[i]);
    }
  });
}

// --- What follows from the sums, channel by channel ---

inline constexpr int kChannelsOfTotals = 32;  // of a block; its other threads share the splits

// Both sums of a channel, in double: a few additions. Only threads of row 0 get them.
template <class C>
__device__ __forceinline__ void add_splits(const C* partial, int channels, int splits, int channel,
                                           double (&totals)[2]) {
  SEPCONV_SHARED(double, shared);  // (2, blockDim.y, kChannelsOfTotals)
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    double sum = 0;
    if (channel < channels)
      for (int split = threadIdx.y; split < splits; split += blockDim.y)
        sum += partial[(static_cast<int64_t>(split) * 2 + which) * channels + channel];
    shared[(which * blockDim.y + threadIdx.y) * kChannelsOfTotals + threadIdx.x] = sum;
  }
  device::synchronize();
  if (threadIdx.y != 0) return;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    totals[which] = 0;
    for (unsigned y = 0; y < blockDim.y; ++y)
      totals[which] += shared[(which * blockDim.y + y) * kChannelsOfTotals + threadIdx.x];
  }
}

template <class T>
struct StatisticsArguments {
  Pixels<const T> input;
  const Compute<T>* partial;
  const Compute<T>*weight, *bias;
  Compute<T>*running_mean, *running_var;
  Compute<T>*mean, *inverse_std, *scale, *shift;
  int64_t* batches;
  double eps, momentum;
  int channels, splits;
  unsigned pixels;
};

template <class T>
__global__ void __launch_bounds__(256) batch_norm_statistics_kernel(const StatisticsArguments<T> a) {
  using C = Compute<T>;
  const int channel = static_cast<int>(blockIdx.x) * kChannelsOfTotals + static_cast<int>(threadIdx.x);
  double totals[2];
  add_splits(a.partial, a.channels, a.splits, channel, totals);
  if (threadIdx.y != 0 || channel >= a.channels) return;
  if (channel == 0 && a.batches != nullptr) ++*a.batches;

  C typical[1];
  load_typical<T, 1>(a.input, a.pixels, channel, typical);
  const double offset = totals[0] / a.pixels, mean = typical[0] + offset;
  const double spread = totals[1] / a.pixels - offset * offset;
  const double variance = spread < 0 ? 0 : spread;  // by rounding; NaN stays
  const double inverse_std = 1 / device::square_root(variance + a.eps);
  const C scale = static_cast<C>((a.weight == nullptr ? 1.0 : a.weight[channel]) * inverse_std);
  a.mean[channel] = static_cast<C>(mean);
  a.inverse_std[channel] = static_cast<C>(inverse_std);
  a.scale[channel] = scale;
  a.shift[channel] = static_cast<C>((a.bias == nullptr ? 0.0 : a.bias[channel]) - mean * scale);
  if (a.running_mean == nullptr) return;
  const double unbiased = variance * (a.pixels / (a.pixels - 1.0));
  a.running_mean[channel] = static_cast<C>((1 - a.momentum) * a.running_mean[channel] + a.momentum * mean);
  a.running_var[channel] = static_cast<C>((1 - a.momentum) * a.running_var[channel] + a.momentum * unbiased);
}

// The gradient of the input is scale * g + of_input * (x - mean) + constant.
template <class C>
struct GradientLine {
  C *of_input, *constant;
};

template <class C>
struct GradientTotalsArguments {
  const C* partial;
  const C *scale, *inverse_std;
  C *grad_weight, *grad_bias;  // either may be null
  GradientLine<C> line;
  int channels, splits;
  unsigned pixels;
};

template <class C>
__global__ void __launch_bounds__(256) batch_norm_gradient_totals_kernel(const GradientTotalsArguments<C> a) {
  const int channel = static_cast<int>(blockIdx.x) * kChannelsOfTotals + static_cast<int>(threadIdx.x);
  double totals[2];
  add_splits(a.partial, a.channels, a.splits, channel, totals);
  if (threadIdx.y != 0 || channel >= a.channels) return;
  const double scale = a.scale[channel], inverse_std = a.inverse_std[channel];
  if (a.grad_weight != nullptr) a.grad_weight[channel] = static_cast<C>(totals[1] * inverse_std);
  if (a.grad_bias != nullptr) a.grad_bias[channel] = static_cast<C>(totals[0]);
  a.line.of_input[channel] = static_cast<C>(-scale * inverse_std * inverse_std * totals[1] / a.pixels);
  a.line.constant[channel] = static_cast<C>(-scale * totals[0] / a.pixels);
}

template <class T>
struct InputGradientOfNormArguments {
  Pixels<const T> input;
  Pixels<T> grad_input;  // may be what grad_output is: each thread reads its own before it writes them
  const Compute<T>* scale;
  GradientLine<Compute<T>> line;  // null: 0
  int channels;
  unsigned pixels;
};

template <class T, int kLanes>
__global__ void __launch_bounds__(256)
    batch_norm_input_gradient_kernel(const InputGradientOfNormArguments<T> a, const GradientArguments<T> of) {
  using C = Compute<T>;
  const int channel = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * kLanes;
  if (channel >= a.channels) return;
  const LoadedPrologue<T, kLanes> activated(of.activated, channel);
  C scale[kLanes], mean[kLanes], of_input[kLanes], constant[kLanes];
  load_channels(a.scale, channel, C{1}, scale);
  load_channels(of.mean, channel, C{0}, mean);
  load_channels<C>(a.line.of_input, channel, C{0}, of_input);
  load_channels<C>(a.line.constant, channel, C{0}, constant);
  over_pixels(a.pixels, [&](unsigned first) {
    Vector<T, kLanes> input[kPixelsAtOnce], grad[kPixelsAtOnce];
#pragma unroll
    for (int j = 0; j < kPixelsAtOnce; ++j) {
      const unsigned pixel = first + j * blockDim.y;
      if (pixel >= a.pixels) break;
      input[j] = load<T, kLanes>(a.input.at(pixel, channel));
      grad[j] = load<T, kLanes>(of.grad_output.at(pixel, channel));
    }
#pragma unroll
    for (int j = 0; j < kPixelsAtOnce; ++j) {
      const unsigned pixel = first + j * blockDim.y;
      if (pixel >= a.pixels) return;
      C x[kLanes], g[kLanes];
      widen(input[j], x);
      widen(grad[j], g);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const C passed = passes(activated.affine(x[i], i), activated.bounds) ? g[i] : C{0};
        // Without a batch norm x may be infinite, and must not count.
        g[i] = a.line.of_input == nullptr ? passed
                                          : scale[i] * passed + of_input[i] * (x[i] - mean[i]) + constant[i];
      }
      store<T, kLanes>(g, a.grad_input.at(pixel, channel));
    }
  });
}

}  // namespace sepconv::cuda
