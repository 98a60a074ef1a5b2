// Batch norm: the statistics of every channel, and the affine map they give.

// A row in scratch memory, as StreamedRows takes it.
template <class S>
struct StreamedRow {
  using T = Compute<S>;
  const T* row;
  const S* last() const { return reinterpret_cast<const S*>(row); }  // in a cache already
  template <class Vector>
  Vec<T> at(Vector vector, int64_t i) const {
    return vector.read(row + i);
  }
  void write(int64_t first, int64_t count, S* dst) const { convert(row + first, dst, count); }
};

// Pixels of an image as rows of channels in the compute type: where they lie if they are so in memory, else
// staged a chunk at a time. A streamed image is written past the caches.
template <class S>
class PixelRows {
 public:
  using T = Compute<S>;

  PixelRows(const Image& image, int64_t pixels, int64_t channels, Scratch& task, bool streamed = false)
      : image_(image), task_(task) {
    const bool linear = channels_are_adjacent(image) && pixels_are_linear(image);
    if (streamed && linear) stream_.emplace();
    in_place_ = std::is_same_v<S, T> && linear && !stream_;
    ld_ = in_place_ ? image.stride_w : round_up(channels, Vec<T>::kLanes) + Vec<T>::kLanes;
    if (!in_place_) slot_ = task.add<T>(pixels * ld_);
  }

  int64_t ld() const { return ld_; }  // from row to row

  const T* read(int64_t first, int64_t count, int64_t c0, int64_t channels) {
    if (in_place_) return place(first, c0);
    load_pixels<S>(image_, first, count, c0, channels, task_.get<T>(slot_), ld_);
    return task_.get<T>(slot_);
  }

  // fill(rows) writes all of them.
  template <class Fill>
  void write(int64_t first, int64_t count, int64_t c0, int64_t channels, Fill&& fill) {
    if (in_place_) return fill(place(first, c0));
    T* rows = task_.get<T>(slot_);
    fill(rows);
    if (!stream_) return store_pixels<S>(rows, ld_, image_, first, count, c0, channels);
    S* to = static_cast<S*>(image_.data) + first * image_.stride_w + c0;
    for (int64_t p = 0; p < count; ++p)
      stream_->write(StreamedRow<S>{rows + p * ld_}, to + p * image_.stride_w, channels, 0);
  }

 private:
  T* place(int64_t first, int64_t c0) const {
    return static_cast<T*>(image_.data) + first * image_.stride_w + c0;
  }
  Image image_;
  Scratch& task_;
  std::optional<StreamedRows<S>> stream_;
  bool in_place_;
  int64_t ld_;
  size_t slot_ = 0;
};

// Adjacent pixels of a channel, within a row or, where rows join, an image.
struct Span {
  int64_t n, h, w, length;
  template <class S>
  S* of(const Image& x, int64_t channel) const {
    return static_cast<S*>(x.data) + n * x.stride_n + channel * x.stride_c + h * x.stride_h + w;
  }
};

// The spans of consecutive pixels, cut for all of some images of one shape.
class PixelSpans {
 public:
  PixelSpans(std::initializer_list<const Image*> images) : image_(**images.begin()) {
    bool adjacent = true, joined = true;
    for (const Image* x : images) {
      adjacent = adjacent && x->stride_w == 1;
      joined = joined && (x->h == 1 || x->stride_h == x->w);
    }
    length_ = !adjacent ? 0 : joined ? image_.h * image_.w : image_.w;
  }
  int64_t length() const { return length_; }  // 0: pixels are not adjacent

  void select(int64_t first, int64_t count) {
    spans_.clear();
    for (int64_t done = 0; done < count;) {
      const int64_t pixel = first + done, w = pixel % image_.w, h = pixel / image_.w % image_.h,
                    length = std::min(count - done, length_ - pixel % length_);
      spans_.push_back({pixel / image_.w / image_.h, h, w, length});
      done += length;
    }
  }
  auto begin() const { return spans_.begin(); }
  auto end() const { return spans_.end(); }

 private:
  Image image_;
  int64_t length_;
  std::vector<Span> spans_;
};

// Of so many rows sums are kept in the compute type, those of more in double.
constexpr int64_t kMostRows = 128;

// How the passes of a batch norm walk over pixels and channels: by rows of channels, or by spans of pixels
// where these are long enough. Sums depend on it and on nothing else.
class PixelSums {
 public:
  PixelSums(std::initializer_list<const Image*> images, int64_t lanes)
      : pixels_((*images.begin())->n * (*images.begin())->h * (*images.begin())->w),
        channels_((*images.begin())->c),
        in_spans_(PixelSpans(images).length() >= 2 * lanes),
        plan_(plan_pixel_sums(pixels_, channels_, in_spans_)) {
    constexpr int64_t kChunkValues = 8 << 10, kMinChunk = 32, kLaneChunk = 256;
    chunk_ =
        in_spans_ ? kLaneChunk * lanes : std::clamp(kChunkValues / plan_.channel_block, kMinChunk, kMostRows);
  }

  bool in_spans() const { return in_spans_; }
  int64_t pixels() const { return pixels_; }
  int64_t chunk() const { return chunk_; }  // pixels whose sums are kept in the compute type
  int64_t row_chunk() const { return in_spans_ ? 0 : chunk_; }
  int64_t channel_block() const { return std::min(plan_.channel_block, channels_); }
  int64_t tasks() const { return plan_.tasks(); }
  int64_t splits() const { return plan_.pixel_splits; }
  int64_t split_pixels(int64_t split) const { return begin_of(split + 1) - begin_of(split); }

  struct Task {
    int64_t split, first, count, channel, channels;
  };
  Task task(int64_t index) const {
    const int64_t split = index / plan_.channel_blocks,
                  channel = index % plan_.channel_blocks * plan_.channel_block;
    return {split, begin_of(split), split_pixels(split), channel,
            std::min(plan_.channel_block, channels_ - channel)};
  }
  // body(first pixel, pixels)
  template <class Body>
  void for_each_chunk(const Task& t, Body&& body) const {
    for (int64_t at = 0; at < t.count; at += chunk_) body(t.first + at, std::min(chunk_, t.count - at));
  }
  template <class Body>
  void for_each_chunk_backward(const Task& t, Body&& body) const {
    for (int64_t at = (t.count - 1) / chunk_ * chunk_; at >= 0; at -= chunk_)
      body(t.first + at, std::min(chunk_, t.count - at));
  }

 private:
  int64_t begin_of(int64_t split) const { return pixels_ * split / plan_.pixel_splits; }
  int64_t pixels_, channels_;
  bool in_spans_;
  PixelSumPlan plan_;
  int64_t chunk_;
};

// body(number of vectors, policy, first channel): groups of as many full vectors as registers hold sums for.
template <class T, class Body>
inline void for_each_vector_group(int64_t channels, Body&& body) {
  constexpr int kLanes = Vec<T>::kLanes, kMost = static_cast<int>(Registers<T>::kTileRows.size());
  int64_t c = 0;
  for (; c + kMost * kLanes <= channels; c += kMost * kLanes)
    body(std::integral_constant<int, kMost>{}, FullVector<T>{}, c);
  if (kMost > 2 && c + 2 * kLanes <= channels)
    body(std::integral_constant<int, 2>{}, FullVector<T>{}, c), c += 2 * kLanes;
  if (c + kLanes <= channels) body(std::integral_constant<int, 1>{}, FullVector<T>{}, c), c += kLanes;
  if (c < channels)
    body(std::integral_constant<int, 1>{}, PartialVector<T>{static_cast<int>(channels - c)}, c);
}

template <class T>
struct Factors {
  Vec<T> value, factor;
};

// sum[i] = sum of values and product[i] = sum of value * factor over `count` pixels, where factors(pixel, i)
// are those of vector i. Several sums of each, as additions take longer than loads.
template <int kVectors, class T, class PixelFactors>
inline void sum_products(int64_t count, T* sum, T* product, PixelFactors&& factors) {
  constexpr int kSums = 2 * static_cast<int>(Registers<T>::kTileRows.size()) / kVectors;
  Vec<T> sums[kSums][kVectors], products[kSums][kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kSums; ++j)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) sums[j][i] = products[j][i] = zero<T>();
  const auto accumulate = [&](int64_t p, int j, int i) __attribute__((always_inline)) {
    const Factors<T> f = factors(p, i);
    sums[j][i] = add(sums[j][i], f.value);
    products[j][i] = fma(f.value, f.factor, products[j][i]);
  };
  int64_t p = 0;
  for (; p + kSums <= count; p += kSums) {
#pragma GCC unroll 8
    for (int j = 0; j < kSums; ++j)
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) accumulate(p + j, j, i);
  }
  for (; p < count; ++p) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) accumulate(p, 0, i);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
#pragma GCC unroll 8
    for (int j = 1; j < kSums; ++j) {
      sums[0][i] = add(sums[0][i], sums[j][i]);
      products[0][i] = add(products[0][i], products[j][i]);
    }
    store(sum + i * Vec<T>::kLanes, sums[0][i]);
    store(product + i * Vec<T>::kLanes, products[0][i]);
  }
}

// The lanes that a vector policy reads; 0 in the others.
template <class T>
inline Vec<T> only(FullVector<T>, Vec<T> v) {
  return v;
}
template <class T>
inline Vec<T> only(PartialVector<T> vector, Vec<T> v) {
  T values[Vec<T>::kLanes];
  store(values, v);
  return vector.read(values);
}

template <class T>
inline T sum_lanes(Vec<T> v) {
  T values[Vec<T>::kLanes];
  store(values, v);
  for (int half = Vec<T>::kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

// The two sums of a channel over all spans; factors_of(span)(vector policy, i) are those of the pixels from
// the span's i on.
template <class T, class FactorsOf>
inline void sum_span_products(const PixelSpans& spans, T* sum, T* product, FactorsOf&& factors_of) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> sums = zero<T>(), products = zero<T>();
  for (const Span& span : spans) {
    const auto factors = factors_of(span);
    const int64_t full = span.length / kLanes;
    T buffer[2][kLanes];
    sum_products<1>(full, buffer[0], buffer[1],
                    [&](int64_t p, int) { return factors(FullVector<T>{}, p * kLanes); });
    sums = add(sums, load(buffer[0])), products = add(products, load(buffer[1]));
    if (const int rest = static_cast<int>(span.length % kLanes); rest > 0) {
      const Factors<T> f = factors(PartialVector<T>{rest}, full * kLanes);
      sums = add(sums, f.value), products = fma(f.value, f.factor, products);
    }
  }
  *sum = sum_lanes(sums), *product = sum_lanes(products);
}

// Mean of every channel of some pixels and the sum of squared differences from it.
struct Moments {
  double count = 0;
  double *mean = nullptr, *squares = nullptr;
};

// T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979.
inline void merge(Moments& into, const Moments& other, int64_t channels) {
  const double total = into.count + other.count, share = other.count / total, between = into.count * share;
  double *mean = into.mean, *squares = into.squares;
  const double *other_mean = other.mean, *other_squares = other.squares;
  for (int64_t c = 0; c < channels; ++c) {
    const double step = other_mean[c] - mean[c];
    mean[c] += step * share;
    squares[c] += other_squares[c] + step * step * between;
  }
  into.count = total;
}

// Moments of a stream of chunks. Values are summed as differences from the mean so far: what cancels in a
// chunk's squares is then no more than what its distance from the others adds to the variance of all.
template <class T>
class MomentSums {
 public:
  MomentSums(int64_t channels, Scratch& task) : padded_(round_up(channels, Vec<T>::kLanes)), task_(task) {
    slot_ = task.add<T>(3 * padded_);
  }

  void begin(Moments moments, int64_t channels) {
    moments_ = moments, channels_ = channels;
    shift_ = task_.get<T>(slot_), sum_ = shift_ + padded_, squares_ = sum_ + padded_;
    std::fill(moments.mean, moments.mean + channels, 0.0);
    std::fill(moments.squares, moments.squares + channels, 0.0);
  }

  // add_up(n, shift, sum, squares): of each channel, of the first n pixels of a chunk of `count`, the sums of
  // differences from its shift and of their squares.
  template <class AddUp>
  void add(int64_t count, AddUp&& add_up) {
    if (moments_.count < count) guess(std::min(count, kGuess), add_up);
    add_up(count, shift_, sum_, squares_);
    const double n = static_cast<double>(count), inverse = 1 / n, total = moments_.count + n,
                 share = n / total, between = moments_.count * share;
    double *mean = moments_.mean, *squares = moments_.squares;
    for (int64_t c = 0; c < channels_; ++c) {
      const double from_shift = sum_[c] * inverse, step = (shift_[c] - mean[c]) + from_shift,
                   own = squares_[c] - sum_[c] * from_shift;
      mean[c] += step * share;
      squares[c] += (own < 0 ? 0 : own) + step * step * between;
      shift_[c] = static_cast<T>(mean[c]);
    }
    moments_.count = total;
  }

 private:
  // Where fewer values came before than a chunk has, its first ones stand in for their mean: so many that one
  // far from all others does not move it far.
  static constexpr int64_t kGuess = 64;
  template <class AddUp>
  void guess(int64_t count, AddUp&& add_up) {
    std::fill(shift_, shift_ + channels_, T(0));
    for (const int64_t n : {int64_t{1}, count}) {
      add_up(n, shift_, sum_, squares_);
      for (int64_t c = 0; c < channels_; ++c) shift_[c] += sum_[c] / static_cast<T>(n);
    }
  }

  int64_t padded_, channels_ = 0;
  Scratch& task_;
  size_t slot_;
  Moments moments_;
  T *shift_ = nullptr, *sum_ = nullptr, *squares_ = nullptr;
};

// What MomentSums adds up, of rows of channels.
template <class T>
inline void sum_rows(const T* rows, int64_t ld, int64_t count, int64_t channels, const T* shift, T* sum,
                     T* squares) {
  constexpr int kLanes = Vec<T>::kLanes;
  for_each_vector_group<T>(channels, [&](auto vectors, auto vector, int64_t c) {
    constexpr int kVectors = decltype(vectors)::value;
    Vec<T> minus[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) minus[i] = mul(vector.read(shift + c + i * kLanes), broadcast(T(-1)));
    sum_products<kVectors>(count, sum + c, squares + c, [&](int64_t p, int i) {
      const Vec<T> difference = add(vector.read(rows + p * ld + c + i * kLanes), minus[i]);
      return Factors<T>{difference, difference};
    });
  });
}
// The same of the spans of one channel.
template <class S>
inline void sum_spans(const PixelSpans& spans, const Image& x, int64_t channel, const Compute<S>* shift,
                      Compute<S>* sum, Compute<S>* squares) {
  using T = Compute<S>;
  const Vec<T> minus = broadcast(-*shift);
  sum_span_products<T>(spans, sum, squares, [&](const Span& span) {
    return [=, from = span.of<S>(x, channel)](auto vector, int64_t i) {
      const Vec<T> difference = only(vector, add(vector.read(from + i), minus));
      return Factors<T>{difference, difference};
    };
  });
}

template <class T>
void finish_statistics(const BatchNormStatisticsParams& b, const Moments& moments) {
  const auto *weight = static_cast<const T*>(b.weight), *bias = static_cast<const T*>(b.bias);
  T *mean = static_cast<T*>(b.mean), *inverse_std = static_cast<T*>(b.inverse_std),
    *scale = static_cast<T*>(b.scale), *shift = static_cast<T*>(b.shift),
    *running_mean = static_cast<T*>(b.running_mean), *running_var = static_cast<T*>(b.running_var);
  const double n = moments.count, unbiased = std::max(n - 1, 1.0);
  for (int64_t c = 0; c < b.input.c; ++c) {
    const double exact_mean = moments.mean[c], inverse = 1 / std::sqrt(moments.squares[c] / n + b.eps);
    mean[c] = static_cast<T>(exact_mean), inverse_std[c] = static_cast<T>(inverse);
    scale[c] = static_cast<T>((weight == nullptr ? 1 : weight[c]) * inverse);
    // Of the scale as rounded: the mean then becomes the bias.
    shift[c] = static_cast<T>((bias == nullptr ? 0 : bias[c]) - exact_mean * scale[c]);
    if (running_mean != nullptr)
      running_mean[c] = static_cast<T>((1 - b.momentum) * running_mean[c] + b.momentum * exact_mean);
    if (running_var != nullptr)
      running_var[c] =
          static_cast<T>((1 - b.momentum) * running_var[c] + b.momentum * (moments.squares[c] / unbiased));
  }
}

// The pass starts with the last pixels, which whoever wrote the input left in the caches, and whoever reads
// it next finds the first ones there.
template <class S>
void batch_norm_statistics(const BatchNormStatisticsParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  const PixelSums sums({&b.input}, Vec<T>::kLanes);
  const int64_t channels = b.input.c;
  Scratch call(ScratchUse::kCall);
  const size_t slot = call.add<double>(2 * sums.splits() * channels);
  double* data = call.get<double>(slot);
  const auto moments = [&](int64_t split, int64_t channel) {
    double* mean = data + 2 * split * channels + channel;
    return Moments{0, mean, mean + channels};
  };
  parallel.share(sums.tasks(), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    PixelRows<S> rows(b.input, sums.row_chunk(), sums.channel_block(), task);
    MomentSums<T> moment_sums(sums.channel_block(), task);
    PixelSpans spans({&b.input});
    for (int64_t index; tasks.previous(index);) {
      const PixelSums::Task t = sums.task(index);
      moment_sums.begin(moments(t.split, t.channel), t.channels);
      sums.for_each_chunk_backward(t, [&](int64_t first, int64_t count) {
        if (!sums.in_spans()) {
          const T* x = rows.read(first, count, t.channel, t.channels);
          return moment_sums.add(count, [&](int64_t n, const T* shift, T* sum, T* squares) {
            sum_rows(x, rows.ld(), n, t.channels, shift, sum, squares);
          });
        }
        moment_sums.add(count, [&](int64_t n, const T* shift, T* sum, T* squares) {
          spans.select(first, n);
          for (int64_t c = 0; c < t.channels; ++c)
            sum_spans<S>(spans, b.input, t.channel + c, shift + c, sum + c, squares + c);
        });
      });
    }
  });
  Moments all = moments(0, 0);
  all.count = static_cast<double>(sums.split_pixels(0));
  for (int64_t split = 1; split < sums.splits(); ++split) {
    Moments other = moments(split, 0);
    other.count = static_cast<double>(sums.split_pixels(split));
    merge(all, other, channels);
  }
  finish_statistics<T>(b, all);
}

// body(activation as a constant)
template <class Body>
inline void with_activation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::kRelu:
      return body(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kRelu6:
      return body(std::integral_constant<Activation, Activation::kRelu6>{});
    case Activation::kHardSwish:
      return body(std::integral_constant<Activation, Activation::kHardSwish>{});
    default:
      return body(std::integral_constant<Activation, Activation::kNone>{});
  }
}

// Few rows at a time, a group of vectors wide: their factors stay in registers, and their pages in the TLB.
template <class T, class Body>
inline void for_each_row_group(int64_t count, int64_t channels, Body&& body) {
  constexpr int64_t kRows = 8;
  for (int64_t first = 0; first < count; first += kRows)
    for_each_vector_group<T>(channels, [&](auto vectors, auto vector, int64_t c) {
      body(vectors, vector, c, first, std::min(count, first + kRows));
    });
}

// The map on rows of channels; `residual` may be null.
template <Activation kActivation, class T>
inline void map_rows(const T* x, int64_t x_ld, const T* residual, int64_t residual_ld, T* y, int64_t y_ld,
                     int64_t count, int64_t channels, const T* scale, const T* shift) {
  constexpr int kLanes = Vec<T>::kLanes;
  for_each_row_group<T>(count, channels, [&](auto vectors, auto vector, int64_t c, int64_t from, int64_t to) {
    constexpr int kVectors = decltype(vectors)::value;
    Vec<T> a[kVectors], s[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i)
      a[i] = vector.read(scale + c + i * kLanes), s[i] = vector.read(shift + c + i * kLanes);
    for (int64_t p = from; p < to; ++p) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        const int64_t at = c + i * kLanes;
        Vec<T> v = fma(vector.read(x + p * x_ld + at), a[i], s[i]);
        if (residual != nullptr) v = add(v, vector.read(residual + p * residual_ld + at));
        vector.write(y + p * y_ld + at, activate(v, kActivation));
      }
    }
  });
}
// The map on a span of pixels of a channel.
template <Activation kActivation, class S>
inline void map_span(const S* x, const S* residual, S* y, int64_t count, Compute<S> scale, Compute<S> shift) {
  using T = Compute<S>;
  const Vec<T> a = broadcast(scale), s = broadcast(shift);
  for_each_vector<T>(count, [=](auto vector, int64_t i) {
    Vec<T> v = fma(vector.read(x + i), a, s);
    if (residual != nullptr) v = add(v, vector.read(residual + i));
    vector.write(y + i, activate(v, kActivation));
  });
}

template <class S>
void batch_norm(const BatchNormParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  const bool has_residual = b.residual.data != nullptr;
  const Image& other = has_residual ? b.residual : b.input;
  const PixelSums sums({&b.input, &other, &b.output}, Vec<T>::kLanes);
  const auto *scale = static_cast<const T*>(b.scale), *shift = static_cast<const T*>(b.shift);
  const bool in_place = b.output.data == b.input.data || b.output.data == b.residual.data;
  const bool streamed = !in_place && bypasses_caches(sums.pixels() * b.output.c * sizeof(S), cache_sizes());
  with_activation(b.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    parallel.share(sums.tasks(), [&](Tasks& tasks) {
      Scratch task(ScratchUse::kTask);
      PixelRows<S> input(b.input, sums.row_chunk(), sums.channel_block(), task),
          residual(other, sums.row_chunk(), sums.channel_block(), task),
          output(b.output, sums.row_chunk(), sums.channel_block(), task, streamed);
      PixelSpans spans({&b.input, &other, &b.output});
      for (int64_t index; tasks.next(index);) {
        const PixelSums::Task t = sums.task(index);
        sums.for_each_chunk(t, [&](int64_t first, int64_t count) {
          if (!sums.in_spans()) {
            const T* x = input.read(first, count, t.channel, t.channels);
            const T* r = has_residual ? residual.read(first, count, t.channel, t.channels) : nullptr;
            return output.write(first, count, t.channel, t.channels, [&](T* y) {
              map_rows<kActivation>(x, input.ld(), r, residual.ld(), y, output.ld(), count, t.channels,
                                    scale + t.channel, shift + t.channel);
            });
          }
          spans.select(first, count);
          for (int64_t c = t.channel; c < t.channel + t.channels; ++c)
            for (const Span& span : spans)
              map_span<kActivation, S>(span.of<S>(b.input, c), has_residual ? span.of<S>(other, c) : nullptr,
                                       span.of<S>(b.output, c), span.length, scale[c], shift[c]);
        });
      }
    });
  });
}
