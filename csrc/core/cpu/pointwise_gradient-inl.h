// The gradient of pointwise weights: a block of channels at a time, the depthwise output is computed again
// for a chunk of pixels and multiplied with grad_output while both are in L2, in the final layout.

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

 private:
  Image x_;
  Scratch& scratch_;
  bool direct_;
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
  void chunk(int64_t split, const T* left, int64_t left_ld, const T* right, int64_t right_ld, int64_t count,
             int64_t column, int64_t columns, bool accumulate) const {
    T* to = sums_ + split * left_columns_ * ld_ + column;
    for (int64_t c = 0; c < columns; c += kTileColumns<T>) {
      TileOutput<T> out{to + c, ld_, std::min<int64_t>(kTileColumns<T>, columns - c)};
      out.accumulate = accumulate;
      multiply<true>(Panel<T>{left, 1, left_ld}, left_columns_, right + c, right_ld, count, out);
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
  const int64_t pixels = gy.n * gy.h * gy.w;
  Scratch call(ScratchUse::kCall);
  DepthwiseStage<S> depthwise(p, call);
  const int64_t depth = depthwise.depth();
  const WeightGradientPlan plan = plan_weight_gradient(pixels, depth, gy.c, sizeof(T), tile_shape<T>());
  WeightProduct<S> product(plan.pixel_splits, gy.c, depth, call);
  depthwise.prepare(call);
  product.prepare(call, static_cast<S*>(b.grad_pointwise_weight));

  parallel.run(plan.tasks(), [&](int64_t begin, int64_t end) {
    Scratch task(ScratchUse::kTask);
    const int64_t block = std::min(plan.depth_block, round_up(depth, kTileColumns<T>)),
                  ld = panel_ld<T>(block);
    const size_t panel_slot = task.add<T>(plan.pixel_chunk * ld);
    GradientTiles<S> gradient(gy, plan.pixel_chunk, task);
    RowSource<S> rows(depthwise.rows(), block, task);
    DepthwiseRow<T> kernel;
    T* panel = task.get<T>(panel_slot);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t split = index % plan.pixel_splits, c0 = index / plan.pixel_splits * plan.depth_block;
      const int64_t channels = std::min(plan.depth_block, depth - c0);
      const int64_t p0 = pixels * split / plan.pixel_splits, p1 = pixels * (split + 1) / plan.pixel_splits;
      rows.select(c0, channels);
      for (int64_t first = p0; first < p1; first += plan.pixel_chunk) {
        const int64_t count = std::min(plan.pixel_chunk, p1 - first);
        depthwise.fill(rows, kernel, first, count, c0, channels, panel, ld);
        product.chunk(split, gradient.tile(first, count), gradient.ld(), panel, ld, count, c0, channels,
                      first != p0);
      }
    }
  });
  product.merge(parallel);
}
