// Calls of the convolution of averaged rows whose arguments fit together: what the bindings of every device
// share.
#pragma once
#include <vector>

#include "core/params.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {

// The tensors that `params` points into are owned here.
struct RowAverageConv2dCall {
  RowAverageConv2dParams params;
  Tensor weight;
  std::optional<Tensor> bias;
  Sizes output_sizes;
  Tensor output;  // of the forward, allocated
};

inline RowAverageConv2dCall checked_row_average_conv2d(const Checks& checks, const Tensor& input,
                                                       const Tensor& weight, const Ints& stride,
                                                       const Ints& padding, const Ints& dilation,
                                                       int64_t row_stride) {
  checks.image(input, "input");
  const DType dtype = checks.dtype(input.scalar_type(), "input");
  checks.like_input(weight, "weight", input);
  checks.dimensions(weight, "weight", 4, "(C_out, C_in, kh, kw)");
  checks.require(weight.size(0) > 0 && weight.size(1) == input.size(1),
                 "weight must have shape (C_out, C_in, kh, kw) with C_in = ", input.size(1), ", got ",
                 Listed{weight.sizes()});
  checks.at_least("row_stride", row_stride, 1);

  RowAverageConv2dCall call;
  call.weight = dense(weight);
  call.params.dtype = dtype;
  call.params.window = checks.window({weight.size(2), weight.size(3)}, stride, padding, dilation);
  call.params.input = read_from(input);
  call.params.weight = call.weight.const_data_ptr();
  call.params.prologue.row_average_stride = row_stride;

  const int64_t rows = row_average_size(input.size(2), row_stride);
  const auto [height, width] = checks.output_size(rows, input.size(3), call.params.window);
  call.output_sizes = {input.size(0), weight.size(0), height, width};
  return call;
}

inline RowAverageConv2dCall row_average_conv2d_call(const Tensor& input, const Tensor& weight,
                                                    const std::optional<Tensor>& bias, const Ints& stride,
                                                    const Ints& padding, const Ints& dilation,
                                                    int64_t row_stride) {
  const Checks checks("row_average_conv2d");
  RowAverageConv2dCall call =
      checked_row_average_conv2d(checks, input, weight, stride, padding, dilation, row_stride);
  checks.like_input(bias, "bias", input);
  checks.vector(bias, "bias", call.output_sizes[1]);

  call.bias = dense(bias);
  call.output = empty_image(checks, "output", call.output_sizes, input);
  call.params.epilogue.shift = data_or_null(call.bias);
  call.params.output = write_to(call.output);
  return call;
}

// params.output is grad_output.
inline RowAverageConv2dCall row_average_conv2d_backward_call(const Checks& checks, const Tensor& grad_output,
                                                             const Tensor& input, const Tensor& weight,
                                                             const Ints& stride, const Ints& padding,
                                                             const Ints& dilation, int64_t row_stride,
                                                             const std::vector<bool>& output_mask) {
  checks.length("output_mask", output_mask, 3);
  RowAverageConv2dCall call =
      checked_row_average_conv2d(checks, input, weight, stride, padding, dilation, row_stride);
  checks.like_input(grad_output, "grad_output", input);
  checks.shape(grad_output, "grad_output", call.output_sizes);
  call.params.output = read_from(grad_output);
  return call;
}

}  // namespace sepconv::binding
