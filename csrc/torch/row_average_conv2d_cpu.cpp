#include <torch/csrc/stable/library.h>

#include <tuple>

#include "core/row_average_conv2d.h"
#include "torch/row_average_conv2d.h"

namespace sepconv::binding {
namespace {

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Ints stride,
               Ints padding, Ints dilation, int64_t row_stride) {
  const RowAverageConv2dCall call =
      row_average_conv2d_call(input, weight, bias, stride, padding, dilation, row_stride);
  if (input.size(0) != 0) row_average_conv2d(call.params, torch_threads());
  return call.output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                            const Tensor& weight, Ints stride, Ints padding, Ints dilation,
                                            int64_t row_stride, std::vector<bool> output_mask) {
  const Checks checks("row_average_conv2d_backward");
  const RowAverageConv2dCall call = row_average_conv2d_backward_call(
      checks, grad_output, input, weight, stride, padding, dilation, row_stride, output_mask);

  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = empty_image(checks, "grad_input", sizes_of(input), input);
  if (output_mask[1]) grad_weight = empty_weight(checks, "grad_weight", sizes_of(weight), input);
  if (output_mask[2]) grad_bias = empty_vector(checks, "grad_bias", call.output_sizes[1], input);

  if (input.size(0) == 0) {
    zero(grad_weight);
    zero(grad_bias);
  } else {
    RowAverageConv2dBackwardParams params;
    params.forward = call.params;
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
