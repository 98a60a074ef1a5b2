#include <torch/csrc/stable/library.h>

#include "core/row_average.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

Tensor forward(const Tensor& input, int64_t stride) {
  const Checks checks("row_average");
  checks.image(input, "input");
  RowAverageParams params;
  params.dtype = checks.dtype(input.scalar_type(), "input");
  checks.at_least("stride", stride, 1);
  params.row_stride = stride;
  const auto sizes = input.sizes();
  const Sizes output_sizes{sizes[0], sizes[1], row_average_size(sizes[2], stride), sizes[3]};

  const Tensor output = empty_image(checks, "output", output_sizes, input);
  if (sizes[0] == 0) return output;
  params.input = read_from(input);
  params.output = write_to(output);
  row_average(params, torch_threads());
  return output;
}

Tensor backward(const Tensor& grad_output, int64_t height, int64_t stride) {
  const Checks checks("row_average_backward");
  checks.image(grad_output, "grad_output");
  RowAverageParams params;
  params.dtype = checks.dtype(grad_output.scalar_type(), "grad_output");
  checks.at_least("stride", stride, 1);
  checks.at_least("height", height, 1);
  params.row_stride = stride;
  const auto sizes = grad_output.sizes();
  const int64_t rows = row_average_size(height, stride);
  checks.require(sizes[2] == rows, "grad_output must have ", rows, " rows for height ", height,
                 " and stride ", stride, ", got shape ", Listed{sizes});
  const Sizes input_sizes{sizes[0], sizes[1], height, sizes[3]};

  const Tensor grad_input = empty_image(checks, "grad_input", input_sizes, grad_output);
  if (sizes[0] == 0) return grad_input;
  params.input = read_from(grad_output);
  params.output = write_to(grad_input);
  row_average_backward(params, torch_threads());
  return grad_input;
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, CPU, m) {
  m.impl("row_average", TORCH_BOX(&sepconv::binding::forward));
  m.impl("row_average_backward", TORCH_BOX(&sepconv::binding::backward));
}
