#include <torch/csrc/stable/library.h>

#include <tuple>

#include "core/row_average_conv2d.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

// A call whose arguments fit together. The weight is owned here while `params` points into it.
struct Call {
  RowAverageConv2dParams params;
  Tensor weight;
  Sizes output;
};

Call checked(const Checks& checks, const Tensor& input, const Tensor& weight, const Ints& stride,
             const Ints& padding, const Ints& dilation, int64_t row_stride) {
  checks.image(input, "input");
  const DType dtype = checks.dtype(input.scalar_type(), "input");
  checks.like_input(weight, "weight", input);
  checks.dimensions(weight, "weight", 4, "(C_out, C_in, kh, kw)");
  checks.require(weight.size(0) > 0 && weight.size(1) == input.size(1),
                 "weight must have shape (C_out, C_in, kh, kw) with C_in = ", input.size(1), ", got ",
                 Listed{weight.sizes()});
  checks.at_least("row_stride", row_stride, 1);

  Call call;
  call.weight = dense(weight);
  call.params.dtype = dtype;
  call.params.window = checks.window({weight.size(2), weight.size(3)}, stride, padding, dilation);
  call.params.input = read_from(input);
  call.params.weight = call.weight.const_data_ptr();
  call.params.prologue.row_average_stride = row_stride;

  const int64_t rows = row_average_size(input.size(2), row_stride);
  const auto [height, width] = checks.output_size(rows, input.size(3), call.params.window);
  call.output = {input.size(0), weight.size(0), height, width};
  return call;
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Ints stride,
               Ints padding, Ints dilation, int64_t row_stride) {
  const Checks checks("row_average_conv2d");
  Call call = checked(checks, input, weight, stride, padding, dilation, row_stride);
  checks.like_input(bias, "bias", input);
  checks.vector(bias, "bias", call.output[1]);

  const auto shift = dense(bias);
  const Tensor output = empty_image(checks, "output", call.output, input);
  if (input.size(0) == 0) return output;
  call.params.epilogue.shift = data_or_null(shift);
  call.params.output = write_to(output);
  row_average_conv2d(call.params, torch_threads());
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                            const Tensor& weight, Ints stride, Ints padding, Ints dilation,
                                            int64_t row_stride, std::vector<bool> output_mask) {
  const Checks checks("row_average_conv2d_backward");
  checks.length("output_mask", output_mask, 3);
  Call call = checked(checks, input, weight, stride, padding, dilation, row_stride);
  checks.like_input(grad_output, "grad_output", input);
  checks.shape(grad_output, "grad_output", call.output);

  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = empty_image(checks, "grad_input", sizes_of(input), input);
  if (output_mask[1]) grad_weight = empty_weight(checks, "grad_weight", sizes_of(weight), input);
  if (output_mask[2]) grad_bias = empty_vector(checks, "grad_bias", call.output[1], input);

  if (input.size(0) == 0) {
    zero(grad_weight);
    zero(grad_bias);
  } else {
    RowAverageConv2dBackwardParams params;
    params.forward = call.params;
    params.forward.output = read_from(grad_output);
    params.grad_input = write_if_wanted(grad_input);
    params.grad_weight = data_if_wanted(grad_weight);
    params.grad_bias = data_if_wanted(grad_bias);
    row_average_conv2d_backward(params, torch_threads());
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, CPU, m) {
  m.impl("row_average_conv2d", TORCH_BOX(&sepconv::binding::forward));
  m.impl("row_average_conv2d_backward", TORCH_BOX(&sepconv::binding::backward));
}
