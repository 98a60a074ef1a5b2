#if defined(__x86_64__)
#define SEPCONV_SIMD_AVX2
// clang-format off: begin opens what the bodies stand in
#include "core/cpu/bodies-inl.h"
#include "core/cpu/simd/begin-inl.h"
#include "core/cpu/simd/end-inl.h"
// clang-format on

namespace sepconv {
const Kernels& kernels_avx2() {
  static constexpr Kernels kKernels = make_kernels();
  return kKernels;
}
}  // namespace sepconv
#endif
