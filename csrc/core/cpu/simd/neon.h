// The vocabulary (see scalar.h) in NEON as every 64-bit Arm core has it.

template <class T>
struct Vec;
template <>
struct Vec<float> {
  static constexpr int kLanes = 4;
  float32x4_t v;
};
template <>
struct Vec<double> {
  static constexpr int kLanes = 2;
  float64x2_t v;
};

template <class T>
struct Registers {
  static constexpr std::array<int, 2> kTileRows{14, 9};    // accumulators, weights, a factor a row in 32
  static constexpr bool kMostTallest = true;               // those of the least moves
  static constexpr int kDepthUnroll = 1;                   // of a pointwise tile's loop
  static constexpr int kUnroll = 8;                        // depthwise outputs of one row at once
  static constexpr int kBlockRows = 4, kBlockOutputs = 4;  // of several rows
};

template <class T>
inline Vec<T> zero();
template <>
inline Vec<float> zero<float>() {
  return {vdupq_n_f32(0)};
}
template <>
inline Vec<double> zero<double>() {
  return {vdupq_n_f64(0)};
}
inline Vec<float> broadcast(float x) {
  return {vdupq_n_f32(x)};
}
inline Vec<double> broadcast(double x) {
  return {vdupq_n_f64(x)};
}

// Partial vectors lane by lane, two at once where there are two.
inline Vec<float> load(const float* p) {
  return {vld1q_f32(p)};
}
inline Vec<double> load(const double* p) {
  return {vld1q_f64(p)};
}
inline Vec<float> load(const float* p, int n) {
  switch (n) {
    case 0:
      return {vdupq_n_f32(0)};
    case 1:
      return {vld1q_lane_f32(p, vdupq_n_f32(0), 0)};
    case 2:
      return {vcombine_f32(vld1_f32(p), vdup_n_f32(0))};
    case 3:
      return {vld1q_lane_f32(p + 2, vcombine_f32(vld1_f32(p), vdup_n_f32(0)), 2)};
    default:
      return load(p);
  }
}
inline Vec<double> load(const double* p, int n) {
  if (n >= 2) return load(p);
  return n == 1 ? Vec<double>{vld1q_lane_f64(p, vdupq_n_f64(0), 0)} : zero<double>();
}
inline void store(float* p, Vec<float> a) {
  vst1q_f32(p, a.v);
}
inline void store(double* p, Vec<double> a) {
  vst1q_f64(p, a.v);
}
inline void store(float* p, Vec<float> a, int n) {
  if (n >= 4) return store(p, a);
  if (n >= 2) vst1_f32(p, vget_low_f32(a.v));
  if (n == 3) vst1q_lane_f32(p + 2, a.v, 2);
  if (n == 1) vst1q_lane_f32(p, a.v, 0);
}
inline void store(double* p, Vec<double> a, int n) {
  if (n >= 2) return store(p, a);
  if (n == 1) vst1q_lane_f64(p, a.v, 0);
}

inline uint16x4_t load_words(const void* from, int n) {
  const auto* p = static_cast<const uint16_t*>(from);
  if (n >= 4) return vld1_u16(p);
  uint16x4_t words = vdup_n_u16(0);
  if (n >= 1) words = vld1_lane_u16(p, words, 0);
  if (n >= 2) words = vld1_lane_u16(p + 1, words, 1);
  if (n >= 3) words = vld1_lane_u16(p + 2, words, 2);
  return words;
}
inline void store_words(void* to, uint16x4_t words, int n) {
  auto* p = static_cast<uint16_t*>(to);
  if (n >= 4) return vst1_u16(p, words);
  if (n >= 1) vst1_lane_u16(p, words, 0);
  if (n >= 2) vst1_lane_u16(p + 1, words, 1);
  if (n >= 3) vst1_lane_u16(p + 2, words, 2);
}

inline Vec<float> widen_bfloat16(uint16x4_t bits) {
  return {vreinterpretq_f32_u32(vshll_n_u16(bits, 16))};
}
inline uint16x4_t round_bfloat16(Vec<float> a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t number = vceqq_f32(a.v, a.v);
  return vshrn_n_u32(vbslq_u32(number, rounded, vdupq_n_u32(0x7fc00000)), 16);
}
inline Vec<float> load(const BFloat16* p) {
  return widen_bfloat16(load_words(p, 4));
}
inline Vec<float> load(const BFloat16* p, int n) {
  return widen_bfloat16(load_words(p, n));
}
inline void store(BFloat16* p, Vec<float> a) {
  store_words(p, round_bfloat16(a), 4);
}
inline void store(BFloat16* p, Vec<float> a, int n) {
  store_words(p, round_bfloat16(a), n);
}

inline Vec<float> load(const Float16* p, int n) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(load_words(p, n)))};
}
inline Vec<float> load(const Float16* p) {
  return load(p, 4);
}
inline void store(Float16* p, Vec<float> a, int n) {
  store_words(p, vreinterpret_u16_f16(vcvt_f16_f32(a.v)), n);
}
inline void store(Float16* p, Vec<float> a) {
  store(p, a, 4);
}

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {vfmaq_f64(c.v, a.v, b.v)};
}

// A multiplication takes one factor of its own from any lane.
template <class T>
struct LeftFactors {
  static constexpr int kCount = Vec<T>::kLanes;
  Vec<T> v;
};
[[gnu::always_inline]] inline LeftFactors<float> load_factors(const float* p, int n) {
  if (n >= 4) return {load(p)};
  if (n == 1) return {broadcast(*p)};
  const float32x4_t pair = vcombine_f32(vld1_f32(p), vdup_n_f32(0));
  return {{n == 2 ? pair : vld1q_lane_f32(p + 2, pair, 2)}};
}
[[gnu::always_inline]] inline LeftFactors<double> load_factors(const double* p, int n) {
  return {n >= 2 ? load(p) : broadcast(*p)};
}
inline Vec<float> fma(LeftFactors<float> a, int i, Vec<float> b, Vec<float> c) {
  switch (i) {
    case 0:
      return {vfmaq_laneq_f32(c.v, b.v, a.v.v, 0)};
    case 1:
      return {vfmaq_laneq_f32(c.v, b.v, a.v.v, 1)};
    case 2:
      return {vfmaq_laneq_f32(c.v, b.v, a.v.v, 2)};
    default:
      return {vfmaq_laneq_f32(c.v, b.v, a.v.v, 3)};
  }
}
inline Vec<double> fma(LeftFactors<double> a, int i, Vec<double> b, Vec<double> c) {
  return {i == 0 ? vfmaq_laneq_f64(c.v, b.v, a.v.v, 0) : vfmaq_laneq_f64(c.v, b.v, a.v.v, 1)};
}

inline Vec<float> add(Vec<float> a, Vec<float> b) {
  return {vaddq_f32(a.v, b.v)};
}
inline Vec<double> add(Vec<double> a, Vec<double> b) {
  return {vaddq_f64(a.v, b.v)};
}
inline Vec<float> mul(Vec<float> a, Vec<float> b) {
  return {vmulq_f32(a.v, b.v)};
}
inline Vec<double> mul(Vec<double> a, Vec<double> b) {
  return {vmulq_f64(a.v, b.v)};
}
// NEON's own maximum and minimum of a NaN are NaN.
inline Vec<float> max(Vec<float> a, Vec<float> b) {
  return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)};
}
inline Vec<double> max(Vec<double> a, Vec<double> b) {
  return {vbslq_f64(vcgtq_f64(a.v, b.v), a.v, b.v)};
}
inline Vec<float> min(Vec<float> a, Vec<float> b) {
  return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)};
}
inline Vec<double> min(Vec<double> a, Vec<double> b) {
  return {vbslq_f64(vcltq_f64(a.v, b.v), a.v, b.v)};
}
inline Vec<float> keep_above(Vec<float> g, Vec<float> x, float low) {
  const uint32x4_t drop = vcleq_f32(x.v, vdupq_n_f32(low));
  return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(g.v), drop))};
}
inline Vec<double> keep_above(Vec<double> g, Vec<double> x, double low) {
  const uint64x2_t drop = vcleq_f64(x.v, vdupq_n_f64(low));
  return {vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(g.v), drop))};
}

inline void transpose(Vec<double> (&r)[2]) {
  const float64x2_t low = vtrn1q_f64(r[0].v, r[1].v);
  r[1].v = vtrn2q_f64(r[0].v, r[1].v);
  r[0].v = low;
}
inline void transpose(Vec<float> (&r)[4]) {
  const auto pairs = [](float32x4_t a) { return vreinterpretq_f64_f32(a); };
  const auto lanes = [](float64x2_t a) { return vreinterpretq_f32_f64(a); };
  const float64x2_t s0 = pairs(vtrn1q_f32(r[0].v, r[1].v)), s1 = pairs(vtrn2q_f32(r[0].v, r[1].v)),
                    s2 = pairs(vtrn1q_f32(r[2].v, r[3].v)), s3 = pairs(vtrn2q_f32(r[2].v, r[3].v));
  r[0].v = lanes(vtrn1q_f64(s0, s2));
  r[1].v = lanes(vtrn1q_f64(s1, s3));
  r[2].v = lanes(vtrn2q_f64(s0, s2));
  r[3].v = lanes(vtrn2q_f64(s1, s3));
}

inline void deinterleave(Vec<float>& a, Vec<float>& b) {
  const float32x4_t even = vuzp1q_f32(a.v, b.v);
  b.v = vuzp2q_f32(a.v, b.v);
  a.v = even;
}
inline void deinterleave(Vec<double>& a, Vec<double>& b) {
  const float64x2_t even = vuzp1q_f64(a.v, b.v);
  b.v = vuzp2q_f64(a.v, b.v);
  a.v = even;
}

// There is no intrinsic for STNP. Its stores keep the order that any others keep between threads.
inline void stream_line(const void* from, void* to) {
  const auto* source = static_cast<const uint8_t*>(from);
  auto* target = static_cast<uint8_t*>(to);
  for (int i = 0; i < 64; i += 32)
    asm volatile("stnp %q0, %q1, [%2]"
                 :
                 : "w"(vld1q_u8(source + i)), "w"(vld1q_u8(source + i + 16)), "r"(target + i)
                 : "memory");
}
inline void stream_fence() {}
