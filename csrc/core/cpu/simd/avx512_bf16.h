// What AVX512-BF16 adds to the vocabulary of avx512.h: products of pairs of bfloat16, and their rounding.

// Sixteen pairs as sixteen floats, to be moved and not computed with; missing values are zero.
inline Vec<float> load_pairs(const BFloat16* p, int values) {
  const __mmask32 present = values >= 32 ? ~__mmask32{0} : (__mmask32{1} << values) - 1;
  return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(present, p))};
}

// Of each of up to sixteen columns a pair, from two rows, or with zeros from one.
inline Vec<float> interleave(const BFloat16* first, const BFloat16* second, int columns) {
  const auto present = static_cast<__mmask16>((1u << columns) - 1);
  __m512i pairs = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, first));
  if (second != nullptr)
    pairs = _mm512_or_si512(
        pairs, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, second)), 16));
  return {_mm512_castsi512_ps(pairs)};
}

inline void store_two(BFloat16* p, Vec<float> low, Vec<float> high) {
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)));
}

inline constexpr int64_t kPairColumns = 32;  // width of a packed weight panel

#ifndef SEPCONV_SIMD_AMX
inline constexpr int64_t kPairRows = 14, kPairRowsRead = 1;  // 28 accumulators, 2 weights

template <int kRows, int kVectors>
inline void multiply_rows(const BFloat16* panel, int64_t ld, const BFloat16* weights, int64_t depth,
                          float* sums, BFloat16* const* rounded) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 2, weights += 2 * kPairColumns) {
    __m512bh w[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      w[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(weights + 32 * v));
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      int pair;
      std::memcpy(&pair, panel + r * ld + k, sizeof pair);
      const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, w[v]);
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r) {
    if (rounded == nullptr) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(sums + r * kPairColumns + 16 * v, sum[r][v]);
    } else if constexpr (kVectors == 2) {
      store_two(rounded[r], {sum[r][0]}, {sum[r][1]});
    } else {
      store(rounded[r], Vec<float>{sum[r][0]});
    }
  }
}
#endif
