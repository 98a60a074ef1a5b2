// The separable convolution: one call is one pass over the input; the depthwise output only ever exists a
// tile at a time.
#pragma once
#include <string>

#include "core/parallel.h"
#include "core/params.h"

namespace sepconv {

void separable_conv2d(const SeparableConv2dParams& params, const Parallel& parallel);
void separable_conv2d_backward(const SeparableConv2dBackwardParams& params, const Parallel& parallel);

// Weights that outlive a call: packed once, read by every call that gets them as `packed_weights`, until the
// instruction set changes. Only dtype, window, channels and the two weights are read; `packed` is aligned to
// 64 bytes.
int64_t packed_bytes_of_separable_conv2d(const SeparableConv2dParams& params);
void pack_separable_conv2d(const SeparableConv2dParams& params, void* packed);

// What would run for this shape, in words; only shapes, strides, dtype and stages are read.
std::string describe_separable_conv2d(const SeparableConv2dParams& params, int threads);

}  // namespace sepconv
