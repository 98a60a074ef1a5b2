#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "core/separable_conv2d.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

// A call whose arguments fit together. The weights are owned here while `params` points into them.
struct Call {
  SeparableConv2dParams params;
  Tensor depthwise_weight, pointwise_weight;
  std::optional<Tensor> depthwise_bias;
  Sizes output;
};

Call checked(const Checks& checks, const Tensor& input, const Tensor& depthwise_weight,
             const Tensor& pointwise_weight, const std::optional<Tensor>& depthwise_bias, const Ints& stride,
             const Ints& padding, const Ints& dilation) {
  checks.image(input, "input");
  const DType dtype = checks.dtype(input.scalar_type(), "input");
  checks.like_input(depthwise_weight, "depthwise_weight", input);
  checks.like_input(pointwise_weight, "pointwise_weight", input);
  checks.like_input(depthwise_bias, "depthwise_bias", input);

  checks.dimensions(depthwise_weight, "depthwise_weight", 4, "(C_in * multiplier, 1, kh, kw)");
  const int64_t channels = input.size(1), middle = depthwise_weight.size(0);
  checks.require(middle > 0 && middle % channels == 0 && depthwise_weight.size(1) == 1,
                 "depthwise_weight must have shape (C_in * multiplier, 1, kh, kw) with C_in = ", channels,
                 ", got ", Listed{depthwise_weight.sizes()});
  checks.vector(depthwise_bias, "depthwise_bias", middle);
  checks.dimensions(pointwise_weight, "pointwise_weight", 4, "(C_out, C_in * multiplier, 1, 1)");
  const int64_t out_channels = pointwise_weight.size(0);
  checks.require(out_channels > 0, "pointwise_weight must have at least one output channel, got shape ",
                 Listed{pointwise_weight.sizes()});
  checks.shape(pointwise_weight, "pointwise_weight", {out_channels, middle, 1, 1});

  Call call;
  call.depthwise_weight = dense(depthwise_weight);
  call.pointwise_weight = dense(pointwise_weight);
  call.depthwise_bias = dense(depthwise_bias);
  SeparableConv2dParams& params = call.params;
  params.dtype = dtype;
  params.window =
      checks.window({depthwise_weight.size(2), depthwise_weight.size(3)}, stride, padding, dilation);
  params.depth_multiplier = middle / channels;
  params.input = read_from(input);
  params.depthwise_weight = call.depthwise_weight.const_data_ptr();
  params.pointwise_weight = call.pointwise_weight.const_data_ptr();
  params.middle.shift = data_or_null(call.depthwise_bias);

  const auto [height, width] = checks.output_size(input.size(2), input.size(3), params.window);
  call.output = {input.size(0), out_channels, height, width};
  return call;
}

Tensor forward(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
               const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& pointwise_bias,
               Ints stride, Ints padding, Ints dilation) {
  const Checks checks("separable_conv2d");
  Call call =
      checked(checks, input, depthwise_weight, pointwise_weight, depthwise_bias, stride, padding, dilation);
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
  checks.length("output_mask", output_mask, 5);
  Call call =
      checked(checks, input, depthwise_weight, pointwise_weight, depthwise_bias, stride, padding, dilation);
  checks.like_input(grad_output, "grad_output", input);
  checks.shape(grad_output, "grad_output", call.output);

  const int64_t middle = depthwise_weight.size(0), out_channels = call.output[1];
  Tensor grad_input, grad_depthwise_weight, grad_pointwise_weight, grad_depthwise_bias, grad_pointwise_bias;
  if (output_mask[0]) grad_input = empty_image(checks, "grad_input", sizes_of(input), input);
  if (output_mask[1])
    grad_depthwise_weight = empty_weight(checks, "grad_depthwise_weight", sizes_of(depthwise_weight), input);
  if (output_mask[2])
    grad_pointwise_weight = empty_weight(checks, "grad_pointwise_weight", sizes_of(pointwise_weight), input);
  if (output_mask[3]) grad_depthwise_bias = empty_vector(checks, "grad_depthwise_bias", middle, input);
  if (output_mask[4]) grad_pointwise_bias = empty_vector(checks, "grad_pointwise_bias", out_channels, input);

  if (input.size(0) == 0) {
    for (const Tensor& sum :
         {grad_depthwise_weight, grad_pointwise_weight, grad_depthwise_bias, grad_pointwise_bias})
      zero(sum);
  } else {
    SeparableConv2dBackwardParams params;
    params.forward = call.params;
    params.forward.output = read_from(grad_output);
    params.grad_input = write_if_wanted(grad_input);
    params.grad_depthwise_weight = data_if_wanted(grad_depthwise_weight);
    params.grad_pointwise_weight = data_if_wanted(grad_pointwise_weight);
    params.grad_depthwise_bias = data_if_wanted(grad_depthwise_bias);
    params.grad_pointwise_bias = data_if_wanted(grad_pointwise_bias);
    separable_conv2d_backward(params, torch_threads());
  }
  return {grad_input, grad_depthwise_weight, grad_pointwise_weight, grad_depthwise_bias, grad_pointwise_bias};
}

// Shape and strides without data: all that the planner reads.
Image dense_image(const Sizes& sizes, bool channels_last) {
  const auto [n, c, h, w] = sizes;
  const auto [stride_n, stride_c, stride_h, stride_w] = dense_strides(sizes, channels_last);
  return {nullptr, n, c, h, w, stride_n, stride_c, stride_h, stride_w};
}

std::string describe(int64_t batch, int64_t in_channels, int64_t height, int64_t width, int64_t out_channels,
                     Ints kernel_size, Ints stride, Ints padding, Ints dilation, int64_t depth_multiplier,
                     torch::headeronly::ScalarType dtype, bool channels_last) {
  const Checks checks("describe_separable_conv2d");
  checks.at_least("batch", batch, 1);
  checks.at_least("in_channels", in_channels, 1);
  checks.at_least("height", height, 1);
  checks.at_least("width", width, 1);
  checks.at_least("out_channels", out_channels, 1);
  checks.at_least("depth_multiplier", depth_multiplier, 1);
  checks.length("kernel_size", kernel_size, 2);

  SeparableConv2dParams params;
  params.dtype = checks.dtype(dtype, "dtype");
  params.window = checks.window({kernel_size[0], kernel_size[1]}, stride, padding, dilation);
  params.depth_multiplier = depth_multiplier;
  const Sizes input{batch, in_channels, height, width};
  checks.countable("input", input, params.dtype);
  const auto [out_height, out_width] = checks.output_size(height, width, params.window);
  const Sizes output{batch, out_channels, out_height, out_width};
  checks.countable("output", output, params.dtype);
  params.input = dense_image(input, channels_last);
  params.output = dense_image(output, channels_last);
  return describe_separable_conv2d(params, torch_threads().threads);
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
