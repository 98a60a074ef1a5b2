#include <torch/csrc/stable/library.h>

#include "core/row_average.h"
#include "torch/row_average.h"

namespace sepconv::binding {
namespace {

Tensor forward(const Tensor& input, int64_t stride) {
  const RowAverageCall call = row_average_call(input, stride);
  if (call.params.output.n != 0) row_average(call.params, torch_threads());
  return call.output;
}

Tensor backward(const Tensor& grad_output, int64_t height, int64_t stride) {
  const RowAverageCall call = row_average_backward_call(grad_output, height, stride);
  if (call.params.output.n != 0) row_average_backward(call.params, torch_threads());
  return call.output;
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, CPU, m) {
  m.impl("row_average", TORCH_BOX(&sepconv::binding::forward));
  m.impl("row_average_backward", TORCH_BOX(&sepconv::binding::backward));
}
