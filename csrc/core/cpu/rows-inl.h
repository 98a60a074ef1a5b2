// Input rows for the kernels: channels-last, compute type, prologue applied. RowSource reads a row that is
// already so in memory where it lies; any other (NCHW, bf16, row average, depth multiplier, prologue) it
// stages once into a ring of rows. RowsInPlace leaves the prologue to the depthwise.

// Rows averaged into row r: the forward of the 3-row average.
struct RowMean {
  int64_t first, count;
};
inline RowMean averaged_rows(int64_t r, int64_t row_stride, int64_t height) {
  const int64_t first = std::max<int64_t>(0, r * row_stride - 1),
                last = std::min(height - 1, r * row_stride + 1);
  return {first, last - first + 1};
}

// Division by a small count as two multiplications, as exact as a division and as fast as memory: 1 / count
// is the sum of two positive numbers, so that infinity times neither is NaN.
template <class T>
class Divisor {
 public:
  explicit Divisor(int64_t count) {
    const T divisor = static_cast<T>(count), high = std::nextafter(T(1) / divisor, T(0));
    high_ = broadcast(high);
    low_ = broadcast(std::fma(-divisor, high, T(1)) / divisor);
  }
  Vec<T> divide(Vec<T> x) const { return fma(x, high_, mul(x, low_)); }
  // sum + x / count
  Vec<T> divide_add(Vec<T> x, Vec<T> sum) const { return fma(x, high_, fma(x, low_, sum)); }

 private:
  Vec<T> high_, low_;
};

template <class S>
class RowSource {
 public:
  using T = Compute<S>;
  struct Shape {
    Image image;                     // the tensor as it is in memory
    int64_t multiplier = 1;          // each channel is repeated this often
    int64_t row_average_stride = 0;  // 0: no average
    Stage<T> stage;                  // per repeated channel
    int64_t window_rows = 1;         // consecutive rows used at once
  };

  // Of the repeated channels, at most `channels` at a time (see select).
  RowSource(const Shape& shape, int64_t channels, Scratch& scratch) : shape_(shape), scratch_(scratch) {
    in_place_ = std::is_same_v<S, T> && channels_are_adjacent(shape.image) && shape.multiplier == 1 &&
                shape.row_average_stride == 0 && shape.stage.empty();
    if (in_place_) return;
    // One vector more than needed, and no power of two: rows of a ring must not share cache sets.
    ld_ = round_up(channels, Vec<T>::kLanes) + Vec<T>::kLanes;
    ring_ = scratch.add<T>(shape.window_rows * shape.image.w * ld_);
    if (shape.multiplier != 1) single_ = scratch.add<T>(shape.image.w * ld_);
    if (shape.row_average_stride != 0) next_ = scratch.add<T>(shape.image.w * ld_);
    held_.resize(static_cast<size_t>(shape.window_rows));
  }

  // Rows hold the channels [first, first + count) from now on.
  void select(int64_t first, int64_t count) {
    first_ = first, count_ = count;
    std::fill(held_.begin(), held_.end(), int64_t{-1});
  }

  // The ring starts with row 0 of image n: as many images as it holds lie one after another.
  void start(int64_t n) {
    start_ = n * rows();
    std::fill(held_.begin(), held_.end(), int64_t{-1});
  }
  int64_t row_stride() const { return in_place_ ? shape_.image.stride_h : shape_.image.w * ld_; }
  int64_t image_stride() const { return in_place_ ? shape_.image.stride_n : rows() * row_stride(); }

  bool in_place() const { return in_place_; }
  int64_t rows() const {
    return shape_.row_average_stride == 0 ? shape_.image.h
                                          : row_average_size(shape_.image.h, shape_.row_average_stride);
  }
  int64_t pixel_stride() const { return in_place_ ? shape_.image.stride_w : ld_; }
  Stage<T> on_load() const { return {}; }  // rows hold what the prologue makes of them

  // Pixel 0, first selected channel of a row; valid until window_rows other rows of the same image were asked
  // for.
  const T* row(int64_t n, int64_t r) {
    if (in_place_) {
      const Image& x = shape_.image;
      return static_cast<const T*>(x.data) + n * x.stride_n + r * x.stride_h + first_ * x.stride_c;
    }
    const int64_t id = n * rows() + r, slot = (id - start_) % shape_.window_rows;
    T* to = scratch_.get<T>(ring_) + slot * shape_.image.w * ld_;
    if (held_[static_cast<size_t>(slot)] != id) {
      stage(n, r, to);
      held_[static_cast<size_t>(slot)] = id;
      prefetch(n, r + shape_.window_rows);
    }
    return to;
  }

 private:
  void stage(int64_t n, int64_t r, T* to) {
    const int64_t m = shape_.multiplier, c0 = first_ / m, channels = divide_up(first_ + count_, m) - c0,
                  width = shape_.image.w;
    T* from = m == 1 ? to : scratch_.get<T>(single_);
    if (shape_.row_average_stride == 0) {
      load_pixels<S>(shape_.image, (n * shape_.image.h + r) * width, width, c0, channels, from, ld_);
    } else {
      average(n, r, c0, channels, from);
    }
    if (m != 1) {
      for (int64_t w = 0; w < width; ++w) repeat(from + w * ld_, to + w * ld_);
    }
    if (!shape_.stage.empty()) {
      for (int64_t w = 0; w < width; ++w)
        for (int64_t c = 0; c < count_; c += Vec<T>::kLanes) {
          T* at = to + w * ld_ + c;
          store(at, activate(affine(load(at), shape_.stage, first_ + c), shape_.stage.activation));
        }
    }
  }

  // The selected ones of a pixel's repeated channels.
  void repeat(const T* from, T* to) const {
    int64_t c = 0;
    if (shape_.multiplier == 2 && first_ % 2 == 0)  // a constant number of copies becomes a shuffle
      for (; c + 2 <= count_; c += 2) to[c] = to[c + 1] = from[c / 2];
    for (int64_t copy = (first_ + c) % shape_.multiplier, channel = c / 2; c < count_; ++c) {
      to[c] = from[channel];
      if (++copy == shape_.multiplier) copy = 0, ++channel;
    }
  }

  // Asks for a row of an NCHW image before it is staged: as many streams as channels, more than the hardware
  // follows.
  void prefetch(int64_t n, int64_t r) const {
    const Image& x = shape_.image;
    if (r >= x.h || shape_.row_average_stride != 0 || channels_are_adjacent(x) || x.stride_w != 1) return;
    constexpr int64_t kStep = kLine / sizeof(S);
    const int64_t c0 = first_ / shape_.multiplier, c1 = divide_up(first_ + count_, shape_.multiplier);
    const S* row = static_cast<const S*>(x.data) + n * x.stride_n + r * x.stride_h;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t w = 0; w < x.w; w += kStep) __builtin_prefetch(row + c * x.stride_c + w, 0, 2);
  }

  void average(int64_t n, int64_t r, int64_t c0, int64_t channels, T* to) {
    const Image& x = shape_.image;
    const RowMean mean = averaged_rows(r, shape_.row_average_stride, x.h);
    load_pixels<S>(x, (n * x.h + mean.first) * x.w, x.w, c0, channels, to, ld_);
    T* next = scratch_.get<T>(next_);
    for (int64_t i = 1; i < mean.count; ++i) {
      load_pixels<S>(x, (n * x.h + mean.first + i) * x.w, x.w, c0, channels, next, ld_);
      for (int64_t w = 0; w < x.w; ++w)
        for (int64_t c = 0; c < channels; c += Vec<T>::kLanes)
          store(to + w * ld_ + c, add(load(to + w * ld_ + c), load(next + w * ld_ + c)));
    }
    const Divisor<T> divisor(mean.count);
    for (int64_t w = 0; w < x.w; ++w)
      for (int64_t c = 0; c < channels; c += Vec<T>::kLanes)
        store(to + w * ld_ + c, divisor.divide(load(to + w * ld_ + c)));
  }

  Shape shape_;
  Scratch& scratch_;
  bool in_place_;
  int64_t ld_ = 0, first_ = 0, count_ = 0, start_ = 0;
  size_t ring_ = 0;
  size_t single_ = 0;            // a row before its channels are repeated
  size_t next_ = 0;              // the next row of an average
  ScratchVector<int64_t> held_;  // which row each slot of the ring holds
};

// Rows that are read where they lie, of type S; the depthwise applies the prologue as it loads them.
template <class S>
class RowsInPlace {
 public:
  using T = Compute<S>;
  RowsInPlace(const Image& image, const Stage<T>& prologue) : image_(image), prologue_(prologue) {}

  // A prologue is applied at each load of a value: few enough where neighbours share their loads.
  static bool serves(const SeparableConv2dParams& p) {
    const Window& window = p.window;
    const Prologue& prologue = p.prologue;
    const bool empty =
        prologue.scale == nullptr && prologue.shift == nullptr && prologue.activation == Activation::kNone;
    const int64_t taps = window.kernel[1];
    const bool shared_loads = window.stride[0] == 1 && window.stride[1] == 1 && window.dilation[0] == 1 &&
                              window.dilation[1] == 1 && (taps == 1 || taps == 3 || taps == 5);
    return channels_are_adjacent(p.input) && p.depth_multiplier == 1 && prologue.row_average_stride == 0 &&
           (empty || (shared_loads && prologue.activation != Activation::kHardSwish));
  }

  void select(int64_t first, int64_t /* count */) { first_ = first; }
  int64_t pixel_stride() const { return image_.stride_w; }
  const S* row(int64_t n, int64_t r) const {
    return static_cast<const S*>(image_.data) + n * image_.stride_n + r * image_.stride_h + first_;
  }
  Stage<T> on_load() const { return prologue_.from(first_); }

 private:
  Image image_;
  Stage<T> prologue_;
  int64_t first_ = 0;
};
