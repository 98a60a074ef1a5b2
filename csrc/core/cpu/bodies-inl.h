// Every kernel body, in order of dependence; included between simd/begin-inl.h and simd/end-inl.h.
// clang-format off: the order matters
#include "core/cpu/memory-inl.h"
#include "core/cpu/stages-inl.h"
#include "core/cpu/rows-inl.h"
#include "core/cpu/depthwise-inl.h"
#include "core/cpu/pointwise-inl.h"
#include "core/cpu/output-inl.h"
#include "core/cpu/separable_conv2d-inl.h"
#include "core/cpu/separable_conv2d_backward-inl.h"
#include "core/cpu/row_average-inl.h"
#include "core/cpu/row_average_conv2d-inl.h"
#include "core/cpu/row_average_conv2d_backward-inl.h"
#include "core/cpu/table-inl.h"
