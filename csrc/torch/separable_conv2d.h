// The arguments of separable_conv2d and its backward, checked, for the bindings of every device.
#pragma once
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

// Gradients that the mask asks for; the others stay undefined.
struct SeparableConv2dGradients {
  Tensor input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias;

  // Of an empty batch.
  void zero_sums() const {
    for (const Tensor& sum : {depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias}) zero(sum);
  }
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> all() const {
    return {input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias};
  }
};

inline SeparableConv2dGradients empty_gradients(const Checks& checks, const std::vector<bool>& mask,
                                                const Tensor& input, const Tensor& depthwise_weight,
                                                const Tensor& pointwise_weight) {
  SeparableConv2dGradients grads;
  if (mask[0]) grads.input = empty_image(checks, "grad_input", sizes_of(input), input);
  if (mask[1])
    grads.depthwise_weight = empty_weight(checks, "grad_depthwise_weight", sizes_of(depthwise_weight), input);
  if (mask[2])
    grads.pointwise_weight = empty_weight(checks, "grad_pointwise_weight", sizes_of(pointwise_weight), input);
  if (mask[3])
    grads.depthwise_bias = empty_vector(checks, "grad_depthwise_bias", depthwise_weight.size(0), input);
  if (mask[4])
    grads.pointwise_bias = empty_vector(checks, "grad_pointwise_bias", pointwise_weight.size(0), input);
  return grads;
}

}  // namespace sepconv::binding
