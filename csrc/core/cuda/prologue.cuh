// A batch norm and an activation as what comes next loads its input: bounds(scale * x + shift).
#pragma once
#include "core/cuda/device.cuh"
#include "core/cuda/prologue.h"

namespace sepconv::cuda {

// Bounds that are NaN bound nothing, and NaN passes them: as torch's activations do.
template <class C>
__device__ __forceinline__ C clamped(C x, const Bounds<C>& bounds) {
  return x < bounds.least ? bounds.least : x > bounds.most ? bounds.most : x;
}
// Whether a gradient passes the activation: not at its kinks.
template <class C>
__device__ __forceinline__ bool passes(C x, const Bounds<C>& bounds) {
  return !(x <= bounds.least || x >= bounds.most);
}

// A vector of channels of a list that may be missing, and begin anywhere.
template <class C, int kLanes>
__device__ __forceinline__ void load_channels(const C* list, int channel, C missing, C (&to)[kLanes]) {
  constexpr int kAtOnce = 16 / sizeof(C);
  if (kLanes % kAtOnce == 0 && list != nullptr && reinterpret_cast<uintptr_t>(list + channel) % 16 == 0) {
#pragma unroll
    for (int i = 0; i + kAtOnce <= kLanes; i += kAtOnce) {
      const Vector<C, kAtOnce> some = load<C, kAtOnce>(list + channel + i);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) to[i + j] = some.part[j];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) to[i] = list == nullptr ? missing : list[channel + i];
}

// Of a vector of channels, in registers.
template <class T, int kLanes>
struct LoadedPrologue {
  using C = Compute<T>;
  C scale[kLanes], shift[kLanes];
  Bounds<C> bounds;

  __device__ __forceinline__ LoadedPrologue(const PrologueArguments<C>& a, int channel) : bounds(a.bounds) {
    load_channels(a.scale, channel, C{1}, scale);
    load_channels(a.shift, channel, C{0}, shift);
  }
  __device__ __forceinline__ C affine(C x, int lane) const { return scale[lane] * x + shift[lane]; }
  __device__ __forceinline__ void apply(C (&x)[kLanes]) const {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) x[i] = clamped(affine(x[i], i), bounds);
  }
};

// Of a vector of channels of the block's, in shared memory: for kernels without registers to spare. Other
// threads may not write there before a barrier behind the last use.
template <class T, int kLanes>
struct SharedPrologue {
  using C = Compute<T>;
  const C *scale, *shift;
  Bounds<C> bounds;

  // Every thread of the block calls this; the block's channels begin at `from`.
  __device__ __forceinline__ SharedPrologue(const PrologueArguments<C>& a, int from, int channels, C* shared)
      : scale(shared + threadIdx.x * kLanes), shift(scale + blockDim.x * kLanes), bounds(a.bounds) {
    const unsigned count = blockDim.x * kLanes, threads = blockDim.x * blockDim.y;
    for (unsigned i = threadIdx.y * blockDim.x + threadIdx.x; i < count; i += threads) {
      const bool exists = from + static_cast<int>(i) < channels;
      shared[i] = exists && a.scale != nullptr ? a.scale[from + i] : C{1};
      shared[count + i] = exists && a.shift != nullptr ? a.shift[from + i] : C{0};
    }
    device::synchronize();
  }
  __device__ __forceinline__ void apply(C (&x)[kLanes]) const {
    C factor[kLanes], term[kLanes];
    load<C, kLanes>(scale, factor);
    load<C, kLanes>(shift, term);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) x[i] = clamped(factor[i] * x[i] + term[i], bounds);
  }
};

// For kernels that know at compile time whether there is one.
template <class T, int kLanes>
struct NoPrologue {
  template <class... Arguments>
  __device__ __forceinline__ explicit NoPrologue(const Arguments&...) {}
  __device__ __forceinline__ void apply(Compute<T> (&)[kLanes]) const {}
};
template <class T, int kLanes, bool kPrologue>
using LoadedPrologueIf = std::conditional_t<kPrologue, LoadedPrologue<T, kLanes>, NoPrologue<T, kLanes>>;
template <class T, int kLanes, bool kPrologue>
using SharedPrologueIf = std::conditional_t<kPrologue, SharedPrologue<T, kLanes>, NoPrologue<T, kLanes>>;

}  // namespace sepconv::cuda
