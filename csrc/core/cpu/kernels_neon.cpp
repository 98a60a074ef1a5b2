#if defined(__aarch64__)
#define SEPCONV_SIMD_NEON
#include "core/cpu/bodies-inl.h"

namespace sepconv {
const Kernels& kernels_neon() {
  static constexpr Kernels kKernels = make_kernels();
  return kKernels;
}
const BatchNormKernels& batch_norm_kernels_neon() {
  static constexpr BatchNormKernels kKernels = make_batch_norm_kernels();
  return kKernels;
}
}  // namespace sepconv
#endif
