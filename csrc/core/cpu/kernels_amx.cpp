#if defined(__x86_64__) && !defined(SEPCONV_WITHOUT_BFLOAT16)
#define SEPCONV_SIMD_AMX
#include "core/cpu/bodies_bfloat16-inl.h"

namespace sepconv {
const Kernels& kernels_amx() {
  static const Kernels kKernels = with_pairs(kernels_avx512());
  return kKernels;
}
}  // namespace sepconv
#endif
