#define SEPCONV_SIMD_SCALAR
// clang-format off: begin opens what the bodies stand in
#include "core/cpu/bodies-inl.h"
#include "core/cpu/simd/begin-inl.h"
#include "core/cpu/simd/end-inl.h"
// clang-format on

namespace sepconv {
const Kernels& kernels_scalar() {
  static constexpr Kernels kKernels = make_kernels();
  return kKernels;
}
}  // namespace sepconv
