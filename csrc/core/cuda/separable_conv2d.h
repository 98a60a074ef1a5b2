// The fused forward of the separable convolution.
#pragma once
#include "core/cuda/launch.h"
#include "core/params.h"

namespace sepconv::cuda {

// Whether the fused kernel serves this call: it can (float16 or bfloat16, NHWC in whole vectors, no
// multiplier, a panel that fits into shared memory) and is expected to be faster than one kernel for each
// stage, for which the environment variable SEPCONV_CUDA_PATH decides: "fused" where possible, or "stages".
// Reads shapes, strides and addresses.
bool fuses_separable_conv2d(const SeparableConv2dParams& params, const Device& device);

void separable_conv2d(const SeparableConv2dParams& params, const Device& device, Stream stream);

}  // namespace sepconv::cuda
