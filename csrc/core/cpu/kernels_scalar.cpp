#define SEPCONV_SIMD_SCALAR
#include "core/cpu/bodies-inl.h"

namespace sepconv {
const Kernels& kernels_scalar() {
  static constexpr Kernels kKernels = make_kernels();
  return kKernels;
}
const BatchNormKernels& batch_norm_kernels_scalar() {
  static constexpr BatchNormKernels kKernels = make_batch_norm_kernels();
  return kKernels;
}
}  // namespace sepconv
