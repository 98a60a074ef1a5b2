// What launchers share: dtypes as types, images as kernels see them, and the shapes of blocks.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/cuda/geometry.h"
#include "core/cuda/launch.h"
#include "core/params.h"

namespace sepconv::cuda {

// Calls body(T{}) with the storage type of `dtype`.
template <class Body>
void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kFloat64:
      return body(double{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat16:
      return body(Float16{});
  }
}

inline Strides strides_of(const Image& image) {
  return {image.stride_n, image.stride_c, image.stride_h, image.stride_w};
}

inline int as_int(int64_t value) {
  if (value < 0 || value > std::numeric_limits<int>::max())
    throw std::runtime_error("sepconv: CUDA kernels count to 2147483647 along one axis, got " +
                             std::to_string(value));
  return static_cast<int>(value);
}

inline int64_t divide_up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

// The batch in as many launches body(first image, images) as it takes to count each one's items up to `most`,
// which 32 bits hold.
template <class Body>
void in_batches(int64_t batch, int64_t items_of_image, int64_t most, const Body& body) {
  if (items_of_image > most)
    throw std::runtime_error("sepconv: an image is too large for CUDA: " + std::to_string(items_of_image) +
                             " parts of it are counted, at most " + std::to_string(most) + " can be");
  const int64_t step = most / items_of_image;
  for (int64_t n = 0; n < batch; n += step) body(n, std::min(step, batch - n));
}

// Sums of a few of these, as positions are, fit 32 bits.
inline int as_position(int64_t value) {
  constexpr int64_t kMost = int64_t{1} << 29;
  if (value < -kMost || value > kMost)
    throw std::runtime_error(
        "sepconv: CUDA kernels take sizes, strides, paddings and dilated kernels up to " +
        std::to_string(kMost) + ", got " + std::to_string(value));
  return static_cast<int>(value);
}

inline Geometry geometry_of(const Window& window, const Image& input, const Image& output) {
  Geometry g{as_position(input.h),
             as_position(input.w),
             as_position(output.h),
             as_position(output.w),
             {},
             {},
             {},
             {}};
  for (int axis = 0; axis < 2; ++axis) {
    g.kernel[axis] = as_position(window.kernel[axis]);
    g.stride[axis] = as_position(window.stride[axis]);
    g.padding[axis] = as_position(window.padding[axis]);
    g.dilation[axis] = as_position(window.dilation[axis]);
    as_position(window.dilation[axis] * (window.kernel[axis] - 1));
  }
  return g;
}

inline constexpr int64_t kMostColumnsOfThread = 16;

// Whether vectors of `lanes` channels can be moved at once, by offsets of 32 bits within a row and within the
// columns that a thread asks for, of which some may lie outside.
inline bool moves_vectors(const Image& image, int lanes, DType dtype) {
  const auto whole = [&](int64_t elements) { return elements % lanes == 0; };
  return (image.stride_c == 1 || image.c == 1) &&
         image.stride_w * std::max(image.w, kMostColumnsOfThread) <= std::numeric_limits<int>::max() &&
         whole(image.c) && whole(image.stride_n) && whole(image.stride_h) && whole(image.stride_w) &&
         reinterpret_cast<uintptr_t>(image.data) % (lanes * bytes_of(dtype)) == 0;
}

// Whether adjacent threads should take adjacent channels.
inline bool channels_are_adjacent(const Image& image) {
  return image.stride_c < image.stride_w || (image.w == 1 && image.stride_c == 1);
}

inline constexpr int kBlockThreads = 256;
inline constexpr size_t kSharedBytes = 48 << 10;  // what every block may have without asking
inline constexpr int64_t kMostBlocks = std::numeric_limits<int>::max();  // of a grid along x
inline constexpr int64_t kMostBlocksDown = 65535;                        // along y or z

// Threads of a block along channels: a power of two, at most `most`.
inline int threads_along(int64_t vectors, int most) {
  int threads = 1;
  while (threads < vectors && threads * 2 <= most) threads *= 2;
  return threads;
}

}  // namespace sepconv::cuda
