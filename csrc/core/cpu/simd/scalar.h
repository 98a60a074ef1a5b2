// The vocabulary in plain C++: the specification of the others, and the fallback of any machine.
//
// A vocabulary defines Vec<float> and Vec<double> with kLanes, and for both:
//   zero<T>()  broadcast(x)  load(p)  load(p, n)  store(p, v)  store(p, v, n)
//     n lanes; the others read as 0, stay unwritten
//   fma(a, b, c) = a * b + c   add   mul   max(a, b), min(a, b): b where either is NaN
//   keep_above(g, x, low): g where x > low or x is NaN, else 0
//   transpose(rows[kLanes])   deinterleave(a, b): of a and b in order, even ones in a, odd in b
//   LeftFactors<T>: kCount left factors of a matrix product   load_factors(p, n): the first n of them
//     fma(factors, i, b, c) = factors[i] * b + c
//   stream_line(from, to)   64 bytes past the caches, `to` at a line; stream_fence() after the last
// load and store also take BFloat16 and Float16 for Vec<float>: widened on load, rounded to nearest
// even on store. Registers<T> names the register tiles the kernels use.

template <class T>
struct Vec {
  typedef T Lanes [[gnu::vector_size(16)]];  // the compiler's own vectors: of what the target has, or loops
  static constexpr int kLanes = 16 / sizeof(T);
  Lanes lane;
};

template <class T>
struct Registers {
  static constexpr std::array<int, 2> kTileRows{4, 4};     // of a pointwise tile one and two vectors wide
  static constexpr bool kMostTallest = false;              // see multiply()
  static constexpr int kDepthUnroll = 2;                   // of a pointwise tile's loop
  static constexpr int kUnroll = 4;                        // depthwise outputs of one row at once
  static constexpr int kBlockRows = 2, kBlockOutputs = 2;  // of several rows
};

template <class T>
inline Vec<T> broadcast(T x) {
  return {x - typename Vec<T>::Lanes{}};
}
template <class T>
inline Vec<T> zero() {
  return broadcast(T(0));
}

inline float widen(float x) {
  return x;
}
inline double widen(double x) {
  return x;
}
inline float widen(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
inline float widen(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 0x1f,
                 mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {  // subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

inline void narrow(float x, float* p) {
  *p = x;
}
inline void narrow(double x, double* p) {
  *p = x;
}
inline void narrow(float x, BFloat16* p) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void narrow(float x, Float16* p) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000u,
                 magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    p->bits = static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    p->bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude <
             0x38800000u) {  // below 2^-14: adding 0.5 aligns the mantissa to 2^-24 and rounds to even
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    p->bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
  } else {
    p->bits =
        static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13));
  }
}

template <class S>
inline Vec<Compute<S>> load(const S* p, int n) {
  Vec<Compute<S>> v = zero<Compute<S>>();
  for (int i = 0; i < n; ++i) v.lane[i] = widen(p[i]);
  return v;
}
template <class S>
inline Vec<Compute<S>> load(const S* p) {
  if constexpr (!std::is_same_v<S, Compute<S>>) return load(p, Vec<Compute<S>>::kLanes);
  Vec<Compute<S>> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class S>
inline void store(S* p, Vec<Compute<S>> v, int n) {
  for (int i = 0; i < n; ++i) narrow(v.lane[i], p + i);
}
template <class S>
inline void store(S* p, Vec<Compute<S>> v) {
  if constexpr (!std::is_same_v<S, Compute<S>>) return store(p, v, Vec<Compute<S>>::kLanes);
  std::memcpy(p, &v, sizeof(v));
}

template <class T>
inline Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return {c.lane + a.lane * b.lane};
}
template <class T>
inline Vec<T> add(Vec<T> a, Vec<T> b) {
  return {a.lane + b.lane};
}
template <class T>
inline Vec<T> mul(Vec<T> a, Vec<T> b) {
  return {a.lane * b.lane};
}
template <class T>
inline Vec<T> max(Vec<T> a, Vec<T> b) {
  return {a.lane > b.lane ? a.lane : b.lane};
}
template <class T>
inline Vec<T> min(Vec<T> a, Vec<T> b) {
  return {a.lane < b.lane ? a.lane : b.lane};
}
template <class T>
inline Vec<T> keep_above(Vec<T> g, Vec<T> x, T low) {
  return {x.lane <= broadcast(low).lane ? zero<T>().lane : g.lane};
}

template <class T>
inline void transpose(Vec<T> (&rows)[Vec<T>::kLanes]) {
  for (int i = 0; i < Vec<T>::kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const T x = rows[i].lane[j];
      rows[i].lane[j] = rows[j].lane[i], rows[j].lane[i] = x;
    }
}

template <class T>
inline void deinterleave(Vec<T>& a, Vec<T>& b) {
  constexpr int kLanes = Vec<T>::kLanes;
  const Vec<T> values[2] = {a, b};
  for (int i = 0; i < kLanes; ++i) {
    a.lane[i] = values[2 * i / kLanes].lane[2 * i % kLanes];
    b.lane[i] = values[(2 * i + 1) / kLanes].lane[(2 * i + 1) % kLanes];
  }
}

inline void stream_line(const void* from, void* to) {
  std::memcpy(to, from, 64);
}
inline void stream_fence() {}
