// What the kernels of a convolution read of its shape, in 32 bits; strides count elements.
#pragma once
#include <cstdint>

namespace sepconv::cuda {

struct Strides {
  int64_t n, c, h, w;
};

// One axis pair of a convolution, as it is read: forward, or backward at stride 1 with the kernel flipped.
struct Geometry {
  int height, width;          // of what is read
  int out_height, out_width;  // of what is computed
  int kernel[2], stride[2], padding[2], dilation[2];
};

}  // namespace sepconv::cuda
