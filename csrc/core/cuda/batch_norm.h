// Batch norm on CUDA: see core/batch_norm.h. Images are NHWC, channels adjacent, with any other strides.
#pragma once
#include "core/batch_norm.h"
#include "core/cuda/launch.h"

namespace sepconv::cuda {

// Of batch_norm_statistics, and of batch_norm_backward.
int64_t workspace_of_batch_norm(const Image& input, DType dtype);  // bytes

// Adds one to `batches`, on the device, unless it is null.
void batch_norm_statistics(const BatchNormStatisticsParams& params, int64_t* batches, void* workspace,
                           Stream stream);
// Without a residual; a null scale is 1, a null shift is 0.
void batch_norm(const BatchNormParams& params, Stream stream);
// Adds its sums up itself: gradient_sums must be null.
void batch_norm_backward(const BatchNormBackwardParams& params, void* workspace, Stream stream);
// grad_input = grad_output where the gradient passes the activation of scale * input + shift, as above.
void activation_backward(const BatchNormBackwardParams& params, Stream stream);

}  // namespace sepconv::cuda
