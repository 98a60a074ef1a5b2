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

// Into a tensor of our own: the library chooses the strides of degenerate sizes its own way.
void move_into(const Tensor& to, const Tensor& from) {
  Tensor target = to;
  torch::stable::copy_(target, from);
}

// `image` itself where it is dense NHWC, else a copy that is.
Tensor channels_last(const Checks& checks, const char* name, const Tensor& image) {
  const Sizes sizes = sizes_of(image), strides = dense_strides(sizes, true);
  if (std::ranges::equal(image.strides(), strides)) return image;
  const Tensor copy = allocate(checks, name, sizes, strides, image);
  move_into(copy, image);
  return copy;
}

// A dense NHWC image as a matrix of pixels by channels, without a copy.
Tensor pixels_of(const Tensor& image) {
  const auto [n, c, h, w] = sizes_of(image);
  const std::array<int64_t, 4> axes{0, 2, 3, 1};
  const std::array<int64_t, 2> sizes{n * h * w, c};
  return torch::stable::reshape(torch::stable::permute(image, axes), sizes);
}

// A matrix of pixels by channels as the NHWC image it is, without a copy.
Tensor image_of(const Tensor& pixels, const Sizes& sizes) {
  const auto [n, c, h, w] = sizes;
  const std::array<int64_t, 4> shape{n, h, w, c}, axes{0, 3, 1, 2};
  return torch::stable::permute(torch::stable::reshape(pixels, shape), axes);
}

Tensor matrix_of(const Tensor& pointwise_weight) {
  const std::array<int64_t, 2> sizes{pointwise_weight.size(0), pointwise_weight.size(1)};
  return torch::stable::reshape(pointwise_weight, sizes);
}

// The pointwise convolution. Of NHWC images in half precision it is a matrix product where there is a bias,
// which makes a stock layer take up to 2.4 times as long on an H100 (docs/gpu.md).
Tensor pointwise(const SeparableConv2dCall& call, const Tensor& middle, const std::optional<Tensor>& bias) {
  const bool half = call.params.dtype == DType::kFloat16 || call.params.dtype == DType::kBFloat16;
  if (!half || !bias || !is_channels_last(middle))
    return library::convolution(middle, call.pointwise_weight, bias);
  return image_of(library::linear(pixels_of(middle), matrix_of(call.pointwise_weight), bias), call.output);
}

// Back through the pointwise convolution. Matrix products of NHWC images are deterministic, and NCHW images
// of half precision would be transposed by the library as well; but only a convolution of torch's own knows
// whether float32 may be computed in TF32 (torch.backends.cudnn.allow_tf32), so those are as deterministic as
// torch.backends.cudnn.deterministic makes them. Returns the gradient of the depthwise result, if it is
// wanted.
Tensor backward_of_pointwise(const Checks& checks, const SeparableConv2dCall& call, const Tensor& grad_output,
                             const Tensor& input, bool of_middle, const Tensor* grad_weight,
                             cuda::Stream stream) {
  const DType dtype = call.params.dtype;
  if (dtype == DType::kFloat32) {
    // The gradient of the middle does not read the middle's values.
    const Tensor middle = grad_weight
                              ? middle_of(checks, call, input, is_channels_last(input), stream)
                              : empty_image(checks, "the depthwise result", sizes_of_middle(call), input);
    const auto [of_input, of_weight] = library::convolution_backward(
        grad_output, middle, call.pointwise_weight, of_middle, grad_weight != nullptr);
    if (grad_weight) move_into(*grad_weight, of_weight);
    return of_input;
  }
  const Tensor grad_pixels = pixels_of(channels_last(checks, "grad_output", grad_output));
  if (grad_weight) {
    const Tensor middle = middle_of(checks, call, input, true, stream);
    const Tensor left = torch::stable::transpose(grad_pixels, 0, 1), right = pixels_of(middle);
    const Tensor product =
        dtype == DType::kFloat64 ? torch::stable::matmul(left, right) : product_in_float(left, right);
    move_into(*grad_weight, torch::stable::reshape(product, grad_weight->sizes()));
  }
  if (!of_middle) return Tensor();
  const Tensor product = torch::stable::matmul(grad_pixels, matrix_of(call.pointwise_weight));
  return image_of(product, sizes_of_middle(call));
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
    grad_middle =
        backward_of_pointwise(checks, call, grad_output, input, of_middle,
                              output_mask[2] ? &call.grads.pointwise_weight : nullptr, device.stream);
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
