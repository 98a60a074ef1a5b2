// The core without torch, for what Python cannot ask of it: row_average_conv2d with and without its average.
// Compiled on demand by average.py, together with csrc/core.
#include <omp.h>

#include <cstdint>

#include "core/row_average_conv2d.h"

namespace {

void on_openmp(int64_t count, sepconv::RangeBody body) {
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads(), index = omp_get_thread_num();
    const int64_t begin = count * index / threads, end = count * (index + 1) / threads;
    if (begin < end) body(begin, end);
  }
}

// A dense tensor of this shape (n, c, h, w), in NHWC or NCHW order.
sepconv::Image image(void* data, const int64_t* shape, bool channels_last) {
  const int64_t n = shape[0], c = shape[1], h = shape[2], w = shape[3];
  if (channels_last) return {data, n, c, h, w, c * h * w, 1, c * w, c};
  return {data, n, c, h, w, c * h * w, h * w, w, 1};
}

}  // namespace

extern "C" {

// float32, without padding; `kernel` and `stride` are square. Row stride 0 leaves the rows as they are.
void dense_conv2d(int threads, int64_t row_stride, bool channels_last, const int64_t* input_shape,
                  const int64_t* output_shape, int64_t kernel, int64_t stride, void* input,
                  const void* weight, void* output) {
  omp_set_num_threads(threads);
  sepconv::RowAverageConv2dParams params;
  params.window = {{kernel, kernel}, {stride, stride}};
  params.input = image(input, input_shape, channels_last);
  params.output = image(output, output_shape, channels_last);
  params.weight = weight;
  params.prologue.row_average_stride = row_stride;
  sepconv::row_average_conv2d(params, {threads, on_openmp});
}

}  // extern "C"
