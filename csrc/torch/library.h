// Operators of torch's own that the CUDA bindings call, where a library's kernel is the best there is.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "torch/checks.h"

namespace sepconv::binding::library {

template <size_t kArguments>
void call(const char* name, const char* overload, std::array<StableIValue, kArguments>& stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
}

// `tensor`, or a copy, at a multiple of 16 bytes: cuDNN's backward of a 1x1 map faults where a gradient that
// another tensor's storage holds is not.
inline Tensor aligned(const Tensor& tensor) {
  const bool is = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  return is ? tensor : torch::stable::clone(tensor);
}

// A convolution as torch.nn.functional.conv2d computes it, TF32 where torch.backends.cudnn.allow_tf32 says
// so.
struct Convolution {
  Ints stride{1, 1}, padding{0, 0}, dilation{1, 1};
};

inline Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                          const Convolution& c = {}) {
  using torch::stable::detail::from;
  std::array stack{from(input),      from(weight), from(bias),       from(c.stride),  from(c.padding),
                   from(c.dilation), from(false),  from(Ints{0, 0}), from(int64_t{1})};
  call("aten::convolution", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// input * weight^T + bias of matrices.
inline Tensor linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  std::array stack{from(input), from(weight), from(bias)};
  call("aten::linear", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Gradients of the input and the weight; one that is not wanted is undefined.
inline std::tuple<Tensor, Tensor> convolution_backward(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& weight, bool of_input, bool of_weight,
                                                       const Convolution& c = {}) {
  using torch::stable::detail::from;
  const bool wanted[] = {of_input, of_weight, false};
  const torch::headeronly::HeaderOnlyArrayRef<bool> mask(wanted, 3);
  std::array stack{from(aligned(grad_output)),
                   from(input),
                   from(aligned(weight)),
                   from(std::optional<Ints>()),
                   from(c.stride),
                   from(c.padding),
                   from(c.dilation),
                   from(false),
                   from(Ints{0, 0}),
                   from(int64_t{1}),
                   from(mask)};
  call("aten::convolution_backward", "", stack);
  using torch::stable::detail::to;
  // Results come in place of the first arguments; those that are not wanted are undefined tensors.
  Tensor grad_input = to<Tensor>(stack[0]), grad_weight = to<Tensor>(stack[1]),
         grad_bias = to<Tensor>(stack[2]);
  return {grad_input, grad_weight};
}

// Sum over images and positions, a vector of channels.
inline Tensor sum_of_channels(const Tensor& image) {
  const std::array<int64_t, 3> axes{0, 2, 3};
  return torch::stable::sum(image, torch::headeronly::IntHeaderOnlyArrayRef(axes.data(), axes.size()));
}

}  // namespace sepconv::binding::library
