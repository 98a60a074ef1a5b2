// The depthwise convolution of one channel at a time, vectorised over the pixels of a row: what NCHW tensors
// need. Rows pass through a zero-padded buffer that stays in L1, so that borders, strides, dtypes and the
// prologue need no code of their own in the sums. The order of additions of one output is that of
// depthwise-inl.h.

template <class S>
struct PackedLayout;  // separable_conv2d-inl.h

// One value of a stage for all lanes.
template <class T>
struct ScalarStage {
  const T* scale = nullptr;
  const T* shift = nullptr;
  Activation activation = Activation::kNone;

  ScalarStage(const Stage<T>& stage, int64_t channel)
      : scale(stage.scale == nullptr ? nullptr : stage.scale + channel),
        shift(stage.shift == nullptr ? nullptr : stage.shift + channel),
        activation(stage.activation) {}
  bool empty() const { return scale == nullptr && shift == nullptr && activation == Activation::kNone; }
  Vec<T> affine(Vec<T> x) const {
    if (scale != nullptr) return fma(x, broadcast(*scale), shift != nullptr ? broadcast(*shift) : zero<T>());
    return shift != nullptr ? add(x, broadcast(*shift)) : x;
  }
  Vec<T> operator()(Vec<T> x) const { return activate(affine(x), activation); }
};

// Columns of a row with its padding: those of one residue modulo the stride lie together, so that every tap
// of neighbouring outputs reads neighbours.
struct PaddedColumns {
  PaddedColumns(const Window& window, int64_t input, int64_t output)
      : stride(window.stride[1]), padding(window.padding[1]) {
    const int64_t columns = (output - 1) * stride + window.dilation[1] * (window.kernel[1] - 1) + 1;
    values = std::clamp<int64_t>(columns - padding, 0, input);
    plane = divide_up(columns, stride);
    pitch = plane * stride;
  }
  int64_t at(int64_t column) const { return column % stride * plane + column / stride; }

  // From the first `values` columns of a row of the input.
  template <class T>
  void place(const T* row, T* to) const {
    stride == 2 ? place(row, to, std::integral_constant<int64_t, 2>{}) : place(row, to, stride);
  }
  // A step that the compiler knows becomes shuffles of vectors.
  template <class T, class Step>
  void place(const T* row, T* to, Step step) const {
    for (int64_t begin = 0; begin < std::min<int64_t>(step, values); ++begin) {
      const T* from = row + begin;
      T* plane_of = to + at(begin + padding);
      const int64_t count = divide_up(values - begin, step);
      for (int64_t i = 0; i < count; ++i) plane_of[i] = from[i * step];
    }
  }

  int64_t stride, padding;
  int64_t values;  // input columns that some window covers
  int64_t plane, pitch;
};

// Outputs x of kRows rows of a kSide x kSide window, `pitch` between its rows and taps[t] to its columns. The
// outputs' rows are kStep rows of the input apart and share what they load.
template <int kSide, int kRows, int kStep, class T>
inline void sum_square(const T* source, int64_t pitch, const int64_t* taps, const T* weights,
                       const ScalarStage<T>& stage, T* to, int64_t to_step, int64_t count) {
  Vec<T> w[kSide * kSide];
#pragma GCC unroll 25
  for (int t = 0; t < kSide * kSide; ++t) w[t] = broadcast(weights[t]);
  const bool plain = stage.empty();
  for_each_vector<T>(count, [&](auto vector, int64_t x) {
    Vec<T> sums[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[r] = zero<T>();
#pragma GCC unroll 11
    for (int i = 0; i < (kRows - 1) * kStep + kSide; ++i)
#pragma GCC unroll 5
      for (int t = 0; t < kSide; ++t) {
        const Vec<T> value = vector.read(source + i * pitch + taps[t] + x);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          if (i >= r * kStep && i < r * kStep + kSide)
            sums[r] = fma(value, w[(i - r * kStep) * kSide + t], sums[r]);
      }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) vector.write(to + r * to_step + x, plain ? sums[r] : stage(sums[r]));
  });
}

// Any window, one row: kVectors vectors of outputs share each weight.
template <int kVectors, class T, class Vector>
inline void sum_vectors(const T* source, int64_t pitch, int64_t height, const int64_t* taps, int64_t width,
                        const T* weights, const ScalarStage<T>& stage, T* to, Vector vector) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> sums[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums[v] = zero<T>();
  for (int64_t i = 0; i < height; ++i)
    for (int64_t t = 0; t < width; ++t) {
      const Vec<T> w = broadcast(weights[i * width + t]);
      const T* from = source + i * pitch + taps[t];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[v] = fma(vector.read(from + v * kLanes), w, sums[v]);
    }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) vector.write(to + v * kLanes, stage(sums[v]));
}
template <class T>
inline void sum_window(const T* source, int64_t pitch, int64_t height, const int64_t* taps, int64_t width,
                       const T* weights, const ScalarStage<T>& stage, T* to, int64_t count) {
  int64_t x = 0;
  const auto sum = [&](auto vectors, auto vector) {
    sum_vectors<vectors>(source + x, pitch, height, taps, width, weights, stage, to + x, vector);
    x += vectors * Vec<T>::kLanes;
  };
  while (x + 4 * Vec<T>::kLanes <= count) sum(std::integral_constant<int, 4>{}, FullVector<T>{});
  while (x + 2 * Vec<T>::kLanes <= count) sum(std::integral_constant<int, 2>{}, FullVector<T>{});
  if (x + Vec<T>::kLanes <= count) sum(std::integral_constant<int, 1>{}, FullVector<T>{});
  if (x < count) sum(std::integral_constant<int, 1>{}, PartialVector<T>{static_cast<int>(count - x)});
}

template <class S>
class ChannelDepthwise {
 public:
  using T = Compute<S>;

  // For runs of at most `pixels` output pixels; prologue by input channel, middle by depthwise channel.
  ChannelDepthwise(const SeparableConv2dParams& p, const Stage<T>& prologue, const Stage<T>& middle,
                   int64_t pixels, Scratch& task)
      : p_(p), prologue_(prologue), middle_(middle), columns_(p.window, p.input.w, p.output.w), task_(task) {
    const Window& v = p.window;
    const int64_t rows = std::min(p.output.h, (pixels + p.output.w - 2) / p.output.w + 1);
    size_ = ((rows - 1) * v.stride[0] + (v.kernel[0] - 1) * v.dilation[0] + 1) * columns_.pitch;
    rows_slot_ = task.add<T>(size_);
    row_slot_ = task.add<T>(columns_.stride == 1 ? 0 : columns_.values);
    weights_slot_ =
        task.add<T>(std::is_same_v<S, T> && p.packed_weights == nullptr ? 0 : v.kernel[0] * v.kernel[1]);
    taps_.reserve(static_cast<size_t>(v.kernel[1]));
    for (int64_t t = 0; t < v.kernel[1]; ++t) taps_.push_back(columns_.at(t * v.dilation[1]));
  }
  // Once the scratch has its size: the padding stays zero from here on.
  void prepare() {
    rows_ = task_.template get<T>(rows_slot_);
    if (!task_.only_counts()) std::fill(rows_, rows_ + size_, T(0));
  }

  // Depthwise channels [c * m, (c + 1) * m) of pixels [first, first + count), m the depth multiplier, into
  // rows `to_step` apart.
  void run(int64_t c, int64_t first, int64_t count, T* to, int64_t to_step) {
    const Image& out = p_.output;
    const int64_t m = p_.depth_multiplier;
    for (int64_t done = 0; done < count;) {
      const int64_t pixel = first + done, n = pixel / (out.h * out.w), at = pixel % (out.h * out.w),
                    length = std::min(count - done, out.h * out.w - at);
      load_rows(c, n, at / out.w, (at + length - 1) / out.w);
      if (c + kChannelsAhead < p_.input.c) prefetch(c + kChannelsAhead, first + done, length);
      for (int64_t i = 0; i < m; ++i) {
        sum(weights_of(c * m + i), ScalarStage<T>(middle_, c * m + i), at % out.w, length,
            to + i * to_step + done);
      }
      done += length;
    }
  }

 private:
  // The taps of a depthwise channel, which packed weights have in other channels' company.
  const T* weights_of(int64_t channel) const {
    const int64_t taps = p_.window.kernel[0] * p_.window.kernel[1];
    T* own = task_.template get<T>(weights_slot_);
    if (p_.packed_weights == nullptr && p_.depthwise_weight == nullptr) {
      own[0] = 1;
      return own;
    }
    if (p_.packed_weights == nullptr)
      return compute_values(static_cast<const S*>(p_.depthwise_weight) + channel * taps, taps, own);
    const T* packed = static_cast<const T*>(p_.packed_weights) + channel;
    const int64_t ld = PackedLayout<S>(p_).ld;
    for (int64_t t = 0; t < taps; ++t) own[t] = packed[t * ld];
    return own;
  }
  // Asks for the rows of channel c under pixels [first, first + count) of one image: short runs in as many
  // pages as there are channels, which the hardware does not follow.
  void prefetch(int64_t c, int64_t first, int64_t count) const {
    const Image &x = p_.input, &out = p_.output;
    const Window& v = p_.window;
    const int64_t n = first / (out.h * out.w), at = first % (out.h * out.w),
                  last = std::min(at + count, out.h * out.w) - 1;
    const int64_t top = at / out.w * v.stride[0] - v.padding[0],
                  bottom = last / out.w * v.stride[0] - v.padding[0] + (v.kernel[0] - 1) * v.dilation[0];
    const S* channel = static_cast<const S*>(x.data) + n * x.stride_n + c * x.stride_c;
    const int64_t h0 = std::max<int64_t>(0, top), h1 = std::min(bottom, x.h - 1);
    constexpr int64_t kStep = kLine / sizeof(S);
    if (x.stride_h == x.w) {
      for (int64_t i = h0 * x.w; i < (h1 + 1) * x.w; i += kStep) __builtin_prefetch(channel + i, 0, 2);
    } else {
      for (int64_t h = h0; h <= h1; ++h)
        for (int64_t i = 0; i < x.w; i += kStep) __builtin_prefetch(channel + h * x.stride_h + i, 0, 2);
    }
  }

  // Input rows under output rows [begin, last] into the buffer.
  void load_rows(int64_t c, int64_t n, int64_t begin, int64_t last) {
    const Window& v = p_.window;
    const Image& x = p_.input;
    const S* channel = static_cast<const S*>(x.data) + n * x.stride_n + c * x.stride_c;
    const int64_t top = begin * v.stride[0] - v.padding[0],
                  count = (last - begin) * v.stride[0] + (v.kernel[0] - 1) * v.dilation[0] + 1;
    const ScalarStage<T> stage(prologue_, c);
    T* to = rows_;
    for (int64_t h = top; h < top + count; ++h, to += columns_.pitch) {
      if (h < 0 || h >= x.h) {
        std::fill(to, to + columns_.pitch, T(0));
      } else if (columns_.stride == 1) {
        load_row(channel + h * x.stride_h, stage, to + columns_.padding);
      } else {
        T* row = task_.template get<T>(row_slot_);
        load_row(channel + h * x.stride_h, stage, row);
        columns_.place(row, to);
      }
    }
  }
  void load_row(const S* from, const ScalarStage<T>& stage, T* to) const {
    if (stage.empty()) return convert(from, to, columns_.values);
    for_each_vector<T>(columns_.values,
                       [&](auto vector, int64_t x) { vector.write(to + x, stage(vector.read(from + x))); });
  }

  // `length` outputs from column `column` of the buffer's first output row on.
  void sum(const T* weights, const ScalarStage<T>& stage, int64_t column, int64_t length, T* to) const {
    const Window& v = p_.window;
    const int64_t width = p_.output.w, pitch = v.dilation[0] * columns_.pitch;
    const int64_t side = v.kernel[0] == v.kernel[1] ? v.kernel[0] : 0;
    const bool sharing = v.stride[0] <= 2 && v.dilation[0] == 1;
    for (const T* source = rows_; length > 0;) {
      const int64_t count = std::min(length, width - column);
      // Whole rows that are summed at once: they share loads, and no sum waits for the one before.
      const int64_t whole = sharing && column == 0 ? length / width : 0, rows = whole >= 4   ? 4
                                                                                : whole >= 2 ? 2
                                                                                             : 1;
      if (side == 3) {
        sum_rows<3>(rows, source + column, pitch, weights, stage, to, count);
      } else if (side == 5) {
        sum_rows<5>(rows, source + column, pitch, weights, stage, to, count);
      } else {
        for (int64_t r = 0; r < rows; ++r)
          sum_window(source + column + r * v.stride[0] * columns_.pitch, pitch, v.kernel[0], taps_.data(),
                     v.kernel[1], weights, stage, to + r * width, count);
      }
      source += rows * v.stride[0] * columns_.pitch;
      to += rows * count, length -= rows * count, column = 0;
    }
  }
  template <int kSide>
  void sum_rows(int64_t rows, const T* source, int64_t pitch, const T* weights, const ScalarStage<T>& stage,
                T* to, int64_t count) const {
    const auto sum = [&](auto at_once, auto step) {
      sum_square<kSide, at_once, step>(source, pitch, taps_.data(), weights, stage, to, count, count);
    };
    constexpr std::integral_constant<int, 1> one;
    constexpr std::integral_constant<int, 2> two;
    constexpr std::integral_constant<int, 4> four;
    const bool dense = p_.window.stride[0] == 1;
    if (rows == 4) return dense ? sum(four, one) : sum(four, two);
    if (rows == 2) return dense ? sum(two, one) : sum(two, two);
    sum(one, one);
  }

  const SeparableConv2dParams& p_;
  Stage<T> prologue_, middle_;
  PaddedColumns columns_;
  Scratch& task_;
  ScratchVector<int64_t> taps_;
  int64_t size_ = 0;
  size_t rows_slot_ = 0, row_slot_ = 0, weights_slot_ = 0;
  T* rows_ = nullptr;
  static constexpr int64_t kChannelsAhead = 2;
};
