// A dense convolution of row-averaged input: the average is the prologue of the row loader, never a tensor.
#pragma once
#include "core/parallel.h"
#include "core/params.h"

namespace sepconv {

void row_average_conv2d(const RowAverageConv2dParams& params, const Parallel& parallel);
void row_average_conv2d_backward(const RowAverageConv2dBackwardParams& params, const Parallel& parallel);

}  // namespace sepconv
