// Every kernel body in order of dependence, between the opening and the closing of one instruction set.
// clang-format off: the order matters
#include "core/cpu/simd/begin-inl.h"
#include "core/cpu/memory-inl.h"
#include "core/cpu/stages-inl.h"
#include "core/cpu/rows-inl.h"
#include "core/cpu/depthwise-inl.h"
#include "core/cpu/pointwise-inl.h"
#include "core/cpu/output-inl.h"
#include "core/cpu/depthwise_nchw-inl.h"
#include "core/cpu/separable_conv2d_nchw-inl.h"
#include "core/cpu/separable_conv2d-inl.h"
#include "core/cpu/separable_conv2d_backward-inl.h"
#include "core/cpu/row_average-inl.h"
#include "core/cpu/row_average_conv2d-inl.h"
#include "core/cpu/row_average_conv2d_backward-inl.h"
#include "core/cpu/table-inl.h"
#include "core/cpu/simd/end-inl.h"
// clang-format on
