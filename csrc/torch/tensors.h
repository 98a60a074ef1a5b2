// The step from tensors to the core's pointers and strides, and the allocation of results.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <optional>

#include "core/parallel.h"
#include "core/params.h"
#include "torch/checks.h"
#include "torch/huge_pages.h"
#include "torch/result_memory.h"

namespace sepconv::binding {

// torch's suggest_memory_format for four dimensions, which the stable Tensor does not offer: strides must not
// shrink from C over W and H to N, and where NCHW describes the tensor as well, as (N, C, 1, 1), NCHW wins.
inline bool is_channels_last(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  if (strides[1] == 0) return false;
  int64_t least = 0;
  for (const int axis : {1, 3, 2, 0}) {
    if (sizes[axis] == 0 || strides[axis] < least) return false;
    if (axis == 0 && least == strides[1]) return false;
    least = strides[axis] * sizes[axis];
  }
  return true;
}

// Strides of a dense image. Contiguous ones as torch computes them, where an empty axis counts as one
// element.
inline Sizes dense_strides(const Sizes& sizes, bool channels_last) {
  const auto [n, c, h, w] = sizes;
  if (channels_last) return {h * w * c, 1, w * c, c};
  const auto extent = [](int64_t size) { return std::max<int64_t>(size, 1); };
  return {extent(c) * extent(h) * extent(w), extent(h) * extent(w), extent(w), 1};
}

// Large ones on the CPU in memory that is kept. torch::stable::empty would print a stack trace when memory is
// short. `dtype` is one of aoti_torch_dtype_*.
inline Tensor allocate(const Checks& checks, const char* name, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                       torch::headeronly::IntHeaderOnlyArrayRef strides, const Tensor& like, int32_t dtype) {
  int32_t device;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const bool on_cpu = device == aoti_torch_device_type_cpu();
  if (on_cpu) {
    const int64_t count = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
    const Tensor kept = kept_result(sizes, strides, dtype,
                                    count * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype)));
    if (kept.defined()) return kept;
  }
  AtenTensorHandle handle = nullptr;
  const auto status =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                               device, like.get_device_index(), &handle);
  checks.require(status == TORCH_SUCCESS, "there is no memory for ", name, " of shape ", Listed{sizes});
  const Tensor tensor(handle);
  if (on_cpu) advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}
inline Tensor allocate(const Checks& checks, const char* name, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                       torch::headeronly::IntHeaderOnlyArrayRef strides, const Tensor& like) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return allocate(checks, name, sizes, strides, like, dtype);
}

// Dtype, device and memory format of `like`.
inline Tensor empty_image(const Checks& checks, const char* name, const Sizes& sizes, const Tensor& like) {
  checks.countable(name, sizes, checks.dtype(like.scalar_type(), name));
  return allocate(checks, name, sizes, dense_strides(sizes, is_channels_last(like)), like);
}
// Contiguous, of the dtype and device of `like`.
inline Tensor empty_weight(const Checks& checks, const char* name, const Sizes& sizes, const Tensor& like) {
  checks.countable(name, sizes, checks.dtype(like.scalar_type(), name));
  return allocate(checks, name, sizes, dense_strides(sizes, false), like);
}
inline Tensor empty_vector(const Checks& checks, const char* name, int64_t size, const Tensor& like) {
  const int64_t stride = 1;
  return allocate(checks, name, {&size, 1}, {&stride, 1}, like);
}

// Plain memory on the device of `like`.
inline Tensor empty_bytes(const Checks& checks, const char* name, int64_t size, const Tensor& like) {
  const int64_t stride = 1;
  return allocate(checks, name, {&size, 1}, {&stride, 1}, like, aoti_torch_dtype_uint8());
}

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes[0], sizes[1], sizes[2], sizes[3]};
}
inline Image image_of(const Tensor& tensor, void* data) {
  const auto n = tensor.sizes(), s = tensor.strides();
  return {data, n[0], n[1], n[2], n[3], s[0], s[1], s[2], s[3]};
}
// Apart, because asking a lazily cloned tensor for mutable data copies it. The core never writes to its
// inputs.
inline Image read_from(const Tensor& tensor) {
  return image_of(tensor, const_cast<void*>(tensor.const_data_ptr()));
}
inline Image write_to(const Tensor& tensor) {
  return image_of(tensor, tensor.mutable_data_ptr());
}

// Weights and biases are small: kernels see them contiguous, whatever strides a caller or autograd sends.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(dense(*tensor)) : std::nullopt;
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// A gradient that nobody asked for is an undefined Tensor: None in Python, "no gradient" to autograd.
inline Image write_if_wanted(const Tensor& tensor) {
  return tensor.defined() ? write_to(tensor) : Image{};
}
inline void* data_if_wanted(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}
// Of an empty batch: zero, and no kernel runs.
inline void zero(Tensor tensor) {
  if (tensor.defined()) torch::stable::zero_(tensor);
}

// torch's own threads: torch.set_num_threads and OMP_NUM_THREADS hold, and nested regions run in line.
inline Parallel torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t count, RangeBody body) { torch::stable::parallel_for(0, count, 1, body); }};
}

}  // namespace sepconv::binding
