// Found before csrc/torch/cuda.h: the CUDA operators on CPU tensors, which need no stream and no device.
#pragma once
#include "core/cuda/launch.h"
#include "torch/checks.h"
#include "torch/library.h"
#include "torch/tensors.h"

#define SEPCONV_CUDA_KEY CPU

namespace sepconv::binding {

class OnDevice {
 public:
  explicit OnDevice(const Tensor&) {}
  cuda::Stream stream = nullptr;
};

// torch has mm.dtype for CUDA alone.
inline Tensor product_in_float(const Tensor& a, const Tensor& b) {
  const auto wide = [](const Tensor& tensor) {
    return torch::stable::to(tensor, torch::headeronly::ScalarType::Float);
  };
  return torch::stable::matmul(wide(a), wide(b));
}

}  // namespace sepconv::binding
