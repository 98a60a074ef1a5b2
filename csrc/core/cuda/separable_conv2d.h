// The fused forward of the separable convolution.
#pragma once
#include <string>

#include "core/cuda/launch.h"
#include "core/params.h"

namespace sepconv::cuda {

// Whether the fused kernel serves this call: it can (float16 or bfloat16, NHWC in whole vectors, no
// multiplier, a panel that fits into shared memory), and the environment variable SEPCONV_CUDA_PATH is
// "fused". It saves the memory of the depthwise result, but no layer that was measured on an H100 is faster
// by it than by a kernel for each stage (docs/gpu.md). Reads shapes, strides and addresses.
bool fuses_separable_conv2d(const SeparableConv2dParams& params);

void separable_conv2d(const SeparableConv2dParams& params, Stream stream);

// Whether the forward would be fused on such a device, and how, in words; reads shapes and strides.
std::string describe_separable_conv2d(const SeparableConv2dParams& params, const Device& device);

}  // namespace sepconv::cuda
