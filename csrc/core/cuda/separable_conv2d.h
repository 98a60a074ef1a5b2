// The fused forward of the separable convolution.
#pragma once
#include "core/cuda/launch.h"
#include "core/params.h"

namespace sepconv::cuda {

// Whether the fused kernel can serve this call: float16 or bfloat16, NHWC in whole vectors, no multiplier, a
// panel that fits into shared memory. Reads shapes, strides and addresses.
bool can_fuse_separable_conv2d(const SeparableConv2dParams& params, const Device& device);

// Whether it should: whether it is expected to be faster than one kernel for each stage. The environment
// variable SEPCONV_CUDA_PATH decides for it: "fused" where possible, or "stages".
bool fuses_separable_conv2d(const SeparableConv2dParams& params, const Device& device);

void separable_conv2d(const SeparableConv2dParams& params, const Device& device, Stream stream);

}  // namespace sepconv::cuda
