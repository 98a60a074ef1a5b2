// The two products of the backward in the compute type: G, the gradient of the depthwise output, and the
// gradient of pointwise weights in its final layout.

// grad_output, tile by tile: where it lies if its layout and dtype are the kernel's own, else from a buffer.
template <class S>
class GradientTiles {
 public:
  using T = Compute<S>;
  GradientTiles(const Image& x, int64_t pixels, Scratch& scratch) : x_(x), scratch_(scratch) {
    direct_ = std::is_same_v<S, T> && channels_are_adjacent(x) && pixels_are_linear(x);
    if (!direct_) slot_ = scratch.add<T>(pixels * ld());
  }
  int64_t ld() const { return direct_ ? x_.stride_w : panel_ld<T>(x_.c); }
  const T* tile(int64_t first, int64_t count) {
    if (direct_) return static_cast<const T*>(x_.data) + first * x_.stride_w;
    T* to = scratch_.get<T>(slot_);
    load_pixels<S>(x_, first, count, 0, x_.c, to, ld());
    return to;
  }
  Ahead ahead(int64_t first, int64_t count) const {
    if (!direct_) return {};
    return {static_cast<const S*>(x_.data) + first * x_.stride_w, count * x_.stride_w * int64_t{sizeof(S)}};
  }

 private:
  Image x_;
  Scratch& scratch_;
  bool direct_;
  size_t slot_ = 0;
};

// G = grad_output x pointwise weights under few pixels. The weights are read once, and then in long runs: a
// slice of the depth of all channels at a time is packed right before its use, and stays in L2.
template <class S>
class WeightSlices {
 public:
  using T = Compute<S>;

  WeightSlices(const SeparableConv2dParams& p, int64_t depth, int64_t most_columns, Scratch& task)
      : weights_(static_cast<const S*>(p.pointwise_weight)),
        rows_(p.output.c),
        row_(depth),
        slice_(std::clamp<int64_t>(kSliceValues / std::max<int64_t>(1, most_columns), kLeast, kMost)),
        task_(task),
        slot_(task.add<T>(std::min(slice_, rows_) * round_up(most_columns, kTileColumns<T>))) {}

  // Columns [column, column + columns) of `pixels` rows of G.
  void multiply(const T* gradient, int64_t ld, int64_t pixels, int64_t column, int64_t columns, T* to,
                int64_t to_ld) {
    for (int64_t k = 0; k < rows_; k += slice_) {
      const int64_t depth = std::min(slice_, rows_ - k);
      T* packed = task_.get<T>(slot_);
      pack(k, depth, column, columns, packed);
      for (int64_t c = 0; c < columns; c += kTileColumns<T>) {
        TileOutput<T> out{to + c, to_ld, std::min<int64_t>(kTileColumns<T>, columns - c)};
        out.accumulate = k > 0;
        sepconv::multiply<false>(Panel<T>{gradient + k, ld, 1}, pixels,
                                 static_cast<const T*>(packed) + c * depth, kTileColumns<T>, depth, out);
      }
    }
  }

 private:
  static constexpr int64_t kSliceValues = 64 << 10, kLeast = 32, kMost = 512;

  void pack(int64_t k, int64_t depth, int64_t column, int64_t columns, T* to) const {
    for (int64_t i = 0; i < depth; ++i) {
      const S* row = weights_ + (k + i) * row_ + column;
      for (int64_t c = 0; c < columns; c += kTileColumns<T>) {
        const int64_t valid = std::min<int64_t>(kTileColumns<T>, columns - c);
        T* panel = to + c * depth + i * kTileColumns<T>;
        convert(row + c, panel, valid);
        std::fill(panel + valid, panel + kTileColumns<T>, T(0));
      }
    }
  }
  const S* weights_;
  int64_t rows_, row_, slice_;
  Scratch& task_;
  size_t slot_;
};

// G = grad_output x pointwise weights.
template <class S>
class GradientProduct {
 public:
  using T = Compute<S>;
  GradientProduct(const SeparableConv2dParams& p, int64_t depth, bool few_pixels, Scratch& call)
      : p_(p),
        depth_(depth),
        few_pixels_(few_pixels),
        weights_{nullptr, p.output.c, p.has_pointwise() && !few_pixels ? depth : 0},
        slot_(call.add<T>(weights_.size())) {}
  void prepare(Scratch& call, const Parallel& parallel) {
    T* packed = call.get<T>(slot_);
    parallel.share(weights_.panels(), [&](Tasks& tasks) {
      for (int64_t panel; tasks.next(panel);)
        pack_rows(static_cast<const S*>(p_.pointwise_weight), weights_, panel,
                  packed + weights_.offset(panel));
    });
    weights_.data = packed;
  }

  class Task {
   public:
    // For at most `pixels` pixels and `columns` channels of G at a time.
    Task(const GradientProduct& product, int64_t pixels, int64_t columns, Scratch& scratch)
        : product_(product),
          gradient_(product.p_.output, pixels, scratch),
          slices_(product.p_, product.depth_, product.few_pixels_ ? columns : 0, scratch) {}

    // to[pixel][channel], for channels [c0, c0 + channels); asks for `ahead` on the way.
    void multiply(int64_t first, int64_t pixels, int64_t c0, int64_t channels, T* to, int64_t ld,
                  Ahead ahead) {
      const PackedWeights<T>& weights = product_.weights_;
      const T* gradient = gradient_.tile(first, pixels);
      if (product_.few_pixels_)
        return slices_.multiply(gradient, gradient_.ld(), pixels, c0, channels, to, ld);
      for (int64_t c = 0; c < channels; c += kTileColumns<T>) {
        const int64_t panel = (c0 + c) / kTileColumns<T>;
        sepconv::multiply<false>(Panel<T>{gradient, gradient_.ld(), 1}, pixels, weights.panel(panel),
                                 weights.width(panel), weights.depth,
                                 TileOutput<T>{to + c, ld, std::min<int64_t>(kTileColumns<T>, channels - c)},
                                 ahead);
      }
    }
    // What multiply() will read of these pixels.
    Ahead ahead(int64_t first, int64_t pixels) const { return gradient_.ahead(first, pixels); }

   private:
    const GradientProduct& product_;
    GradientTiles<S> gradient_;
    WeightSlices<S> slices_;
  };

 private:
  const SeparableConv2dParams& p_;
  int64_t depth_;
  bool few_pixels_;
  PackedWeights<T> weights_;
  size_t slot_;
};

// Whether the columns of some pixels may be read where they lie: the values of one column of wide pixels are
// pages apart and share cache sets.
inline bool columns_are_near(int64_t pixels, int64_t pixel_bytes) {
  return pixels * pixel_bytes <= cache_sizes().l2 / 8;
}

// The left factor of a weight gradient: grad_output of a chunk of pixels, a few columns at a time, which are
// copied side by side where they are not near.
template <class S>
class GradientColumns {
 public:
  using T = Compute<S>;
  static constexpr int64_t kColumns = 8 * Registers<T>::kTileRows[kTileVectors<T> - 1];

  GradientColumns(const Image& gradient, int64_t chunk, int64_t /* depth */, Scratch& scratch)
      : gradient_(gradient),
        adjacent_(channels_are_adjacent(gradient) && pixels_are_linear(gradient)),
        in_place_(std::is_same_v<S, T> && adjacent_ && columns_are_near(chunk, pixel_bytes())),
        scratch_(scratch) {
    if (!in_place_) slot_ = scratch.add<T>(chunk * at_once());
  }
  int64_t at_once() const { return in_place_ ? gradient_.c : std::min(kColumns, gradient_.c); }
  Panel<T> read(int64_t first, int64_t count, int64_t column, int64_t columns) {
    if (in_place_)
      return {static_cast<const T*>(gradient_.data) + first * gradient_.stride_w + column, 1,
              gradient_.stride_w};
    T* to = scratch_.get<T>(slot_);
    load_pixels<S>(gradient_, first, count, column, columns, to, at_once());
    return {to, 1, at_once()};
  }
  Ahead ahead(int64_t first, int64_t count) const {
    if (!adjacent_) return {};
    return {static_cast<const S*>(gradient_.data) + first * gradient_.stride_w, count * pixel_bytes()};
  }

 private:
  int64_t pixel_bytes() const { return gradient_.stride_w * int64_t{sizeof(S)}; }
  Image gradient_;
  bool adjacent_, in_place_;
  Scratch& scratch_;
  size_t slot_ = 0;
};

// The sums of a weight gradient, (rows, columns): one set for each split of the pixels, merged in order.
template <class S>
class SplitSums {
 public:
  using T = Compute<S>;
  SplitSums(int64_t splits, int64_t rows, int64_t columns, Scratch& call)
      : splits_(splits),
        rows_(rows),
        columns_(columns),
        direct_(std::is_same_v<S, T> && splits == 1),
        ld_(direct_ ? columns : round_up(columns, kTileColumns<T>)) {
    if (!direct_) slot_ = call.add<T>(splits * rows * ld_);
  }
  void prepare(Scratch& call, S* result) {
    result_ = result;
    sums_ = direct_ ? reinterpret_cast<T*>(result) : call.get<T>(slot_);
  }
  int64_t rows() const { return rows_; }
  int64_t ld() const { return ld_; }
  T* of(int64_t split, int64_t row) const { return sums_ + (split * rows_ + row) * ld_; }

  void merge(const Parallel& parallel) const {
    if (direct_) return;
    parallel.run(rows_, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* sum = of(0, row);
        for (int64_t split = 1; split < splits_; ++split)
          for (int64_t c = 0; c < columns_; c += Vec<T>::kLanes)
            store(sum + c, add(load(sum + c), load(of(split, row) + c)));
        convert(sum, result_ + row * columns_, columns_);
      }
    });
  }

 private:
  int64_t splits_, rows_, columns_;
  bool direct_;  // into the result itself
  int64_t ld_;
  size_t slot_ = 0;
  S* result_ = nullptr;
  T* sums_ = nullptr;
};

// left^T x right over pixels: the gradient of weights that a GEMM multiplied by, (left_columns,
// right_columns). Every split sums its pixels in order.
template <class S>
class WeightProduct {
 public:
  using T = Compute<S>;
  using Value = T;  // of the right factor
  using Task = GradientColumns<S>;
  WeightProduct(int64_t splits, int64_t left_columns, int64_t right_columns, Scratch& call)
      : sums_(splits, left_columns, right_columns, call) {}
  WeightProduct(const WeightGradientPlan& plan, int64_t left_columns, int64_t right_columns, Scratch& call)
      : WeightProduct(plan.pixel_splits, left_columns, right_columns, call) {}
  void prepare(Scratch& call, S* result) { sums_.prepare(call, result); }

  // The product of `count` pixels, for columns [column, column + columns) of `right`, which points at the
  // first of them: sets what the split holds, or adds to it.
  void chunk(int64_t split, GradientColumns<S>& left, int64_t first, int64_t count, const T* right,
             int64_t right_ld, int64_t column, int64_t columns, bool accumulate, Ahead ahead = {}) const {
    for (int64_t row = 0; row < sums_.rows(); row += left.at_once()) {
      const int64_t rows = std::min(left.at_once(), sums_.rows() - row);
      const Panel<T> panel = left.read(first, count, row, rows);
      for (int64_t c = 0; c < columns; c += kTileColumns<T>) {
        TileOutput<T> out{sums_.of(split, row) + column + c, sums_.ld(),
                          std::min<int64_t>(kTileColumns<T>, columns - c)};
        out.accumulate = accumulate;
        multiply<true>(panel, rows, right + c, right_ld, count, out, ahead);
      }
    }
  }
  void merge(const Parallel& parallel) const { sums_.merge(parallel); }

 private:
  SplitSums<S> sums_;
};

template <class S>
struct ComputeProducts {
  using Gradient = GradientProduct<S>;
  using Weights = WeightProduct<S>;
};
