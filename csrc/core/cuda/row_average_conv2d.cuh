// The dense convolution of averaged rows, for few input channels: the averaged rows that a tile of output
// pixels needs are made once, in shared memory; a warp's lanes are pixels, a thread multiplies a few of them
// by a few output channels. And its weight gradient.
#pragma once
#include "core/cuda/device.cuh"
#include "core/cuda/row_average.cuh"
#include "core/params.h"

namespace sepconv::cuda {

// Quotients of numbers below 2^15.
struct SmallDivisor {
  unsigned divisor = 1, factor = 1u << 31;
  SmallDivisor() = default;
  explicit SmallDivisor(int64_t by)
      : divisor(static_cast<unsigned>(by < (1 << 15) ? by : 1 << 15)),
        factor((1u << 31) / divisor + ((1u << 31) % divisor != 0)) {}
  __device__ __forceinline__ unsigned quotient(unsigned x) const {
    return static_cast<unsigned>((static_cast<uint64_t>(x) * factor) >> 31);
  }
};

struct DenseShape {
  Image input, output;  // `output` of the forward, or grad_output
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t row_stride, averages;  // rows after the average; row_stride 0: rows as they are
  int64_t taps, depth;           // kh * kw, c_in * kh * kw
};

// Rows averaged into row r, whose sum counts as zero where `r` lies outside.
__device__ __forceinline__ SummedRows window_row(const DenseShape& shape, int64_t r) {
  if (r < 0 || r >= shape.averages) return {};
  if (shape.row_stride != 0) return averaged_rows(r, shape.row_stride, shape.input.h);
  SummedRows rows;
  rows.first = r;
  rows.count = 1;
  return rows;
}

// Zero of no rows. Without branches, so that loads of several means are under way together: `first` is
// readable always.
template <class S>
__device__ __forceinline__ Compute<S> mean_of(const S* first, int64_t step, int count,
                                              const Divisor<Compute<S>>& by) {
  using T = Compute<S>;
  const T x0 = widen(first[0]), x1 = widen(first[count > 1 ? step : 0]),
          x2 = widen(first[count > 2 ? 2 * step : 0]);
  const T two = x0 + x1, three = two + x2;
  return count == 0 ? T(0) : by.divide(count == 1 ? x0 : count == 2 ? two : three);
}

// --- Forward ---

constexpr int kDenseThreads = 256, kDenseWarps = kDenseThreads / 32;
constexpr int kDensePixels = 4;    // of a thread
constexpr int kDenseChannels = 8;  // of a thread
constexpr int kDenseMostGroups = 4;
constexpr int kDenseColumns = kDenseMostGroups * kDenseChannels;  // output channels of a block, at most
constexpr int kDenseWeightPitch = kDenseColumns + 4;              // whole vectors, in several banks

// Shared memory: values, then weights [depth of a chunk][kDenseWeightPitch], then where each depth's values
// begin. Values are either rows, [channel][row][column], the columns of one remainder by the stride
// together, so that adjacent pixels are adjacent; or, where those would be too many, a panel [depth][pixel].
struct DenseTile {
  bool rows_kept;
  bool channels_adjacent;  // of the input
  bool stores_vectors;
  int groups_shift;  // 2^groups_shift groups of channels a block, the other warps take other pixels
  int width_shift;   // a tile is 2^width_shift pixels wide
  int pixels, height;
  int chunk;                              // depth that fits
  int rows, columns, pitch, phase_pitch;  // of what is kept of one channel
  int64_t values;
  unsigned tiles_w, tiles_h, tiles_c;
  SmallDivisor by_channels, by_last_channels, by_stride;
  int channels;  // of a chunk that keeps rows; the last one may have fewer
};

template <class S>
struct DenseBlock {
  using T = Compute<S>;
  int64_t n, h, w;  // of the first pixel
  int64_t channel;  // the first
  T* values;
  T* weights;
  int* begins;
};

template <class S>
__device__ __forceinline__ void keep_rows(const S* input, const DenseShape& shape, const DenseTile& tile,
                                          const Divisors<Compute<S>>& divisors, const DenseBlock<S>& block,
                                          int64_t channel, int channels, int thread) {
  using T = Compute<S>;
  const int warp = thread / 32, lane = thread % 32;
  const int64_t h0 = block.h * shape.stride[0] - shape.padding[0],
                w0 = block.w * shape.stride[1] - shape.padding[1];
  const bool together = tile.channels_adjacent;
  const SmallDivisor by_channels = channels == tile.channels ? tile.by_channels : tile.by_last_channels;
  const int lines = together ? tile.rows : tile.rows * channels;
  const unsigned run = together ? tile.columns * channels : tile.columns;
  const int plane = tile.rows * tile.pitch;
  for (int line = warp; line < lines; line += kDenseWarps) {
    const int line_channel = together ? 0 : line / tile.rows, row = line - line_channel * tile.rows;
    const SummedRows rows = window_row(shape, h0 + row);
    const Divisor<T> by(divisors, rows.divisor[0]);
    const S* from = input + block.n * shape.input.stride_n + (channel + line_channel) * shape.input.stride_c +
                    rows.first * shape.input.stride_h;
    T* to = block.values + line_channel * plane + row * tile.pitch;
#pragma unroll 4
    for (unsigned e = lane; e < run; e += 32) {
      const unsigned column = together ? by_channels.quotient(e) : e;
      const unsigned c = together ? e - column * channels : 0;
      const unsigned step = tile.by_stride.quotient(column);
      const unsigned phase = column - step * tile.by_stride.divisor;
      const int64_t w = w0 + column;
      const bool in = w >= 0 && w < shape.input.w;
      to[c * plane + phase * tile.phase_pitch + step] =
          mean_of(from + (in ? w * shape.input.stride_w + c * shape.input.stride_c : 0), shape.input.stride_h,
                  in ? rows.count : 0, by);
    }
  }
}

template <class S>
__device__ __forceinline__ void keep_panel(const S* input, const DenseShape& shape, const DenseTile& tile,
                                           const Divisors<Compute<S>>& divisors, const DenseBlock<S>& block,
                                           int64_t first, int depth, int thread) {
  using T = Compute<S>;
  const int width = 1 << tile.width_shift;
  for (int e = thread; e < depth * tile.pixels; e += kDenseThreads) {
    const int k = e / tile.pixels, pixel = e - k * tile.pixels;
    const int64_t c = quotient(first + k, shape.taps), tap = first + k - c * shape.taps;
    const int64_t kh = quotient(tap, shape.kernel[1]), kw = tap - kh * shape.kernel[1];
    const int64_t h = block.h + (pixel >> tile.width_shift), w = block.w + (pixel & (width - 1));
    const int64_t column = w * shape.stride[1] - shape.padding[1] + kw * shape.dilation[1];
    SummedRows rows = window_row(shape, h * shape.stride[0] - shape.padding[0] + kh * shape.dilation[0]);
    if (column < 0 || column >= shape.input.w) rows = {};
    const S* from = input + block.n * shape.input.stride_n + c * shape.input.stride_c +
                    rows.first * shape.input.stride_h + (rows.count != 0 ? column : 0) * shape.input.stride_w;
    block.values[e] = mean_of(from, shape.input.stride_h, rows.count, Divisor<T>(divisors, rows.divisor[0]));
  }
}

// Where the values of a depth begin.
__device__ __forceinline__ int begin_of(const DenseShape& shape, const DenseTile& tile, int k) {
  if (!tile.rows_kept) return k * tile.pixels;
  const int taps = static_cast<int>(shape.taps), kernel_w = static_cast<int>(shape.kernel[1]);
  const int c = k / taps, tap = k - c * taps, kh = tap / kernel_w, kw = tap - kh * kernel_w;
  const unsigned column = kw * static_cast<unsigned>(shape.dilation[1]);
  const unsigned step = tile.by_stride.quotient(column), phase = column - step * tile.by_stride.divisor;
  return (c * tile.rows + kh * static_cast<int>(shape.dilation[0])) * tile.pitch +
         static_cast<int>(phase * tile.phase_pitch + step);
}

template <class S>
__global__ void __launch_bounds__(kDenseThreads, sizeof(Compute<S>) == 8 ? 1 : 2)
    row_average_conv2d_kernel(const S* input, const S* weight, const S* bias, S* output, DenseShape shape,
                              DenseTile tile, Divisors<Compute<S>> divisors) {
  using T = Compute<S>;
  SEPCONV_SHARED(T, shared);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = warp & ((1 << tile.groups_shift) - 1), pixel_group = warp >> tile.groups_shift;
  const int columns = kDenseChannels << tile.groups_shift;

  unsigned index = blockIdx.x;
  DenseBlock<S> block;
  block.channel = static_cast<int64_t>(index % tile.tiles_c) * columns;
  index /= tile.tiles_c;
  block.w = static_cast<int64_t>(index % tile.tiles_w) << tile.width_shift;
  index /= tile.tiles_w;
  block.h = static_cast<int64_t>(index % tile.tiles_h) * tile.height;
  block.n = index / tile.tiles_h;
  block.values = shared;
  block.weights = shared + tile.values;
  block.begins = reinterpret_cast<int*>(block.weights + tile.chunk * kDenseWeightPitch);

  int at[kDensePixels];
#pragma unroll
  for (int p = 0; p < kDensePixels; ++p) {
    const int pixel = (pixel_group * kDensePixels + p) * 32 + lane;
    at[p] = tile.rows_kept ? (pixel >> tile.width_shift) * static_cast<int>(shape.stride[0]) * tile.pitch +
                                 (pixel & ((1 << tile.width_shift) - 1))
                           : pixel;
  }
  T sums[kDensePixels][kDenseChannels] = {};
  for (int64_t first = 0; first < shape.depth; first += tile.chunk) {
    const int depth = static_cast<int>(shape.depth - first < tile.chunk ? shape.depth - first : tile.chunk);
    if (first != 0) device::synchronize();
    if (tile.rows_kept)
      keep_rows(input, shape, tile, divisors, block, quotient(first, shape.taps),
                depth / static_cast<int>(shape.taps), thread);
    else
      keep_panel(input, shape, tile, divisors, block, first, depth, thread);
    for (int o = warp; o < columns; o += kDenseWarps) {
      const int64_t channel = block.channel + o;
      for (int k = lane; k < depth; k += 32)
        block.weights[k * kDenseWeightPitch + o] =
            channel < shape.output.c ? widen(weight[channel * shape.depth + first + k]) : T(0);
    }
    for (int k = thread; k < depth; k += kDenseThreads) block.begins[k] = begin_of(shape, tile, k);
    device::synchronize();
    const T* by = block.weights + group * kDenseChannels;
#pragma unroll 3
    for (int k = 0; k < depth; ++k) {
      const T* values = block.values + block.begins[k];
      T x[kDensePixels], factor[kDenseChannels];
#pragma unroll
      for (int p = 0; p < kDensePixels; ++p) x[p] = values[at[p]];
#pragma unroll
      for (int v = 0; v < kDenseChannels; v += kVectorLanes<T>) {
        const auto vector = load<T, kVectorLanes<T>>(by + k * kDenseWeightPitch + v);
#pragma unroll
        for (int i = 0; i < kVectorLanes<T>; ++i) factor[v + i] = vector.part[i];
      }
#pragma unroll
      for (int p = 0; p < kDensePixels; ++p)
#pragma unroll
        for (int o = 0; o < kDenseChannels; ++o) sums[p][o] = std::fma(x[p], factor[o], sums[p][o]);
    }
  }

  const int64_t channel = block.channel + group * kDenseChannels;
  T shift[kDenseChannels];
#pragma unroll
  for (int o = 0; o < kDenseChannels; ++o)
    shift[o] = bias != nullptr && channel + o < shape.output.c ? widen(bias[channel + o]) : T(0);
#pragma unroll
  for (int p = 0; p < kDensePixels; ++p) {
    const int pixel = (pixel_group * kDensePixels + p) * 32 + lane;
    const int64_t h = block.h + (pixel >> tile.width_shift),
                  w = block.w + (pixel & ((1 << tile.width_shift) - 1));
    if (h >= shape.output.h || w >= shape.output.w) continue;
    if (bias != nullptr)
#pragma unroll
      for (int o = 0; o < kDenseChannels; ++o) sums[p][o] += shift[o];
    S* to = output + block.n * shape.output.stride_n + channel * shape.output.stride_c +
            h * shape.output.stride_h + w * shape.output.stride_w;
    if (tile.stores_vectors) {
#pragma unroll
      for (int v = 0; v < kDenseChannels; v += kVectorLanes<S>) {
        T part[kVectorLanes<S>];
#pragma unroll
        for (int i = 0; i < kVectorLanes<S>; ++i) part[i] = sums[p][v + i];
        if (channel + v < shape.output.c) store(part, to + v);
      }
    } else {
#pragma unroll
      for (int o = 0; o < kDenseChannels; ++o)
        if (channel + o < shape.output.c) to[o * shape.output.stride_c] = narrow<S>(sums[p][o]);
    }
  }
}

// --- Weight gradient ---

// A block sums the pixels of one split for a square of grad_weight; its quarters take every fourth run of
// pixels each and are added at the end, the splits by a second kernel: always in the same order.
constexpr int kGradientEdge = 32;    // output channels and depth of a block
constexpr int kGradientPixels = 64;  // kept at a time
constexpr int kGradientPitch = kGradientEdge + 4;
constexpr int kGradientQuarters = 4, kGradientTile = 4;  // a thread's square

struct GradientShape {
  int64_t pixels, splits;
  bool channels_adjacent;  // of grad_output
  unsigned tiles_o, tiles_k;
};

template <class S>
__global__ void __launch_bounds__(kDenseThreads, 2)
    row_average_conv2d_weight_gradient_kernel(const S* input, const S* grad_output, Compute<S>* partial,
                                              DenseShape shape, GradientShape split_shape,
                                              Divisors<Compute<S>> divisors) {
  using T = Compute<S>;
  constexpr int kKept = kGradientPixels * kGradientPitch;
  SEPCONV_SHARED(T, shared);
  T* const gradients = shared;
  T* const patches = shared + kKept;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const unsigned tile_k = blockIdx.x % split_shape.tiles_k, rest = blockIdx.x / split_shape.tiles_k;
  const int64_t k0 = static_cast<int64_t>(tile_k) * kGradientEdge,
                o0 = static_cast<int64_t>(rest % split_shape.tiles_o) * kGradientEdge,
                split = rest / split_shape.tiles_o;
  // In whole runs of pixels, so that all splits but the last keep full ones.
  const int64_t runs = (split_shape.pixels + kGradientPixels - 1) / kGradientPixels;
  const int64_t begin = quotient(runs * split, split_shape.splits) * kGradientPixels;
  const int64_t end_of_runs = quotient(runs * (split + 1), split_shape.splits) * kGradientPixels;
  const int64_t end = end_of_runs < split_shape.pixels ? end_of_runs : split_shape.pixels;
  const Image &x = shape.input, &y = shape.output;

  // Of the patches, a lane keeps one depth.
  const bool has_depth = k0 + lane < shape.depth;
  const int64_t k = has_depth ? k0 + lane : 0, c = quotient(k, shape.taps), tap = k - c * shape.taps;
  const int64_t kh = quotient(tap, shape.kernel[1]), kw = tap - kh * shape.kernel[1];
  const bool has_channel = o0 + lane < y.c;
  const int64_t o_offset = has_channel ? (o0 + lane) * y.stride_c : 0;
  const int64_t row0 = kh * shape.dilation[0] - shape.padding[0],
                column0 = kw * shape.dilation[1] - shape.padding[1];

  const int quarter = thread / (kDenseThreads / kGradientQuarters),
            in_quarter = thread % (kDenseThreads / kGradientQuarters);
  const int o_at = in_quarter / (kGradientEdge / kGradientTile) * kGradientTile,
            k_at = in_quarter % (kGradientEdge / kGradientTile) * kGradientTile;
  T sums[kGradientTile][kGradientTile] = {};
  for (int64_t first = begin; first < end; first += kGradientPixels) {
    if (first != begin) device::synchronize();
    int64_t row_index = quotient(first + warp, y.w), w = first + warp - row_index * y.w;
    int64_t n = quotient(row_index, y.h), h = row_index - n * y.h;
#pragma unroll 4
    for (int p = warp; p < kGradientPixels; p += kDenseWarps) {
      const bool has_pixel = first + p < end;
      const int64_t image = has_pixel ? n : 0, column = w * shape.stride[1] + column0;
      SummedRows rows = window_row(shape, h * shape.stride[0] + row0);
      if (!has_depth || !has_pixel || column < 0 || column >= x.w) rows = {};
      patches[p * kGradientPitch + lane] =
          mean_of(input + image * x.stride_n + c * x.stride_c + rows.first * x.stride_h +
                      (rows.count != 0 ? column : 0) * x.stride_w,
                  x.stride_h, rows.count, Divisor<T>(divisors, rows.divisor[0]));
      if (split_shape.channels_adjacent) {
        const T gradient =
            widen(grad_output[image * y.stride_n + o_offset + h * y.stride_h + w * y.stride_w]);
        gradients[p * kGradientPitch + lane] = has_pixel && has_channel ? gradient : T(0);
      }
      for (w += kDenseWarps; w >= y.w; w -= y.w)
        if (++h == y.h) h = 0, ++n;
    }
    if (!split_shape.channels_adjacent) {
#pragma unroll
      for (int p = lane; p < kGradientPixels; p += 32) {
        const int64_t line = quotient(first + p, y.w), line_n = quotient(line, y.h);
        const S* from = grad_output + line_n * y.stride_n + (line - line_n * y.h) * y.stride_h +
                        (first + p - line * y.w) * y.stride_w;
#pragma unroll
        for (int o = warp; o < kGradientEdge; o += kDenseWarps)
          gradients[p * kGradientPitch + o] =
              first + p < end && o0 + o < y.c ? widen(from[(o0 + o) * y.stride_c]) : T(0);
      }
    }
    device::synchronize();
#pragma unroll 4
    for (int i = 0; i < kGradientPixels / kGradientQuarters; ++i) {
      const int p = i * kGradientQuarters + quarter;
      T left[kGradientTile], right[kGradientTile];
      load<T, kGradientTile>(gradients + p * kGradientPitch + o_at, left);
      load<T, kGradientTile>(patches + p * kGradientPitch + k_at, right);
#pragma unroll
      for (int a = 0; a < kGradientTile; ++a)
#pragma unroll
        for (int b = 0; b < kGradientTile; ++b) sums[a][b] = std::fma(left[a], right[b], sums[a][b]);
    }
  }

  device::synchronize();
  constexpr int kSquare = kGradientEdge * kGradientEdge;
#pragma unroll
  for (int a = 0; a < kGradientTile; ++a)
#pragma unroll
    for (int b = 0; b < kGradientTile; ++b)
      shared[quarter * kSquare + (o_at + a) * kGradientEdge + k_at + b] = sums[a][b];
  device::synchronize();
  for (int e = thread; e < kSquare; e += kDenseThreads) {
    const int64_t o = o0 + e / kGradientEdge, k = k0 + e % kGradientEdge;
    if (o >= y.c || k >= shape.depth) continue;
    T sum = shared[e];
#pragma unroll
    for (int q = 1; q < kGradientQuarters; ++q) sum += shared[q * kSquare + e];
    partial[(split * y.c + o) * shape.depth + k] = sum;
  }
}

constexpr int kMergedElements = 32;  // of a block, whose warps take a slice of the splits each

template <class S>
__global__ void __launch_bounds__(kDenseThreads, 2)
    row_average_conv2d_merge_kernel(const Compute<S>* partial, S* merged, int64_t elements, int64_t splits) {
  using T = Compute<S>;
  SEPCONV_SHARED(T, shared);
  const int slice = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kMergedElements + lane;
  T sum = T(0);
  if (element < elements) {
    const int64_t end = splits * (slice + 1) / kDenseWarps;
#pragma unroll 8
    for (int64_t split = splits * slice / kDenseWarps; split < end; ++split)
      sum += partial[split * elements + element];
  }
  shared[slice * 32 + lane] = sum;
  device::synchronize();
  if (slice != 0 || element >= elements) return;
  for (int s = 1; s < kDenseWarps; ++s) sum += shared[s * 32 + lane];
  merged[element] = narrow<S>(sum);
}

}  // namespace sepconv::cuda
