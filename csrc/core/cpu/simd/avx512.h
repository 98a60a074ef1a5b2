// The vocabulary (see scalar.h) in AVX-512 F, BW, DQ and VL.

template <class T>
struct Vec;
template <>
struct Vec<float> {
  static constexpr int kLanes = 16;
  __m512 v;
};
template <>
struct Vec<double> {
  static constexpr int kLanes = 8;
  __m512d v;
};

template <class T>
struct Registers {
  // Accumulators, weights and a broadcast in 32 registers. Four vectors take the fewest instructions a
  // multiply-add, which counts where the front end is shared with another thread.
  static constexpr std::array<int, 4> kTileRows{14, 14, 9, 6};
  static constexpr bool kMostTallest = false;
  static constexpr int kDepthUnroll = 2;                   // of a pointwise tile's loop
  static constexpr int kUnroll = 8;                        // depthwise outputs of one row at once
  static constexpr int kBlockRows = 4, kBlockOutputs = 4;  // of several rows
};

inline __mmask16 first(int n) {
  return static_cast<__mmask16>((1u << n) - 1);
}

template <class T>
inline Vec<T> zero();
template <>
inline Vec<float> zero<float>() {
  return {_mm512_setzero_ps()};
}
template <>
inline Vec<double> zero<double>() {
  return {_mm512_setzero_pd()};
}
inline Vec<float> broadcast(float x) {
  return {_mm512_set1_ps(x)};
}
inline Vec<double> broadcast(double x) {
  return {_mm512_set1_pd(x)};
}

inline Vec<float> load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline Vec<double> load(const double* p) {
  return {_mm512_loadu_pd(p)};
}
inline Vec<float> load(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first(n), p)};
}
inline Vec<double> load(const double* p, int n) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(first(n)), p)};
}
inline void store(float* p, Vec<float> a) {
  _mm512_storeu_ps(p, a.v);
}
inline void store(double* p, Vec<double> a) {
  _mm512_storeu_pd(p, a.v);
}
inline void store(float* p, Vec<float> a, int n) {
  _mm512_mask_storeu_ps(p, first(n), a.v);
}
inline void store(double* p, Vec<double> a, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first(n)), a.v);
}

inline Vec<float> widen_bfloat16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline __m256i round_bfloat16(Vec<float> a) {
#ifdef SEPCONV_SIMD_AVX512_BF16
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
#endif
}
inline Vec<float> load(const BFloat16* p) {
  return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec<float> load(const BFloat16* p, int n) {
  return widen_bfloat16(_mm256_maskz_loadu_epi16(first(n), p));
}
inline void store(BFloat16* p, Vec<float> a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_bfloat16(a));
}
inline void store(BFloat16* p, Vec<float> a, int n) {
  _mm256_mask_storeu_epi16(p, first(n), round_bfloat16(a));
}

inline Vec<float> load(const Float16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec<float> load(const Float16* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
}
inline void store(Float16* p, Vec<float> a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(Float16* p, Vec<float> a, int n) {
  _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
inline Vec<float> add(Vec<float> a, Vec<float> b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vec<double> add(Vec<double> a, Vec<double> b) {
  return {_mm512_add_pd(a.v, b.v)};
}
inline Vec<float> mul(Vec<float> a, Vec<float> b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec<double> mul(Vec<double> a, Vec<double> b) {
  return {_mm512_mul_pd(a.v, b.v)};
}
inline Vec<float> max(Vec<float> a, Vec<float> b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline Vec<double> max(Vec<double> a, Vec<double> b) {
  return {_mm512_max_pd(a.v, b.v)};
}
inline Vec<float> min(Vec<float> a, Vec<float> b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline Vec<double> min(Vec<double> a, Vec<double> b) {
  return {_mm512_min_pd(a.v, b.v)};
}
inline Vec<float> keep_above(Vec<float> g, Vec<float> x, float low) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(low), _CMP_NLE_UQ), g.v)};
}
inline Vec<double> keep_above(Vec<double> g, Vec<double> x, double low) {
  return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x.v, _mm512_set1_pd(low), _CMP_NLE_UQ), g.v)};
}

// Pairs of lanes, pairs of pairs, then two rounds of 128-bit blocks.
inline void transpose(Vec<float> (&r)[16]) {
  __m512 s[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    s[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m512 t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    t[i] = _mm512_shuffle_ps(s[i], s[i + 2], 0x44);
    t[i + 1] = _mm512_shuffle_ps(s[i], s[i + 2], 0xee);
    t[i + 2] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    t[i + 3] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    s[i] = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
    s[i + 4] = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
    s[i + 8] = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
    s[i + 12] = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i].v = _mm512_shuffle_f32x4(s[i], s[i + 8], 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(s[i], s[i + 8], 0xdd);
  }
}
inline void transpose(Vec<double> (&r)[8]) {
  __m512d s[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm512_unpacklo_pd(r[i].v, r[i + 1].v);
    s[i + 1] = _mm512_unpackhi_pd(r[i].v, r[i + 1].v);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    t[i] = _mm512_shuffle_f64x2(s[i], s[i + 2], 0x88);
    t[i + 2] = _mm512_shuffle_f64x2(s[i], s[i + 2], 0xdd);
    t[i + 4] = _mm512_shuffle_f64x2(s[i + 4], s[i + 6], 0x88);
    t[i + 6] = _mm512_shuffle_f64x2(s[i + 4], s[i + 6], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm512_shuffle_f64x2(t[i], t[i + 4], 0x88);
    r[i + 4].v = _mm512_shuffle_f64x2(t[i], t[i + 4], 0xdd);
  }
}

inline void deinterleave(Vec<float>& a, Vec<float>& b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512 low = a.v, high = b.v;
  a.v = _mm512_permutex2var_ps(low, even, high);
  b.v = _mm512_permutex2var_ps(low, odd, high);
}
inline void deinterleave(Vec<double>& a, Vec<double>& b) {
  const __m512d low = a.v, high = b.v;
  a.v = _mm512_permutex2var_pd(low, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), high);
  b.v = _mm512_permutex2var_pd(low, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), high);
}

inline void stream_line(const void* from, void* to) {
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
inline void stream_fence() {
  _mm_sfence();
}
