#include <algorithm>
#include <bit>
#include <stdexcept>

#include "core/cuda/launch.cuh"
#include "core/cuda/row_average.cuh"
#include "core/cuda/row_average.h"

namespace sepconv::cuda {
namespace {

// Which axis adjacent threads run along, and the axis of planes.
void order(const Image& image, bool joined, bool along_width, RowImage& rows) {
  rows.stride_n = image.stride_n;
  rows.stride_row = image.stride_h;
  rows.step = joined ? 1 : along_width ? image.stride_w : image.stride_c;
  rows.stride_plane = joined ? 0 : along_width ? image.stride_c : image.stride_w;
}

bool pixels_join(const Image& image) {
  return (image.stride_c == 1 || image.c == 1) && (image.stride_w == image.c || image.w == 1);
}

// Vectors begin at multiples of their size.
bool is_aligned(const Image& image, const RowImage& rows, int64_t planes, int lanes, size_t size) {
  const auto fits = [&](int64_t extent, int64_t stride) { return extent == 1 || stride % lanes == 0; };
  return rows.step == 1 && fits(image.n, rows.stride_n) && fits(planes, rows.stride_plane) &&
         fits(image.h, rows.stride_row) && reinterpret_cast<uintptr_t>(image.data) % (lanes * size) == 0;
}

// As many threads along a row as leave the fewest without an element, rather more than fewer.
int shift_of_threads(int64_t items) {
  const int most = std::bit_width(static_cast<unsigned>(kRowAverageThreads)) - 1;
  int best = 0;
  if (items <= 32) {
    while ((int64_t{1} << best) < items) ++best;
    return best;
  }
  int64_t idle = -1;
  for (int shift = most; shift >= 5; --shift) {
    const int64_t threads = int64_t{1} << shift, over = (threads - items % threads) % threads;
    if (idle >= 0 && over >= idle) continue;
    idle = over;
    best = shift;
  }
  return best;
}

template <class S, int kLanes, bool kBackward>
void launch(const RowAverageParams& p, RowAverageShape shape, cudaStream_t stream) {
  const int64_t items = shape.span / kLanes;
  shape.threads_shift = shift_of_threads(items);
  const int64_t threads = int64_t{1} << shape.threads_shift, lines = kRowAverageThreads / threads;
  const int64_t parts = divide_up(items, threads);
  const int64_t blocks = divide_up(shape.units, lines);
  if (parts > kMostBlocks / blocks)
    throw std::runtime_error("sepconv: the image is too large for row_average on CUDA");
  shape.parts = static_cast<unsigned>(parts);
  SEPCONV_LAUNCH((row_average_kernel<S, kLanes, kBackward>), static_cast<unsigned>(blocks * parts),
                 kRowAverageThreads, 0, stream, static_cast<const S*>(p.input.data),
                 static_cast<S*>(p.output.data), shape, divisors_of<Compute<S>>());
  check_launch(kBackward ? "row_average_backward" : "row_average");
}

template <bool kBackward>
void run(const RowAverageParams& p, Stream stream) {
  const Image &x = p.input, &y = p.output;
  RowAverageShape shape;
  const bool joined = pixels_join(x) && pixels_join(y);
  const bool along_width = y.stride_w == 1 || (y.stride_c != 1 && y.stride_w < y.stride_c);
  order(x, joined, along_width, shape.input);
  order(y, joined, along_width, shape.output);
  shape.planes = joined ? 1 : along_width ? x.c : x.w;
  shape.span = joined ? x.w * x.c : along_width ? x.w : x.c;
  shape.rows = y.h;
  shape.groups = divide_up(y.h, kRowAverageRows);
  shape.units = y.n * shape.planes * shape.groups;
  shape.height = kBackward ? y.h : x.h;
  shape.averages = kBackward ? x.h : y.h;
  shape.row_stride = p.row_stride;
  with_type(p.dtype, [&](auto type) {
    using S = decltype(type);
    constexpr int kLanes = kVectorLanes<S>;
    const auto whole = [&](const Image& image, const RowImage& rows) {
      return is_aligned(image, rows, shape.planes, kLanes, sizeof(S));
    };
    if (shape.span % kLanes == 0 && whole(x, shape.input) && whole(y, shape.output))
      launch<S, kLanes, kBackward>(p, shape, static_cast<cudaStream_t>(stream));
    else
      launch<S, 1, kBackward>(p, shape, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace

void row_average(const RowAverageParams& params, Stream stream) {
  run<false>(params, stream);
}
void row_average_backward(const RowAverageParams& params, Stream stream) {
  run<true>(params, stream);
}

}  // namespace sepconv::cuda
