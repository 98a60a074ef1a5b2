// Moving values between storage (any dtype, layout and strides) and the compute type in channels-last order.

inline constexpr int64_t kLine = 64;  // bytes of a cache line

// Full and partial vectors of values, so that one body serves both.
template <class T>
struct FullVector {
  template <class S>
  Vec<T> read(const S* p) const {
    return load(p);
  }
  template <class S>
  void write(S* p, Vec<T> v) const {
    store(p, v);
  }
};
template <class T>
struct PartialVector {
  int lanes;
  template <class S>
  Vec<T> read(const S* p) const {
    return load(p, lanes);
  }
  template <class S>
  void write(S* p, Vec<T> v) const {
    store(p, v, lanes);
  }
};

// Calls body(vector policy, first index) over `count` values.
template <class T, class Body>
inline void for_each_vector(int64_t count, Body&& body) {
  int64_t c = 0;
  for (; c + Vec<T>::kLanes <= count; c += Vec<T>::kLanes) body(FullVector<T>{}, c);
  if (c < count) body(PartialVector<T>{static_cast<int>(count - c)}, c);
}

// dst[i] = src[i]; one side is the compute type of the other.
template <class S, class D>
inline void convert(const S* src, D* dst, int64_t n) {
  using T = std::conditional_t<std::is_same_v<S, Compute<S>>, S, D>;
  constexpr int kLanes = Vec<T>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load(src + i));
  if (i < n) store(dst + i, load(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

// The values themselves where they already have the compute type, else converted into `buffer`.
template <class S>
inline const Compute<S>* compute_values(const S* src, int64_t n, Compute<S>* buffer) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return src;
  } else {
    convert(src, buffer, n);
    return buffer;
  }
}

// dst[c * dst_ld + r] = src[r * src_ld + c], a square of registers at a time.
template <class S, class D>
inline void transpose_block(const S* src, int64_t src_ld, D* dst, int64_t dst_ld, int64_t rows,
                            int64_t columns) {
  using T = std::conditional_t<std::is_same_v<S, Compute<S>>, S, D>;
  constexpr int kLanes = Vec<T>::kLanes;
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int nr = static_cast<int>(std::min<int64_t>(kLanes, rows - r));
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int nc = static_cast<int>(std::min<int64_t>(kLanes, columns - c));
      const S* from = src + r * src_ld + c;
      D* to = dst + c * dst_ld + r;
      // Two arrays: one that loops index with a variable would live in memory for both.
      if (nr == kLanes && nc == kLanes) {
        Vec<T> square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load(from + i * src_ld);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + i * dst_ld, square[i]);
      } else {
        Vec<T> square[kLanes];
        for (int i = 0; i < kLanes; ++i) square[i] = i < nr ? load(from + i * src_ld, nc) : zero<T>();
        transpose(square);
        for (int i = 0; i < nc; ++i) store(to + i * dst_ld, square[i], nr);
      }
    }
  }
}

template <class S>
inline void convert_one(const S* src, Compute<S>* dst) {
  store(dst, load(src, 1), 1);
}
template <class S>
  requires(!std::is_same_v<S, Compute<S>>)
inline void convert_one(const Compute<S>* src, S* dst) {
  store(dst, load(src, 1), 1);
}

// Pixels of all images in (n, h, w) order, one after another, `stride_w` apart: what a kernel can read
// without copying.
inline bool pixels_are_linear(const Image& x) {
  return (x.h == 1 || x.stride_h == x.w * x.stride_w) && (x.n == 1 || x.stride_n == x.h * x.w * x.stride_w);
}
inline bool channels_are_adjacent(const Image& x) {
  return x.stride_c == 1 || x.c == 1;
}

// Calls body(offset of the run's first element in x, its first pixel counted from `first`, its length):
// pixels [first, first + count) of x cut where a constant stride_w does not lead on.
template <class Body>
inline void for_each_run(const Image& x, int64_t first, int64_t count, Body&& body) {
  const bool rows_join = x.h == 1 || x.stride_h == x.w * x.stride_w;
  const bool images_join = rows_join && pixels_are_linear(x);
  const int64_t run = images_join ? x.n * x.h * x.w : rows_join ? x.h * x.w : x.w;
  for (int64_t done = 0; done < count;) {
    const int64_t pixel = first + done, w = pixel % x.w, h = pixel / x.w % x.h, n = pixel / x.w / x.h;
    const int64_t length = std::min(count - done, run - pixel % run);
    body(n * x.stride_n + h * x.stride_h + w * x.stride_w, done, length);
    done += length;
  }
}

// dst[p * ld + c] = x[pixel first + p][channel c0 + c], for `count` pixels and `channels` channels.
template <class S>
inline void load_pixels(const Image& x, int64_t first, int64_t count, int64_t c0, int64_t channels,
                        Compute<S>* dst, int64_t ld) {
  const S* base = static_cast<const S*>(x.data) + c0 * x.stride_c;
  for_each_run(x, first, count, [&](int64_t offset, int64_t at, int64_t length) {
    const S* src = base + offset;
    Compute<S>* to = dst + at * ld;
    if (channels_are_adjacent(x)) {
      for (int64_t p = 0; p < length; ++p) convert(src + p * x.stride_w, to + p * ld, channels);
    } else if (x.stride_w == 1 || length == 1) {
      transpose_block(src, x.stride_c, to, ld, channels, length);
    } else {
      for (int64_t p = 0; p < length; ++p)
        for (int64_t c = 0; c < channels; ++c)
          convert_one(src + p * x.stride_w + c * x.stride_c, to + p * ld + c);
    }
  });
}

// x[pixel first + p][channel c0 + c] = src[p * ld + c].
template <class S>
inline void store_pixels(const Compute<S>* src, int64_t ld, const Image& x, int64_t first, int64_t count,
                         int64_t c0, int64_t channels) {
  S* base = static_cast<S*>(x.data) + c0 * x.stride_c;
  for_each_run(x, first, count, [&](int64_t offset, int64_t at, int64_t length) {
    S* dst = base + offset;
    const Compute<S>* from = src + at * ld;
    if (channels_are_adjacent(x)) {
      for (int64_t p = 0; p < length; ++p) convert(from + p * ld, dst + p * x.stride_w, channels);
    } else if (x.stride_w == 1 || length == 1) {
      transpose_block(from, ld, dst, x.stride_c, length, channels);
    } else {
      for (int64_t p = 0; p < length; ++p)
        for (int64_t c = 0; c < channels; ++c)
          convert_one(from + p * ld + c, dst + p * x.stride_w + c * x.stride_c);
    }
  });
}
