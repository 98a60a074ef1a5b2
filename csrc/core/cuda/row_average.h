// The 3-row average on CUDA: see core/row_average.h.
#pragma once
#include "core/cuda/launch.h"
#include "core/params.h"

namespace sepconv::cuda {

void row_average(const RowAverageParams& params, Stream stream);
void row_average_backward(const RowAverageParams& params, Stream stream);

}  // namespace sepconv::cuda
