// Every intrinsic, for the CUDA kernels of today and the next. Kernels include this and the core's plain
// headers, nothing else: so the same source also compiles as host C++, where tests run it (tests/cuda_host).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "core/dtypes.h"

#if defined(__CUDACC__)

// The block's dynamic shared memory as one struct or array.
#define SEPCONV_SHARED(type, name)                                  \
  extern __shared__ __align__(128) unsigned char sepconv_shared_[]; \
  type* const name = reinterpret_cast<type*>(sepconv_shared_)
#define SEPCONV_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)

namespace sepconv::cuda::device {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// d += a * b on the tensor cores: a is 16 x K by rows, b is K x 8 by columns, d is 16 x 8; K is 16, or 8 for
// floats, whose low 13 bits are not read.
__device__ __forceinline__ void mma(Float16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(BFloat16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(float, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit elements (8 rows of 16 bytes each): lane i brings the address of row i % 8 of
// matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes from global to shared memory, zeros where `valid` is false; they have arrived after
// wait_for_copies.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's latest groups are still under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 16 bytes to global memory at once, where the compiler would store them in parts.
__device__ __forceinline__ void store_16(void* global, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0],{%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(global)), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

__device__ __forceinline__ void synchronize() {
  __syncthreads();
}
__device__ __forceinline__ float as_float(uint32_t bits) {
  return __uint_as_float(bits);
}
// Has the compiler keep what was computed in its register rather than compute it again at every use.
__device__ __forceinline__ void keep(float& value) {
  asm volatile("" : "+f"(value));
}
__device__ __forceinline__ double square_root(double x) {
  return __dsqrt_rn(x);
}
template <class T>
__device__ __forceinline__ T shuffle_down(T value, int lanes) {
  return __shfl_down_sync(0xffffffffu, value, lanes);
}

}  // namespace sepconv::cuda::device

#else
#include "device_host.h"  // tests/cuda_host: the same names, run by fibers
#endif

namespace sepconv::cuda {

// --- Numbers: stored as T, computed as Compute<T> ---

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ double widen(double x) {
  return x;
}
__device__ __forceinline__ float widen(BFloat16 x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}
__device__ __forceinline__ float widen(Float16 x) {
  return __half2float(__ushort_as_half(x.bits));
}

template <class T>
struct Narrow {
  static __device__ __forceinline__ T of(T x) { return x; }
};
template <>
struct Narrow<BFloat16> {
  static __device__ __forceinline__ BFloat16 of(float x) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  }
};
template <>
struct Narrow<Float16> {
  static __device__ __forceinline__ Float16 of(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
};
template <class T>
__device__ __forceinline__ T narrow(Compute<T> x) {
  return Narrow<T>::of(x);
}

// --- Vectors: kLanes adjacent elements, moved at once ---

template <class T>
inline constexpr int kVectorLanes = 16 / sizeof(T);

// As it is stored, halves of 32 bits by pairs: apart they would take a register each.
template <class T, int kLanes>
struct alignas(sizeof(T) * kLanes) Vector {
  static constexpr bool kPairs = sizeof(T) == 2 && kLanes % 2 == 0;
  using Part = std::conditional_t<kPairs, uint32_t, T>;
  Part part[kPairs ? kLanes / 2 : kLanes];
};

__device__ __forceinline__ void widen_pair(uint32_t pair, BFloat16, float& low, float& high) {
  low = device::as_float(pair << 16);
  high = device::as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ void widen_pair(uint32_t pair, Float16, float& low, float& high) {
  low = __half2float(__ushort_as_half(static_cast<uint16_t>(pair)));
  high = __half2float(__ushort_as_half(static_cast<uint16_t>(pair >> 16)));
}
template <class T, int kLanes>
__device__ __forceinline__ void widen(const Vector<T, kLanes>& from, Compute<T> (&to)[kLanes]) {
  if constexpr (Vector<T, kLanes>::kPairs) {
#pragma unroll
    for (int i = 0; i < kLanes; i += 2) widen_pair(from.part[i / 2], T{}, to[i], to[i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[i] = widen(from.part[i]);
  }
}
__device__ __forceinline__ uint32_t narrow_pair(BFloat16, float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return __bfloat16_as_ushort(pair.x) | static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
}
__device__ __forceinline__ uint32_t narrow_pair(Float16, float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return __half_as_ushort(pair.x) | static_cast<uint32_t>(__half_as_ushort(pair.y)) << 16;
}
template <class T, int kLanes>
__device__ __forceinline__ Vector<T, kLanes> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kLanes>*>(from);
}

template <class T, int kLanes>
__device__ __forceinline__ void load(const T* from, Compute<T> (&to)[kLanes]) {
  widen(load<T, kLanes>(from), to);
}
template <class T, int kLanes>
__device__ __forceinline__ Vector<T, kLanes> narrow(const Compute<T> (&from)[kLanes]) {
  Vector<T, kLanes> vector;
  if constexpr (Vector<T, kLanes>::kPairs) {
#pragma unroll
    for (int i = 0; i < kLanes; i += 2) vector.part[i / 2] = narrow_pair(T{}, from[i], from[i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) vector.part[i] = narrow<T>(from[i]);
  }
  return vector;
}
template <class T, int kLanes>
__device__ __forceinline__ void store(const Compute<T> (&from)[kLanes], T* to) {
  *reinterpret_cast<Vector<T, kLanes>*>(to) = narrow<T, kLanes>(from);
}
// To global memory, at once where it is 16 bytes.
template <class T, int kLanes>
__device__ __forceinline__ void store_global(const Compute<T> (&from)[kLanes], T* to) {
  const Vector<T, kLanes> vector = narrow<T, kLanes>(from);
  if constexpr (sizeof(vector) == 16) {
    uint32_t words[4];
    memcpy(words, &vector, sizeof(vector));
    device::store_16(to, words);
  } else {
    *reinterpret_cast<Vector<T, kLanes>*>(to) = vector;
  }
}

}  // namespace sepconv::cuda
