// Opens one instruction set: a kernels_<isa>.cpp defines SEPCONV_SIMD_<ISA> and includes bodies-inl.h.
// torch's extension builder has no flags for single files, hence the pragmas. Standard headers come first:
// nothing of theirs may be compiled for an instruction set that the machine may lack.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/axis.h"
#include "core/cpu/kernels.h"
#include "core/dtypes.h"
#include "core/parallel.h"
#include "core/params.h"
#include "core/plan.h"
#include "core/scratch.h"

// Each level of this ladder is the one below and a few instructions more.
#ifdef SEPCONV_SIMD_AMX
#define SEPCONV_SIMD_AVX512_BF16
#endif
#ifdef SEPCONV_SIMD_AVX512_BF16
#define SEPCONV_SIMD_AVX512
#endif
#ifdef SEPCONV_SIMD_NEON_BF16
#define SEPCONV_SIMD_NEON
#endif

#if defined(SEPCONV_SIMD_AVX2) || defined(SEPCONV_SIMD_AVX512)
#include <immintrin.h>
#elif defined(SEPCONV_SIMD_NEON)
#include <arm_neon.h>
#endif

#if defined(SEPCONV_SIMD_AMX)
#define SEPCONV_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,avx512bf16,amx-tile,amx-bf16"
#elif defined(SEPCONV_SIMD_AVX512_BF16)
#define SEPCONV_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,avx512bf16"
#elif defined(SEPCONV_SIMD_AVX512)
#define SEPCONV_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"
#elif defined(SEPCONV_SIMD_AVX2)
#define SEPCONV_TARGET "avx2,fma,f16c,bmi2"
#elif defined(SEPCONV_SIMD_NEON_BF16)
#define SEPCONV_TARGET "arch=armv8.2-a+bf16"
#endif

#ifdef SEPCONV_TARGET
#define SEPCONV_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define SEPCONV_OPEN_TARGET(isa) \
  SEPCONV_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#else
#define SEPCONV_OPEN_TARGET(isa) SEPCONV_PRAGMA(GCC push_options) SEPCONV_PRAGMA(GCC target(isa))
#endif
SEPCONV_OPEN_TARGET(SEPCONV_TARGET)
#endif

namespace sepconv {
namespace {

#if defined(SEPCONV_SIMD_AVX512)
#include "core/cpu/simd/avx512.h"
#ifdef SEPCONV_SIMD_AVX512_BF16
#include "core/cpu/simd/avx512_bf16.h"
#endif
#ifdef SEPCONV_SIMD_AMX
#include "core/cpu/simd/amx.h"
#elif defined(SEPCONV_SIMD_AVX512_BF16)
#include "core/cpu/simd/pair_rows.h"
#endif
#elif defined(SEPCONV_SIMD_AVX2)
#include "core/cpu/simd/avx2.h"
#elif defined(SEPCONV_SIMD_NEON)
#include "core/cpu/simd/neon.h"
#ifdef SEPCONV_SIMD_NEON_BF16
#include "core/cpu/simd/neon_bf16.h"
#include "core/cpu/simd/pair_rows.h"
#endif
#else
#include "core/cpu/simd/scalar.h"
#endif
#ifndef SEPCONV_SIMD_NEON
#include "core/cpu/simd/broadcast_factors.h"
#endif
