// The separable convolution on CUDA: the depthwise stages are this library's kernels, and so is the whole
// forward where the planner fuses it; other pointwise stages are the library's matrix products. The depthwise
// result is never kept for the backward, which computes it again.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "core/cuda/depthwise.h"
#include "core/cuda/separable_conv2d.h"
#include "torch/checks.h"
#include "torch/cuda.h"
#include "torch/library.h"
#include "torch/pointwise_cuda.h"
#include "torch/separable_conv2d.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

cuda::DepthwiseParams depthwise_params(const SeparableConv2dCall& call) {
  const SeparableConv2dParams& params = call.params;
  cuda::DepthwiseParams depthwise;
  depthwise.dtype = params.dtype;
  depthwise.window = params.window;
  depthwise.multiplier = params.depth_multiplier;
  depthwise.weight = params.depthwise_weight;
  depthwise.bias = params.middle.shift;
  depthwise.input = params.input;
  return depthwise;
}

Sizes sizes_of_middle(const SeparableConv2dCall& call) {
  const auto [n, c, h, w] = call.output;
  return {n, call.depthwise_weight.size(0), h, w};
}

// The depthwise result, for as long as one call lasts.
Tensor middle_of(const Checks& checks, const SeparableConv2dCall& call, const Tensor& input,
                 bool channels_last, cuda::Stream stream) {
  const Sizes sizes = sizes_of_middle(call);
  checks.countable("the depthwise result", sizes, call.params.dtype);
  const Tensor middle =
      allocate(checks, "the depthwise result", sizes, dense_strides(sizes, channels_last), input);
  cuda::DepthwiseParams params = depthwise_params(call);
  params.output = write_to(middle);
  cuda::depthwise(params, stream);
  return middle;
}

// The pointwise convolution. Of NHWC images in half precision it is a matrix product where there is a bias,
// which makes a stock layer take up to 2.4 times as long on an H100 (docs/gpu.md).
Tensor pointwise(const SeparableConv2dCall& call, const Tensor& middle, const std::optional<Tensor>& bias) {
  const bool half = call.params.dtype == DType::kFloat16 || call.params.dtype == DType::kBFloat16;
  if (!half || !bias || !is_channels_last(middle))
    return library::convolution(middle, call.pointwise_weight, bias);
  return linear_of(middle, call.pointwise_weight, bias);
}

// Back through the pointwise convolution; returns the gradient of the depthwise result, if it is wanted.
Tensor backward_of_pointwise(const Checks& checks, const SeparableConv2dCall& call, const Tensor& grad_output,
                             const Tensor& input, bool of_middle, const Tensor& grad_weight,
                             cuda::Stream stream) {
  Tensor middle;
  if (grad_weight.defined()) {
    const bool as_input = call.params.dtype == DType::kFloat32;  // others are matrix products
    middle = middle_of(checks, call, input, as_input ? is_channels_last(input) : true, stream);
  }
  return backward_of_pointwise(checks, call.params.dtype, grad_output, middle, sizes_of_middle(call),
                               call.pointwise_weight, of_middle, grad_weight);
}

Tensor forward(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
               const std::optional<Tensor>& depthwise_bias, const std::optional<Tensor>& pointwise_bias,
               Ints stride, Ints padding, Ints dilation) {
  const Checks checks("separable_conv2d");
  const SeparableConv2dCall call = checked_separable_conv2d(checks, input, depthwise_weight, pointwise_weight,
                                                            depthwise_bias, stride, padding, dilation);
  checks.like_input(pointwise_bias, "pointwise_bias", input);
  checks.vector(pointwise_bias, "pointwise_bias", call.output[1]);
  checks.countable("output", call.output, call.params.dtype);
  if (input.size(0) == 0) return empty_image(checks, "output", call.output, input);

  const OnDevice device(input);
  SeparableConv2dParams params = call.params;
  const auto shift = dense(pointwise_bias);
  params.epilogue.shift = data_or_null(shift);
  const auto strides = dense_strides(call.output, is_channels_last(input));
  params.output = {nullptr,    call.output[0], call.output[1], call.output[2], call.output[3],
                   strides[0], strides[1],     strides[2],     strides[3]};
  if (cuda::fuses_separable_conv2d(params)) {
    const Tensor output = empty_image(checks, "output", call.output, input);
    params.output = write_to(output);
    cuda::separable_conv2d(params, device.stream);
    return output;
  }
  const Tensor middle = middle_of(checks, call, input, is_channels_last(input), device.stream);
  const Tensor output = pointwise(call, middle, pointwise_bias);
  if (std::ranges::equal(output.strides(), strides)) return output;
  const Tensor copy = empty_image(checks, "output", call.output, input);
  move_into(copy, output);
  return copy;
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

  const OnDevice device(input);
  const bool of_middle = output_mask[0] || output_mask[1] || output_mask[3];
  Tensor grad_middle;
  if (of_middle || output_mask[2])
    grad_middle = backward_of_pointwise(checks, call, grad_output, input, of_middle,
                                        call.grads.pointwise_weight, device.stream);
  if (of_middle) {
    cuda::DepthwiseParams params = depthwise_params(call);
    params.output = read_from(grad_middle);
    if (output_mask[1]) {
      const Tensor workspace = empty_bytes(checks, "the sums of grad_depthwise_weight",
                                           cuda::workspace_of_depthwise_weight_gradient(params), input);
      cuda::depthwise_weight_gradient(params, call.grads.depthwise_weight.mutable_data_ptr(),
                                      workspace.mutable_data_ptr(), device.stream);
    }
    if (output_mask[0]) {
      params.input = write_to(call.grads.input);
      cuda::depthwise_input_gradient(params, device.stream);
    }
    if (output_mask[3]) move_into(call.grads.depthwise_bias, library::sum_of_channels(grad_middle));
  }
  if (output_mask[4]) move_into(call.grads.pointwise_bias, library::sum_of_channels(grad_output));
  return call.grads.all();
}

std::string describe(int64_t batch, int64_t in_channels, int64_t height, int64_t width, int64_t out_channels,
                     Ints kernel_size, Ints stride, Ints padding, Ints dilation, int64_t depth_multiplier,
                     torch::headeronly::ScalarType dtype, bool channels_last, int64_t multiprocessors,
                     int64_t shared_bytes) {
  const Checks checks("describe_separable_conv2d_cuda");
  checks.at_least("multiprocessors", multiprocessors, 1);
  checks.at_least("shared_bytes", shared_bytes, 1);
  const cuda::Device device{static_cast<int>(multiprocessors), static_cast<int>(shared_bytes)};
  SeparableConv2dCall call;
  call.params =
      described_separable_conv2d(checks, {batch, in_channels, height, width}, out_channels, kernel_size,
                                 stride, padding, dilation, depth_multiplier, dtype, channels_last);
  std::string text = cuda::describe_separable_conv2d(call.params, device);
  cuda::DepthwiseParams depthwise = depthwise_params(call);
  const Image& out = call.params.output;
  const int64_t middle = in_channels * depth_multiplier;
  const auto [n, c, h, w] = dense_strides({batch, middle, out.h, out.w}, channels_last);
  depthwise.output = {nullptr, batch, middle, out.h, out.w, n, c, h, w};
  text += cuda::describe_depthwise(depthwise);
  return text + "pointwise          torch's own 1x1 convolution or matrix product\n";
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, SEPCONV_CUDA_KEY, m) {
  m.impl("separable_conv2d", TORCH_BOX(&sepconv::binding::forward));
  m.impl("separable_conv2d_backward", TORCH_BOX(&sepconv::binding::backward));
}

STABLE_TORCH_LIBRARY_IMPL(sepconv, CompositeExplicitAutograd, m) {
  m.impl("describe_separable_conv2d_cuda", TORCH_BOX(&sepconv::binding::describe));
}
