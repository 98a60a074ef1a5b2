// The dense convolution of averaged rows on CUDA: see core/row_average_conv2d.h.
#pragma once
#include "core/cuda/launch.h"
#include "core/params.h"

namespace sepconv::cuda {

// Of the stages it takes prologue.row_average_stride and epilogue.shift in the tensors' dtype.
void row_average_conv2d(const RowAverageConv2dParams& params, Stream stream);

// Writes grad_weight, as contiguous as the weight, from params.input and params.output, which is grad_output.
int64_t workspace_of_row_average_conv2d_weight_gradient(const RowAverageConv2dParams& params);  // bytes
void row_average_conv2d_weight_gradient(const RowAverageConv2dParams& params, void* grad_weight,
                                        void* workspace, Stream stream);

}  // namespace sepconv::cuda
