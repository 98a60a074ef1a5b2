// The 3-row average, forward and backward: each row of the output is a weighted sum of at most three
// consecutive rows of the input.
#pragma once
#include <cmath>

#include "core/cuda/device.cuh"
#include "core/params.h"

namespace sepconv::cuda {

// Division by 1, 2 or 3 as two multiplications, as exact as a division: 1 / count is the sum of two positive
// numbers, so that infinity times neither is NaN. The same numbers as on the CPU, and so the same bits.
template <class T>
struct Divisors {
  T high[3], low[3];  // of count - 1
};

template <class T>
inline Divisors<T> divisors_of() {
  Divisors<T> divisors;
  for (int i = 0; i < 3; ++i) {
    const T count = static_cast<T>(i + 1);
    divisors.high[i] = std::nextafter(T(1) / count, T(0));
    divisors.low[i] = std::fma(-count, divisors.high[i], T(1)) / count;
  }
  return divisors;
}

template <class T>
struct Divisor {
  T high, low;
  __device__ __forceinline__ Divisor(const Divisors<T>& of, int count)
      : high(count == 1   ? of.high[0]
             : count == 2 ? of.high[1]
                          : of.high[2]),
        low(count == 1   ? of.low[0]
            : count == 2 ? of.low[1]
                         : of.low[2]) {}
  __device__ __forceinline__ T divide(T x) const { return std::fma(x, high, x * low); }
  // sum + x / count
  __device__ __forceinline__ T divide_add(T x, T sum) const {
    return std::fma(x, high, std::fma(x, low, sum));
  }
};

// The rows first, first + 1, ... that are summed, and what each is divided by.
struct SummedRows {
  int64_t first = 0;
  int count = 0;
  int divisor[3] = {1, 1, 1};
  bool equal = true;  // the divisors, so that one division after the sum will do
};

// Rows averaged into row r.
__device__ __forceinline__ SummedRows averaged_rows(int64_t r, int64_t row_stride, int64_t height) {
  const int64_t middle = r * row_stride;
  SummedRows rows;
  rows.first = middle > 0 ? middle - 1 : 0;
  rows.count = (middle > 0) + 1 + (middle + 1 < height);
#pragma unroll
  for (int i = 0; i < 3; ++i) rows.divisor[i] = rows.count;
  return rows;
}

// Averages, of `averages`, that row h took part in.
__device__ __forceinline__ SummedRows averages_of_row(int64_t h, int64_t row_stride, int64_t height,
                                                      int64_t averages) {
  SummedRows rows;
  // Rounded up without a sum that could overflow.
  if (row_stride == 1)
    rows.first = h < 1 ? 0 : h - 1;
  else if (row_stride == 2)
    rows.first = h / 2;
  else
    rows.first = h < 2 ? 0 : (h - 2) / row_stride + 1;
  bool in = true;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const int64_t r = rows.first + i;
    in = in && r < averages && r * row_stride <= h + 1;
    if (!in) continue;
    rows.count = i + 1;
    rows.divisor[i] = averaged_rows(r, row_stride, height).count;
    rows.equal = rows.equal && rows.divisor[i] == rows.divisor[0];
  }
  return rows;
}

// Both images as planes of rows of `span` elements, which are `step` apart: NHWC images have one plane, whose
// rows hold all channels.
struct RowImage {
  int64_t stride_n = 0, stride_plane = 0, stride_row = 0, step = 0;
};
struct RowAverageShape {
  RowImage input, output;
  int64_t rows = 0, groups = 0;   // of the output, and of those as a thread takes them
  int64_t planes = 0, units = 0;  // of an image; n * planes * groups
  int64_t height = 0, averages = 0, row_stride = 1;
  int64_t span = 0;       // elements
  int threads_shift = 0;  // 2^threads_shift threads along a row, the others of a block below them
  unsigned parts = 1;     // of a row, a block's threads each
};

// Most quotients fit 32 bits, where a division takes a quarter of the time.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

constexpr int kRowAverageThreads = 256;
constexpr int kRowAverageRows = 4;  // of a thread: their loads are under way together

template <class S, int kLanes, bool kBackward>
__global__ void __launch_bounds__(kRowAverageThreads)
    row_average_kernel(const S* input, S* output, RowAverageShape shape, Divisors<Compute<S>> divisors) {
  using T = Compute<S>;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t block = blockIdx.x / shape.parts, part = blockIdx.x % shape.parts;
  const int64_t at = ((part << shape.threads_shift) + (thread & ((1 << shape.threads_shift) - 1))) * kLanes;
  const int64_t unit = block * (kRowAverageThreads >> shape.threads_shift) + (thread >> shape.threads_shift);
  if (at >= shape.span || unit >= shape.units) return;
  const int64_t image_plane = quotient(unit, shape.groups);
  const int64_t first = (unit - image_plane * shape.groups) * kRowAverageRows;
  const int64_t n = quotient(image_plane, shape.planes), plane = image_plane - n * shape.planes;
  const S* from = input + n * shape.input.stride_n + plane * shape.input.stride_plane + at * shape.input.step;
  S* to = output + n * shape.output.stride_n + plane * shape.output.stride_plane +
          first * shape.output.stride_row + at * shape.output.step;

  SummedRows rows[kRowAverageRows];
  Vector<S, kLanes> stored[kRowAverageRows][3];
#pragma unroll
  for (int i = 0; i < kRowAverageRows; ++i) {
    if (first + i < shape.rows)
      rows[i] = kBackward ? averages_of_row(first + i, shape.row_stride, shape.height, shape.averages)
                          : averaged_rows(first + i, shape.row_stride, shape.height);
    const S* row = from + rows[i].first * shape.input.stride_row;
#pragma unroll
    for (int j = 0; j < 3; ++j)
      if (j < rows[i].count)
        stored[i][j] = load<S, kLanes>(row + j * shape.input.stride_row);
      else
        stored[i][j] = {};
  }
#pragma unroll
  for (int i = 0; i < kRowAverageRows; ++i) {
    if (first + i >= shape.rows) return;
    const SummedRows& by = rows[i];
    const Divisor<T> by0(divisors, by.divisor[0]), by1(divisors, by.divisor[1]), by2(divisors, by.divisor[2]);
    T sums[kLanes], second[kLanes], third[kLanes];
    widen(stored[i][0], sums);
    widen(stored[i][1], second);
    widen(stored[i][2], third);
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
      T sum = sums[v];
      const T x1 = second[v], x2 = third[v];
      if (!kBackward || by.equal) {
        if (by.count > 1) sum += x1;
        if (by.count > 2) sum += x2;
        sum = by0.divide(sum);
      } else {
        sum = by1.divide_add(x1, by0.divide(sum));
        if (by.count > 2) sum = by2.divide_add(x2, sum);
      }
      sums[v] = sum;
    }
    store_global<S, kLanes>(sums, to + i * shape.output.stride_row);
  }
}

}  // namespace sepconv::cuda
