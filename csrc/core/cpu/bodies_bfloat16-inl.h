// The bodies of a level that adds products of bfloat16 to the one below: only what it does otherwise is
// compiled.
// clang-format off: the order matters
#include "core/cpu/simd/begin-inl.h"
#include "core/cpu/memory-inl.h"
#include "core/cpu/stages-inl.h"
#include "core/cpu/rows-inl.h"
#include "core/cpu/depthwise-inl.h"
#include "core/cpu/pointwise-inl.h"
#include "core/cpu/output-inl.h"
#include "core/cpu/open_tiles-inl.h"
#include "core/cpu/separable_conv2d-inl.h"
#include "core/cpu/row_average-inl.h"
#include "core/cpu/batch_norm-inl.h"
#include "core/cpu/batch_norm_backward-inl.h"
#include "core/cpu/pointwise_gradient-inl.h"
#include "core/cpu/separable_conv2d_backward-inl.h"
#include "core/cpu/pointwise_bfloat16-inl.h"
#include "core/cpu/pointwise_gradient_bfloat16-inl.h"
#include "core/cpu/separable_conv2d_bfloat16-inl.h"
#include "core/cpu/simd/end-inl.h"
// clang-format on
