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
  Kernel<BatchNormStatisticsParams> batch_norm_statistics[kDTypes];
  Kernel<BatchNormParams> batch_norm[kDTypes];
  Kernel<BatchNormBackwardParams> batch_norm_backward[kDTypes];
  // Of the forward that multiplies pairs of bfloat16; null where bfloat16 is planned as the other dtypes are.
  TileShape pair_tile = {};
  ForwardPlan (*plan_pairs)(const SeparableConv2dParams&, int threads) = nullptr;
};

const Kernels& kernels_scalar();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512_bf16();
const Kernels& kernels_amx();
#endif
#if defined(__aarch64__)
const Kernels& kernels_neon();
#endif

const Kernels& current_kernels();  // of current_isa()

}  // namespace sepconv
