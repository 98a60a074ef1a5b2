// The 3-row average: each output row is the mean of the row above, the row itself and the row below that
// exist.
#pragma once
#include "core/parallel.h"
#include "core/params.h"

namespace sepconv {

void row_average(const RowAverageParams& params, const Parallel& parallel);
void row_average_backward(const RowAverageParams& params, const Parallel& parallel);

}  // namespace sepconv
