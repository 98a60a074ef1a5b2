// device.cuh for a host compiler: CUDA's keywords, and the functions of sepconv::cuda::device, run by fibers.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "block.h"
#include "core/dtypes.h"
#include "warp.h"

// CUDA's headers define these for host compilers too, as attributes that these do not know.
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __align__
#undef __grid_constant__
#if defined(SEPCONV_CUDA_HOST_PTX)
#define __global__ __attribute__((weak))  // the translation of a kernel takes its place
#else
#define __global__
#endif
#define __device__
#define __host__
#define __constant__
#define __shared__ static_assert(false, "shared memory is dynamic: SEPCONV_SHARED(type, name)");
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

#define threadIdx (::sepconv::cuda_host::here.thread)
#define blockIdx (::sepconv::cuda_host::here.block)
#define blockDim (::sepconv::cuda_host::here.block_size)
#define gridDim (::sepconv::cuda_host::here.grid_size)

#define SEPCONV_SHARED(type, name)            \
  type* const name = reinterpret_cast<type*>( \
      ::sepconv::cuda_host::shared_memory(sizeof(type), ::sepconv::cuda_host::Position::current()))
#define SEPCONV_LAUNCH(kernel, grid, block, shared, stream, ...) \
  (static_cast<void>(stream), ::sepconv::cuda_host::launch(kernel, grid, block, shared, __VA_ARGS__))

// cuda_runtime.h's, for a kernel by its name.
template <class Result, class... Parameters>
cudaError_t cudaFuncSetAttribute(Result (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

namespace sepconv::cuda {
// Global functions under nvcc.
using std::max;
using std::min;
}  // namespace sepconv::cuda

// As documented in device.cuh. The last argument is where the kernel calls.
namespace sepconv::cuda::device {

using cuda_host::Position;

inline void mma(Float16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                Position where = Position::current()) {
  cuda_host::Product mine{d, a, {b0, b1}};
  cuda_host::collective(&mine, &cuda_host::multiply_float16, where);
}
inline void mma(BFloat16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                Position where = Position::current()) {
  cuda_host::Product mine{d, a, {b0, b1}};
  cuda_host::collective(&mine, &cuda_host::multiply_bfloat16, where);
}
inline void mma(float, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                Position where = Position::current()) {
  cuda_host::Product mine{d, a, {b0, b1}};
  cuda_host::collective(&mine, &cuda_host::multiply_tf32, where);
}

inline void load_matrices(uint32_t (&r)[4], const void* row, Position where = Position::current()) {
  cuda_host::load_matrices<false>(r, row, where);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row,
                                     Position where = Position::current()) {
  cuda_host::load_matrices<true>(r, row, where);
}

// What copy_async moves. Assigned, since TSan does not see a memcpy that the compiler expands.
struct alignas(16) CopiedBytes {
  uint64_t words[2];
};

// Nothing arrives before the wait, and what was there is gone at once: NaN.
inline void copy_async(void* shared, const void* global, bool valid, Position where = Position::current()) {
  const auto* from = valid ? static_cast<const unsigned char*>(global) : nullptr;
  cuda_host::start_copy({static_cast<unsigned char*>(shared), from}, where);
  *static_cast<CopiedBytes*>(shared) = {{~uint64_t{0}, ~uint64_t{0}}};
}
inline void commit_copies() {
  cuda_host::commit_copies();
}
template <int kPending>
inline void wait_for_copies() {
  const auto [copies, count] = cuda_host::finished_copies(kPending);
  for (size_t i = 0; i < count; ++i) {
    auto& to = *reinterpret_cast<CopiedBytes*>(copies[i].to);
    to = copies[i].from ? *reinterpret_cast<const CopiedBytes*>(copies[i].from) : CopiedBytes{};
  }
}

inline void store_16(void* global, const uint32_t (&words)[4], Position where = Position::current()) {
  if (reinterpret_cast<uintptr_t>(global) % 16) cuda_host::fail("a store to no multiple of 16 bytes", where);
  for (int i = 0; i < 4; ++i) static_cast<uint32_t*>(global)[i] = words[i];
}

inline void synchronize(Position where = Position::current()) {
  cuda_host::synchronize(where);
}
inline float as_float(uint32_t bits) {
  return std::bit_cast<float>(bits);
}
inline void keep(float&) {}
inline double square_root(double x) {
  return std::sqrt(x);
}
template <class T>
T shuffle_down(T value, int lanes, Position where = Position::current()) {
  const int from = cuda_host::here.lane + lanes;
  return cuda_host::shuffle(value, from < 32 ? from : cuda_host::here.lane, where);
}

}  // namespace sepconv::cuda::device
