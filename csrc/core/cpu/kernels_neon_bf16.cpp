#if defined(__aarch64__) && !defined(SEPCONV_WITHOUT_BFLOAT16)
#define SEPCONV_SIMD_NEON_BF16
#include "core/cpu/bodies_bfloat16-inl.h"

namespace sepconv {
const Kernels& kernels_neon_bf16() {
  static const Kernels kKernels = with_pairs(kernels_neon());
  return kKernels;
}
}  // namespace sepconv
#endif
