// Calls of the 3-row average whose arguments fit together: what the bindings of every device share.
#pragma once
#include "core/params.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {

struct RowAverageCall {
  RowAverageParams params;
  Tensor output;  // allocated; grad_input of the backward
};

inline RowAverageCall row_average_call(const Tensor& input, int64_t stride) {
  const Checks checks("row_average");
  checks.image(input, "input");
  RowAverageCall call;
  call.params.dtype = checks.dtype(input.scalar_type(), "input");
  checks.at_least("stride", stride, 1);
  call.params.row_stride = stride;
  const auto sizes = input.sizes();
  const Sizes output_sizes{sizes[0], sizes[1], row_average_size(sizes[2], stride), sizes[3]};
  call.output = empty_image(checks, "output", output_sizes, input);
  call.params.input = read_from(input);
  call.params.output = write_to(call.output);
  return call;
}

inline RowAverageCall row_average_backward_call(const Tensor& grad_output, int64_t height, int64_t stride) {
  const Checks checks("row_average_backward");
  checks.image(grad_output, "grad_output");
  RowAverageCall call;
  call.params.dtype = checks.dtype(grad_output.scalar_type(), "grad_output");
  checks.at_least("stride", stride, 1);
  checks.at_least("height", height, 1);
  call.params.row_stride = stride;
  const auto sizes = grad_output.sizes();
  const int64_t rows = row_average_size(height, stride);
  checks.require(sizes[2] == rows, "grad_output must have ", rows, " rows for height ", height,
                 " and stride ", stride, ", got shape ", Listed{sizes});
  const Sizes input_sizes{sizes[0], sizes[1], height, sizes[3]};
  call.output = empty_image(checks, "grad_input", input_sizes, grad_output);
  call.params.input = read_from(grad_output);
  call.params.output = write_to(call.output);
  return call;
}

}  // namespace sepconv::binding
