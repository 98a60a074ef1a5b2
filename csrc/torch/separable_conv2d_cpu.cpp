#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "core/separable_conv2d.h"
#include "torch/checks.h"
#include "torch/separable_conv2d.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

Tensor forward(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
               const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& pointwise_bias,
               Ints stride, Ints padding, Ints dilation) {
  const Checks checks("separable_conv2d");
  SeparableConv2dCall call = checked_separable_conv2d(checks, input, depthwise_weight, pointwise_weight,
                                                      depthwise_bias, stride, padding, dilation);
  checks.like_input(pointwise_bias, "pointwise_bias", input);
  checks.vector(pointwise_bias, "pointwise_bias", call.output[1]);

  const auto shift = dense(pointwise_bias);
  const Tensor output = empty_image(checks, "output", call.output, input);
  if (input.size(0) == 0) return output;
  call.params.epilogue.shift = data_or_null(shift);
  call.params.output = write_to(output);
  separable_conv2d(call.params, torch_threads());
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                                            const Tensor& depthwise_weight,
                                                            const Tensor& pointwise_weight,
                                                            const std::optional<Tensor>& depthwise_bias,
                                                            Ints stride, Ints padding, Ints dilation,
                                                            std::vector<bool> output_mask) {
  const Checks checks("separable_conv2d_backward");
  const SeparableConv2dBackwardCall call =
      checked_separable_conv2d_backward(checks, grad_output, input, depthwise_weight, pointwise_weight,
                                        depthwise_bias, stride, padding, dilation, output_mask);
  if (input.size(0) == 0) return call.grads.all();

  SeparableConv2dBackwardParams params;
  params.forward = call.params;
  params.forward.output = read_from(grad_output);
  params.grad_input = write_if_wanted(call.grads.input);
  params.grad_depthwise_weight = data_if_wanted(call.grads.depthwise_weight);
  params.grad_pointwise_weight = data_if_wanted(call.grads.pointwise_weight);
  params.grad_depthwise_bias = data_if_wanted(call.grads.depthwise_bias);
  params.grad_pointwise_bias = data_if_wanted(call.grads.pointwise_bias);
  separable_conv2d_backward(params, torch_threads());
  return call.grads.all();
}

std::string describe(int64_t batch, int64_t in_channels, int64_t height, int64_t width, int64_t out_channels,
                     Ints kernel_size, Ints stride, Ints padding, Ints dilation, int64_t depth_multiplier,
                     torch::headeronly::ScalarType dtype, bool channels_last) {
  const Checks checks("describe_separable_conv2d");
  return describe_separable_conv2d(
      described_separable_conv2d(checks, {batch, in_channels, height, width}, out_channels, kernel_size,
                                 stride, padding, dilation, depth_multiplier, dtype, channels_last),
      torch_threads().threads);
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, CPU, m) {
  m.impl("separable_conv2d", TORCH_BOX(&sepconv::binding::forward));
  m.impl("separable_conv2d_backward", TORCH_BOX(&sepconv::binding::backward));
}

STABLE_TORCH_LIBRARY_IMPL(sepconv, CompositeExplicitAutograd, m) {
  m.impl("describe_separable_conv2d", TORCH_BOX(&sepconv::binding::describe));
}
