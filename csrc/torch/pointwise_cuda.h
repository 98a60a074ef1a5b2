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
inline Tensor as_dense_nhwc(const Checks& checks, const char* name, const Tensor& image) {
  if (is_dense_nhwc(image)) return image;
  const Sizes sizes = sizes_of(image);
  const Tensor copy = allocate(checks, name, sizes, dense_strides(sizes, true), image);
  move_into(copy, image);
  return copy;
}

// The same memory in another shape. No view to autograd, which would refuse to change a result in place.
template <size_t kDimensions>
Tensor reinterpreted(const Tensor& tensor, const std::array<int64_t, kDimensions>& sizes,
                     const std::array<int64_t, kDimensions>& strides) {
  AtenTensorHandle handle = nullptr;
  constexpr int64_t kOffset = 0;  // from where the tensor begins in its storage
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), kDimensions, sizes.data(),
                                                               strides.data(), kOffset, &handle));
  return Tensor(handle);
}

// A dense NHWC image as a matrix of pixels by channels.
inline Tensor pixels_of(const Tensor& image) {
  const auto [n, c, h, w] = sizes_of(image);
  return reinterpreted<2>(image, {n * h * w, c}, {c, 1});
}

// A dense matrix of pixels by channels as the NHWC image it is.
inline Tensor image_of_pixels(const Tensor& pixels, const Sizes& sizes) {
  return reinterpreted<4>(pixels, sizes, dense_strides(sizes, true));
}

// Autocast, where it is still on in a backward, casts what the library multiplies.
inline Tensor in_dtype_of(const Tensor& like, const Tensor& result) {
  return result.scalar_type() == like.scalar_type() ? result : torch::stable::to(result, like.scalar_type());
}

inline Tensor matrix_of(const Tensor& pointwise_weight) {
  const std::array<int64_t, 2> sizes{pointwise_weight.size(0), pointwise_weight.size(1)};
  return torch::stable::reshape(pointwise_weight, sizes);
}

// Of a dense NHWC image, as a matrix product.
inline Tensor linear_of(const Tensor& image, const Tensor& weight, const std::optional<Tensor>& bias) {
  const auto [n, c, h, w] = sizes_of(image);
  const Tensor product = library::linear(pixels_of(image), matrix_of(weight), bias);
  return image_of_pixels(in_dtype_of(image, product), {n, weight.size(0), h, w});
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
    return of_input ? in_dtype_of(grad_output, from_input) : from_input;
  }
  const Tensor grad_pixels = pixels_of(as_dense_nhwc(checks, "grad_output", grad_output));
  if (grad_weight.defined()) {
    const Tensor left = torch::stable::transpose(grad_pixels, 0, 1);
    const Tensor right = pixels_of(as_dense_nhwc(checks, "the pointwise input", input));
    const Tensor product =
        dtype == DType::kFloat64 ? torch::stable::matmul(left, right) : product_in_float(left, right);
    move_into(grad_weight, torch::stable::reshape(product, grad_weight.sizes()));
  }
  if (!of_input) return Tensor();
  const Tensor product = torch::stable::matmul(grad_pixels, matrix_of(weight));
  return image_of_pixels(in_dtype_of(grad_output, product), sizes);
}

}  // namespace sepconv::binding
