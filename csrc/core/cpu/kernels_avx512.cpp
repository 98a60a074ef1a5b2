#if defined(__x86_64__)
#define SEPCONV_SIMD_AVX512
#include "core/cpu/bodies-inl.h"

namespace sepconv {
const Kernels& kernels_avx512() {
  static constexpr Kernels kKernels = make_kernels();
  return kKernels;
}
const BatchNormKernels& batch_norm_kernels_avx512() {
  static constexpr BatchNormKernels kKernels = make_batch_norm_kernels();
  return kKernels;
}
}  // namespace sepconv
#endif
