// The vocabulary (see scalar.h) in AVX2, FMA and F16C.

template <class T>
struct Vec;
template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  __m256 v;
};
template <>
struct Vec<double> {
  static constexpr int kLanes = 4;
  __m256d v;
};

template <class T>
struct Registers {
  static constexpr std::array<int, 2> kTileRows{12, 6};  // accumulators, weights and a broadcast in 16
  static constexpr bool kMostTallest = false;
  static constexpr int kDepthUnroll = 2;                   // of a pointwise tile's loop
  static constexpr int kUnroll = 6;                        // depthwise outputs of one row at once
  static constexpr int kBlockRows = 2, kBlockOutputs = 4;  // of several rows
};

inline __m256i first32(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first64(int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

template <class T>
inline Vec<T> zero();
template <>
inline Vec<float> zero<float>() {
  return {_mm256_setzero_ps()};
}
template <>
inline Vec<double> zero<double>() {
  return {_mm256_setzero_pd()};
}
inline Vec<float> broadcast(float x) {
  return {_mm256_set1_ps(x)};
}
inline Vec<double> broadcast(double x) {
  return {_mm256_set1_pd(x)};
}

inline Vec<float> load(const float* p) {
  return {_mm256_loadu_ps(p)};
}
inline Vec<double> load(const double* p) {
  return {_mm256_loadu_pd(p)};
}
inline Vec<float> load(const float* p, int n) {
  return {_mm256_maskload_ps(p, first32(n))};
}
inline Vec<double> load(const double* p, int n) {
  return {_mm256_maskload_pd(p, first64(n))};
}
inline void store(float* p, Vec<float> a) {
  _mm256_storeu_ps(p, a.v);
}
inline void store(double* p, Vec<double> a) {
  _mm256_storeu_pd(p, a.v);
}
inline void store(float* p, Vec<float> a, int n) {
  _mm256_maskstore_ps(p, first32(n), a.v);
}
inline void store(double* p, Vec<double> a, int n) {
  _mm256_maskstore_pd(p, first64(n), a.v);
}

inline Vec<float> widen_bfloat16(__m128i bits) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
inline __m128i round_bfloat16(Vec<float> a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0xd8);
  return _mm256_castsi256_si128(packed);
}

// AVX2 has no masked access to 16-bit lanes: partial vectors pass through the stack.
template <class S>
inline __m128i load_words(const S* p, int n) {
  alignas(16) uint16_t words[8] = {};
  std::memcpy(words, p, static_cast<size_t>(n) * sizeof(S));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(words));
}
template <class S>
inline void store_words(S* p, __m128i bits, int n) {
  alignas(16) uint16_t words[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(words), bits);
  std::memcpy(p, words, static_cast<size_t>(n) * sizeof(S));
}
inline Vec<float> load(const BFloat16* p) {
  return widen_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec<float> load(const BFloat16* p, int n) {
  return widen_bfloat16(load_words(p, n));
}
inline void store(BFloat16* p, Vec<float> a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_bfloat16(a));
}
inline void store(BFloat16* p, Vec<float> a, int n) {
  store_words(p, round_bfloat16(a), n);
}

inline Vec<float> load(const Float16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Vec<float> load(const Float16* p, int n) {
  return {_mm256_cvtph_ps(load_words(p, n))};
}
inline void store(Float16* p, Vec<float> a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(Float16* p, Vec<float> a, int n) {
  store_words(p, _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT), n);
}

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
inline Vec<float> add(Vec<float> a, Vec<float> b) {
  return {_mm256_add_ps(a.v, b.v)};
}
inline Vec<double> add(Vec<double> a, Vec<double> b) {
  return {_mm256_add_pd(a.v, b.v)};
}
inline Vec<float> mul(Vec<float> a, Vec<float> b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
inline Vec<double> mul(Vec<double> a, Vec<double> b) {
  return {_mm256_mul_pd(a.v, b.v)};
}
inline Vec<float> max(Vec<float> a, Vec<float> b) {
  return {_mm256_max_ps(a.v, b.v)};
}
inline Vec<double> max(Vec<double> a, Vec<double> b) {
  return {_mm256_max_pd(a.v, b.v)};
}
inline Vec<float> min(Vec<float> a, Vec<float> b) {
  return {_mm256_min_ps(a.v, b.v)};
}
inline Vec<double> min(Vec<double> a, Vec<double> b) {
  return {_mm256_min_pd(a.v, b.v)};
}
inline Vec<float> keep_above(Vec<float> g, Vec<float> x, float low) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(low), _CMP_NLE_UQ), g.v)};
}
inline Vec<double> keep_above(Vec<double> g, Vec<double> x, double low) {
  return {_mm256_and_pd(_mm256_cmp_pd(x.v, _mm256_set1_pd(low), _CMP_NLE_UQ), g.v)};
}

inline void transpose(Vec<float> (&r)[8]) {
  __m256 s[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    s[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    t[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    t[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    t[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    t[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
}
inline void transpose(Vec<double> (&r)[4]) {
  const __m256d s0 = _mm256_unpacklo_pd(r[0].v, r[1].v), s1 = _mm256_unpackhi_pd(r[0].v, r[1].v);
  const __m256d s2 = _mm256_unpacklo_pd(r[2].v, r[3].v), s3 = _mm256_unpackhi_pd(r[2].v, r[3].v);
  r[0].v = _mm256_permute2f128_pd(s0, s2, 0x20);
  r[1].v = _mm256_permute2f128_pd(s1, s3, 0x20);
  r[2].v = _mm256_permute2f128_pd(s0, s2, 0x31);
  r[3].v = _mm256_permute2f128_pd(s1, s3, 0x31);
}

inline void deinterleave(Vec<float>& a, Vec<float>& b) {
  const __m256 even = _mm256_shuffle_ps(a.v, b.v, 0x88), odd = _mm256_shuffle_ps(a.v, b.v, 0xdd);
  a.v = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8));
  b.v = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8));
}
inline void deinterleave(Vec<double>& a, Vec<double>& b) {
  const __m256d even = _mm256_unpacklo_pd(a.v, b.v), odd = _mm256_unpackhi_pd(a.v, b.v);
  a.v = _mm256_permute4x64_pd(even, 0xd8);
  b.v = _mm256_permute4x64_pd(odd, 0xd8);
}

inline void stream_line(const void* from, void* to) {
  const __m256i *a = static_cast<const __m256i*>(from), low = _mm256_loadu_si256(a),
                high = _mm256_loadu_si256(a + 1);
  _mm256_stream_si256(static_cast<__m256i*>(to), low);
  _mm256_stream_si256(static_cast<__m256i*>(to) + 1, high);
}
inline void stream_fence() {
  _mm_sfence();
}
