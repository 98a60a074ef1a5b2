// Pointwise convolutions on CUDA, forward and backward: the library's products, of NHWC images as matrices of
// pixels by channels.
#pragma once
#include <algorithm>
#include <array>
#include <optional>

#include "torch/checks.h"
#include "torch/cuda.h"
#include "torch/library.h"
#include "torch/tensors.h"

namespace sepconv::binding {

// Into a tensor of our own: the library chooses the strides of degenerate sizes its own way.
inline void move_into(const Tensor& to, const Tensor& from) {
  Tensor target = to;
  torch::stable::copy_(target, from);
}

// Whether the memory is that of a dense NHWC image; the strides of axes with one element say nothing.
inline bool is_dense_nhwc(const Tensor& image) {
  const Sizes sizes = sizes_of(image), strides = dense_strides(sizes, true);
  for (size_t axis = 0; axis < sizes.size(); ++axis)
    if (sizes[axis] != 1 && image.strides()[axis] != strides[axis]) return false;
  return true;
}

// `image` itself where it is dense NHWC, else a copy that is.
inline Tensor channels_last(const Checks& checks, const char* name, const Tensor& image) {
  if (is_dense_nhwc(image)) return image;
  const Sizes sizes = sizes_of(image);
  const Tensor copy = allocate(checks, name, sizes, dense_strides(sizes, true), image);
  move_into(copy, image);
  return copy;
}

// A dense NHWC image as a matrix of pixels by channels, without a copy.
inline Tensor pixels_of(const Tensor& image) {
  const auto [n, c, h, w] = sizes_of(image);
  const std::array<int64_t, 4> axes{0, 2, 3, 1};
  const std::array<int64_t, 2> sizes{n * h * w, c};
  return torch::stable::reshape(torch::stable::permute(image, axes), sizes);
}

// A matrix of pixels by channels as the NHWC image it is, without a copy.
inline Tensor image_of(const Tensor& pixels, const Sizes& sizes) {
  const auto [n, c, h, w] = sizes;
  const std::array<int64_t, 4> shape{n, h, w, c}, axes{0, 3, 1, 2};
  return torch::stable::permute(torch::stable::reshape(pixels, shape), axes);
}

inline Tensor matrix_of(const Tensor& pointwise_weight) {
  const std::array<int64_t, 2> sizes{pointwise_weight.size(0), pointwise_weight.size(1)};
  return torch::stable::reshape(pointwise_weight, sizes);
}

// Of a dense NHWC image, as a matrix product.
inline Tensor linear_of(const Tensor& image, const Tensor& weight, const std::optional<Tensor>& bias) {
  const auto [n, c, h, w] = sizes_of(image);
  return image_of(library::linear(pixels_of(image), matrix_of(weight), bias), {n, weight.size(0), h, w});
}

// Back through a pointwise convolution. Matrix products of NHWC images are deterministic, and NCHW images of
// half precision would be transposed by the library as well; but only a convolution of torch's own knows
// whether float32 may be computed in TF32 (torch.backends.cudnn.allow_tf32), so those are as deterministic as
// torch.backends.cudnn.deterministic makes them. Of the input, of `sizes`, only the gradient of the weight
// reads the values: without one it may be undefined, as grad_weight is then. Returns the gradient of the
// input, if it is wanted.
inline Tensor backward_of_pointwise(const Checks& checks, DType dtype, const Tensor& grad_output,
                                    const Tensor& input, const Sizes& sizes, const Tensor& weight,
                                    bool of_input, const Tensor& grad_weight) {
  if (dtype == DType::kFloat32) {
    const Tensor values = input.defined()
                              ? input
                              : allocate(checks, "the pointwise input", sizes,
                                         dense_strides(sizes, is_channels_last(grad_output)), grad_output);
    const auto [from_input, from_weight] =
        library::convolution_backward(grad_output, values, weight, of_input, grad_weight.defined());
    if (grad_weight.defined()) move_into(grad_weight, from_weight);
    return from_input;
  }
  const Tensor grad_pixels = pixels_of(channels_last(checks, "grad_output", grad_output));
  if (grad_weight.defined()) {
    const Tensor left = torch::stable::transpose(grad_pixels, 0, 1);
    const Tensor right = pixels_of(channels_last(checks, "the pointwise input", input));
    const Tensor product =
        dtype == DType::kFloat64 ? torch::stable::matmul(left, right) : product_in_float(left, right);
    move_into(grad_weight, torch::stable::reshape(product, grad_weight.sizes()));
  }
  if (!of_input) return Tensor();
  return image_of(torch::stable::matmul(grad_pixels, matrix_of(weight)), sizes);
}

}  // namespace sepconv::binding
