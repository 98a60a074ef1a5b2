// The arguments of separable_conv2d and its backward, checked, for the bindings of every device.
#pragma once
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "core/params.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {

// A call whose arguments fit together. The weights are owned here while `params` points into them.
struct SeparableConv2dCall {
  SeparableConv2dParams params;
  Tensor depthwise_weight, pointwise_weight;
  std::optional<Tensor> depthwise_bias;
  Sizes output;
};

inline SeparableConv2dCall checked_separable_conv2d(const Checks& checks, const Tensor& input,
                                                    const Tensor& depthwise_weight,
                                                    const Tensor& pointwise_weight,
                                                    const std::optional<Tensor>& depthwise_bias,
                                                    const Ints& stride, const Ints& padding,
                                                    const Ints& dilation) {
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

  SeparableConv2dCall call;
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

// A call that is only described: shapes and strides without data, which is all that planners read.
inline SeparableConv2dParams described_separable_conv2d(const Checks& checks, const Sizes& input,
                                                        int64_t out_channels, const Ints& kernel_size,
                                                        const Ints& stride, const Ints& padding,
                                                        const Ints& dilation, int64_t depth_multiplier,
                                                        torch::headeronly::ScalarType dtype,
                                                        bool channels_last) {
  const auto [batch, in_channels, height, width] = input;
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
  checks.countable("input", input, params.dtype);
  const auto [out_height, out_width] = checks.output_size(height, width, params.window);
  const Sizes output{batch, out_channels, out_height, out_width};
  checks.countable("output", output, params.dtype);
  checks.require(depth_multiplier <= std::numeric_limits<int64_t>::max() / in_channels,
                 "in_channels * depth_multiplier must fit 64 bits, got ", in_channels, " * ",
                 depth_multiplier);
  checks.countable("the depthwise result", {batch, in_channels * depth_multiplier, out_height, out_width},
                   params.dtype);
  const auto image = [&](const Sizes& sizes) -> Image {
    const auto [n, c, h, w] = sizes;
    const auto [stride_n, stride_c, stride_h, stride_w] = dense_strides(sizes, channels_last);
    return {nullptr, n, c, h, w, stride_n, stride_c, stride_h, stride_w};
  };
  params.input = image(input);
  params.output = image(output);
  return params;
}

// Gradients that the mask asks for; the others stay undefined.
struct SeparableConv2dGradients {
  Tensor input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias;

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> all() const {
    return {input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias};
  }
};

// The backward's arguments, checked, and its results: allocated, and done where the batch is empty.
struct SeparableConv2dBackwardCall : SeparableConv2dCall {
  SeparableConv2dGradients grads;
};

inline SeparableConv2dBackwardCall checked_separable_conv2d_backward(
    const Checks& checks, const Tensor& grad_output, const Tensor& input, const Tensor& depthwise_weight,
    const Tensor& pointwise_weight, const std::optional<Tensor>& depthwise_bias, const Ints& stride,
    const Ints& padding, const Ints& dilation, const std::vector<bool>& output_mask) {
  checks.length("output_mask", output_mask, 5);
  SeparableConv2dBackwardCall call{checked_separable_conv2d(checks, input, depthwise_weight, pointwise_weight,
                                                            depthwise_bias, stride, padding, dilation),
                                   {}};
  checks.like_input(grad_output, "grad_output", input);
  checks.shape(grad_output, "grad_output", call.output);

  SeparableConv2dGradients& grads = call.grads;
  const int64_t middle = depthwise_weight.size(0), out_channels = pointwise_weight.size(0);
  if (output_mask[0]) grads.input = empty_image(checks, "grad_input", sizes_of(input), input);
  if (output_mask[1])
    grads.depthwise_weight = empty_weight(checks, "grad_depthwise_weight", sizes_of(depthwise_weight), input);
  if (output_mask[2])
    grads.pointwise_weight = empty_weight(checks, "grad_pointwise_weight", sizes_of(pointwise_weight), input);
  if (output_mask[3]) grads.depthwise_bias = empty_vector(checks, "grad_depthwise_bias", middle, input);
  if (output_mask[4]) grads.pointwise_bias = empty_vector(checks, "grad_pointwise_bias", out_channels, input);
  if (input.size(0) == 0)
    for (const Tensor& sum :
         {grads.depthwise_weight, grads.pointwise_weight, grads.depthwise_bias, grads.pointwise_bias})
      zero(sum);
  return call;
}

}  // namespace sepconv::binding
