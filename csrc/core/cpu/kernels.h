// The face of the instruction-set folder: one table of entry points an instruction set, indexed by dtype.
#pragma once
#include "core/batch_norm.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/params.h"
#include "core/plan.h"

namespace sepconv {

inline constexpr int kDTypes = 4;

template <class Params>
using Kernel = void (*)(const Params&, const Parallel&);

// A build may leave out dtypes and the backward (SEPCONV_WITHOUT_* in table-inl.h): their entries are null.
struct Kernels {
  TileShape tile[kDTypes];
  int64_t (*packed_bytes[kDTypes])(const SeparableConv2dParams&);
  void (*pack[kDTypes])(const SeparableConv2dParams&, void* packed);
  Kernel<SeparableConv2dParams> separable_conv2d[kDTypes];
  Kernel<SeparableConv2dBackwardParams> separable_conv2d_backward[kDTypes];
  Kernel<RowAverageParams> row_average[kDTypes];
  Kernel<RowAverageParams> row_average_backward[kDTypes];
  Kernel<RowAverageConv2dParams> row_average_conv2d[kDTypes];
  Kernel<RowAverageConv2dBackwardParams> row_average_conv2d_backward[kDTypes];
  // Of the forward that multiplies pairs of bfloat16; null where bfloat16 is planned as the other dtypes are.
  TileShape pair_tile = {};
  ForwardPlan (*plan_pairs)(const SeparableConv2dParams&, int threads) = nullptr;
};

// A table of its own: a linker drops it where nothing trains, as in the C library.
struct BatchNormKernels {
  Kernel<BatchNormStatisticsParams> statistics[kDTypes];
  Kernel<BatchNormParams> forward[kDTypes];
  Kernel<BatchNormBackwardParams> backward[kDTypes];
};

const Kernels& kernels_scalar();
const BatchNormKernels& batch_norm_kernels_scalar();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const BatchNormKernels& batch_norm_kernels_avx2();
const Kernels& kernels_avx512();
const BatchNormKernels& batch_norm_kernels_avx512();
const Kernels& kernels_avx512_bf16();
const Kernels& kernels_amx();
#endif
#if defined(__aarch64__)
const Kernels& kernels_neon();
const BatchNormKernels& batch_norm_kernels_neon();
const Kernels& kernels_neon_bf16();
#endif

const Kernels& current_kernels();  // of current_isa()
const BatchNormKernels& current_batch_norm_kernels();

}  // namespace sepconv
