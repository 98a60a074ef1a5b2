// The current stream of a tensor's device, through libtorch's C shim: no CUDA header.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <stdexcept>

#include "core/cuda/launch.h"
#include "torch/checks.h"
#include "torch/library.h"
#include "torch/tensors.h"

// The operators are registered for this dispatch key. tests/cuda_host has a torch/cuda.h of its own, which
// says CPU.
#define SEPCONV_CUDA_KEY CUDA

// Weak: a torch without CUDA does not have it, and still loads the library.
extern "C" __attribute__((weak)) int aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace sepconv::binding {

// Makes the tensor's device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    if (aoti_torch_get_current_cuda_stream == nullptr)
      throw std::runtime_error("sepconv: this torch has no CUDA");
    if (aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != TORCH_SUCCESS)
      throw std::runtime_error("sepconv: torch has no current CUDA stream");
  }
  cuda::Stream stream = nullptr;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// a @ b as float32 of matrices of half precision. matmul may add parts of a long sum in half precision
// (torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction).
inline Tensor product_in_float(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array stack{from(a), from(b), from(torch::headeronly::ScalarType::Float)};
  library::call("aten::mm", "dtype", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace sepconv::binding
