// What the bfloat16 instructions of Armv8.6 (FEAT_BF16) add to the vocabulary of neon.h: products of pairs of
// bfloat16, and their rounding.

inline constexpr int64_t kPairRows = 9, kPairRowsRead = 1;  // 18 accumulators, 2 weights, a factor a row
inline constexpr int64_t kPairColumns = 8;

// Four pairs as four floats, to be moved and not computed with; missing values are zero.
inline Vec<float> load_pairs(const BFloat16* p, int values) {
  uint16_t present[8] = {};
  const void* from = p;
  if (values < 8) {
    std::memcpy(present, p, 2 * static_cast<size_t>(values));
    from = present;
  }
  return {vreinterpretq_f32_u16(vld1q_u16(static_cast<const uint16_t*>(from)))};
}

// Of each of up to four columns a pair, from two rows, or with zeros from one.
inline Vec<float> interleave(const BFloat16* first, const BFloat16* second, int columns) {
  const auto read = [columns](const void* from) {
    uint16_t present[4] = {};
    if (columns == 4) return vmovl_u16(vld1_u16(static_cast<const uint16_t*>(from)));
    std::memcpy(present, from, 2 * static_cast<size_t>(columns));
    return vmovl_u16(vld1_u16(present));
  };
  uint32x4_t pairs = read(first);
  if (second != nullptr) pairs = vorrq_u32(pairs, vshlq_n_u32(read(second), 16));
  return {vreinterpretq_f32_u32(pairs)};
}

inline void store_two(BFloat16* p, Vec<float> low, Vec<float> high) {
  const bfloat16x8_t both = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low.v), high.v);
  vst1q_u16(reinterpret_cast<uint16_t*>(p), vreinterpretq_u16_bf16(both));
}

inline bfloat16x8_t load_eight(const BFloat16* p) {
  return vreinterpretq_bf16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
}
// sum + w . the pair in a lane of x, for each of four columns
template <int kLane>
[[gnu::always_inline]] inline float32x4_t dot(float32x4_t sum, bfloat16x8_t w, bfloat16x8_t x) {
  return vbfdotq_laneq_f32(sum, w, x, kLane);
}
template <int kLane, int kRows, int kVectors>
[[gnu::always_inline]] inline void add_pair(float32x4_t (&sum)[kRows][kVectors],
                                            const bfloat16x8_t (&x)[kRows], const BFloat16* weights) {
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const bfloat16x8_t w = load_eight(weights + kLane * 2 * kPairColumns + 8 * v);
#pragma GCC unroll 9
    for (int r = 0; r < kRows; ++r) sum[r][v] = dot<kLane>(sum[r][v], w, x[r]);
  }
}

template <int kRows, int kVectors>
inline void multiply_rows(const BFloat16* panel, int64_t ld, const BFloat16* weights, int64_t depth,
                          float* sums, BFloat16* const* rounded) {
  constexpr int64_t kDepth = 8;  // of a vector; panel and weights are padded with zeros to more
  float32x4_t sum[kRows][kVectors];
#pragma GCC unroll 9
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = vdupq_n_f32(0);
  for (int64_t k = 0; k < depth; k += kDepth, weights += kDepth * kPairColumns) {
    bfloat16x8_t x[kRows];
#pragma GCC unroll 9
    for (int r = 0; r < kRows; ++r) x[r] = load_eight(panel + r * ld + k);
    add_pair<0>(sum, x, weights);
    add_pair<1>(sum, x, weights);
    add_pair<2>(sum, x, weights);
    add_pair<3>(sum, x, weights);
  }
#pragma GCC unroll 9
  for (int r = 0; r < kRows; ++r) {
    if (rounded == nullptr) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) vst1q_f32(sums + r * kPairColumns + 4 * v, sum[r][v]);
    } else if constexpr (kVectors == 2) {
      store_two(rounded[r], {sum[r][0]}, {sum[r][1]});
    } else {
      store(rounded[r], Vec<float>{sum[r][0]});
    }
  }
}
