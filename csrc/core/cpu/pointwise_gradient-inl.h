// The gradient of pointwise weights, in its final layout: the depthwise output is computed again for a chunk
// of pixels and stays in L2, while grad_output passes by.

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

  GradientColumns(const Image& gradient, int64_t chunk, Scratch& scratch)
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

// left^T x right over pixels: the gradient of weights that a GEMM multiplied by, (left_columns,
// right_columns). Every split sums its pixels in order; the splits are merged in order.
template <class S>
class WeightProduct {
 public:
  using T = Compute<S>;
  WeightProduct(int64_t splits, int64_t left_columns, int64_t right_columns, Scratch& call)
      : splits_(splits),
        left_columns_(left_columns),
        right_columns_(right_columns),
        direct_(std::is_same_v<S, T> && splits == 1),
        ld_(direct_ ? right_columns : round_up(right_columns, kTileColumns<T>)) {
    if (!direct_) slot_ = call.add<T>(splits * left_columns * ld_);
  }
  void prepare(Scratch& call, S* result) {
    result_ = result;
    sums_ = direct_ ? reinterpret_cast<T*>(result) : call.get<T>(slot_);
  }

  // The product of `count` pixels, for columns [column, column + columns) of `right`, which points at the
  // first of them: sets what the split holds, or adds to it.
  void chunk(int64_t split, GradientColumns<S>& left, int64_t first, int64_t count, const T* right,
             int64_t right_ld, int64_t column, int64_t columns, bool accumulate, Ahead ahead = {}) const {
    T* to = sums_ + split * left_columns_ * ld_ + column;
    for (int64_t row = 0; row < left_columns_; row += left.at_once()) {
      const int64_t rows = std::min(left.at_once(), left_columns_ - row);
      const Panel<T> panel = left.read(first, count, row, rows);
      for (int64_t c = 0; c < columns; c += kTileColumns<T>) {
        TileOutput<T> out{to + row * ld_ + c, ld_, std::min<int64_t>(kTileColumns<T>, columns - c)};
        out.accumulate = accumulate;
        multiply<true>(panel, rows, right + c, right_ld, count, out, ahead);
      }
    }
  }
  void merge(const Parallel& parallel) const {
    if (direct_) return;
    parallel.run(left_columns_, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* sum = sums_ + row * ld_;
        for (int64_t split = 1; split < splits_; ++split)
          for (int64_t c = 0; c < right_columns_; c += Vec<T>::kLanes)
            store(sum + c, add(load(sum + c), load(sum + split * left_columns_ * ld_ + c)));
        convert(sum, result_ + row * right_columns_, right_columns_);
      }
    });
  }

 private:
  int64_t splits_, left_columns_, right_columns_;
  bool direct_;
  int64_t ld_;
  size_t slot_ = 0;
  S* result_ = nullptr;
  T* sums_ = nullptr;
};

// grad_pointwise_weight.
template <class S>
void weight_pass(const SeparableConv2dBackwardParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  const SeparableConv2dParams& p = b.forward;
  const Image& gy = p.output;
  Scratch call(ScratchUse::kCall);
  DepthwiseStage<S> depthwise(p, call);
  const int64_t depth = depthwise.depth();
  const WeightGradientPlan plan = plan_weight_gradient(gy.n, gy.h, gy.w, depth, sizeof(T), tile_shape<T>(),
                                                       parallel.threads, cache_sizes());
  WeightProduct<S> product(plan.pixel_splits, gy.c, depth, call);
  depthwise.prepare(call);
  product.prepare(call, static_cast<S*>(b.grad_pointwise_weight));

  // Without a depthwise the input itself is the right factor.
  const bool narrow = columns_are_near(plan.pixel_chunk, p.input.stride_w * int64_t{sizeof(S)});
  const bool in_place = std::is_same_v<S, T> && RowsInPlace<S>::serves(p);
  parallel.share(plan.tasks(), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const int64_t block = std::min(plan.depth_block, round_up(depth, kTileColumns<T>)),
                  ld = panel_ld<T>(block);
    const size_t panel_slot = task.add<T>(plan.pixel_chunk * ld);
    GradientColumns<S> gradient(gy, plan.pixel_chunk, task);
    RowsInPlace<T> rows(p.input, depthwise.prologue);
    RowSource<S> staged(in_place ? typename RowSource<S>::Shape{} : depthwise.rows(), block, task);
    DepthwiseRow<T> kernel(p.window);
    T* panel = task.get<T>(panel_slot);
    for (int64_t index; tasks.next(index);) {
      const int64_t split = index % plan.pixel_splits, c0 = index / plan.pixel_splits * plan.depth_block;
      const int64_t channels = std::min(plan.depth_block, depth - c0);
      rows.select(c0, channels), staged.select(c0, channels);
      const int64_t begin_pixel = plan.first_pixel(split), end_pixel = plan.first_pixel(split + 1);
      for (int64_t first = begin_pixel; first < end_pixel; first += plan.pixel_chunk) {
        const int64_t count = std::min(plan.pixel_chunk, end_pixel - first), next = first + count,
                      next_count = std::min(plan.pixel_chunk, end_pixel - next);
        const PixelTile tile{0, gy.w, first, count};
        typename DepthwiseStage<S>::Values values{panel, ld};
        if (narrow && depthwise.is_input()) {
          values = depthwise.input(tile, c0);
        } else if (in_place) {
          depthwise.fill(rows, kernel, tile, c0, channels, panel, ld);
        } else {
          depthwise.fill(staged, kernel, tile, c0, channels, panel, ld);
        }
        Ahead ahead;
        if (next_count > 0) {
          ahead = gradient.ahead(next, next_count);
          if (channels == depth && in_place) ahead.then(depthwise.ahead({0, gy.w, next, next_count}));
        }
        product.chunk(split, gradient, first, count, values.data, values.ld, c0, channels,
                      first != begin_pixel, ahead);
      }
    }
  });
  product.merge(parallel);
}
