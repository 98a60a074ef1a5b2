// Arithmetic on sizes that a caller made up: it never overflows, it says that it would.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/params.h"

namespace sepconv {

// Of kernel size, stride, padding and dilation: far above any real one, and low enough that sums with any
// tensor size stay below 2^63.
inline constexpr int64_t kLargestWindowValue = std::numeric_limits<int32_t>::max();

// (height, width) of a convolution's output; false where the dilated kernel is larger than the padded input.
inline bool output_size(const int64_t (&input)[2], const Window& window, int64_t (&output)[2]) {
  bool fits = true;
  for (int axis = 0; axis < 2; ++axis) {
    int64_t padded = 0, reach = 0;  // expanded tensors can claim sizes near 2^63
    fits &= !__builtin_add_overflow(input[axis], 2 * window.padding[axis], &padded);
    fits &= !__builtin_mul_overflow(window.dilation[axis], window.kernel[axis] - 1, &reach);
    fits = fits && reach < padded;
    if (fits) output[axis] = output_size(input[axis], window, axis);
  }
  return fits;
}

// Bytes of a dense tensor of these sizes, of which empty ones count as 1; false from 2^63 on.
template <class Sizes>
bool count_bytes(const Sizes& sizes, DType dtype, int64_t& bytes) {
  bytes = static_cast<int64_t>(bytes_of(dtype));
  bool fits = true;
  for (const int64_t size : sizes)
    fits = !__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes) && fits;
  return fits;
}

}  // namespace sepconv
