// Left factors for vocabularies whose broadcasts come from memory: one at a time.

template <class T>
struct LeftFactors {
  static constexpr int kCount = 1;
  Vec<T> v;
};
template <class T>
inline LeftFactors<T> load_factors(const T* p, int) {
  return {broadcast(*p)};
}
template <class T>
inline Vec<T> fma(LeftFactors<T> a, int, Vec<T> b, Vec<T> c) {
  return fma(a.v, b, c);
}
