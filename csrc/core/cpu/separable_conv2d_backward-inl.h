// Backward, from the inputs alone: nothing of the forward was stored.
//   input pass      G = grad_output x pointwise weights, by tiles of rows in a ring; the depthwise read
//   backward turns G
//                   into grad_input, and G against the input rows is grad_depthwise.
//   weight pass     grad_pointwise: see pointwise_gradient-inl.h.
// Work is cut by the shape alone, partial sums are merged in order: the same bits for any number of threads.

// Rows of G, the gradient of the depthwise output: the latest few tiles of consecutive rows (over images).
// Where no pointwise follows the depthwise, G is grad_output, and is read where it lies if it can be.
template <class S>
class GradientRing {
 public:
  using T = Compute<S>;
  GradientRing(const SeparableConv2dParams& p, int64_t tile_rows, int64_t tiles, int64_t channels,
               Scratch& scratch)
      : gy_(p.output),
        in_place_(!p.has_pointwise() && std::is_same_v<S, T> && channels_are_adjacent(gy_)),
        tile_rows_(tile_rows),
        tiles_(tiles),
        ld_(panel_ld<T>(channels)),
        slot_(scratch.add<T>(in_place_ ? 0 : tiles * tile_rows * gy_.w * ld_)),
        scratch_(scratch) {}

  // From now on: channels from c0 on, tiles from this row on.
  void start(int64_t c0, int64_t first_row) { c0_ = c0, first_row_ = first_row; }
  bool in_place() const { return in_place_; }
  T* tile(int64_t t) { return scratch_.get<T>(slot_) + t % tiles_ * tile_rows_ * gy_.w * ld_; }

  // As a source of rows for DepthwiseRow.
  int64_t pixel_stride() const { return in_place_ ? gy_.stride_w : ld_; }
  const T* row(int64_t n, int64_t r) {
    if (in_place_) return static_cast<const T*>(gy_.data) + n * gy_.stride_n + r * gy_.stride_h + c0_;
    const int64_t index = n * gy_.h + r - first_row_;
    return tile(index / tile_rows_) + index % tile_rows_ * gy_.w * ld_;
  }

 private:
  Image gy_;
  bool in_place_;
  int64_t tile_rows_, tiles_, ld_, c0_ = 0, first_row_ = 0;
  size_t slot_;
  Scratch& scratch_;
};

// Rows of grad_input: written where they belong, or through a buffer that folds the depth multiplier and
// converts. They pass the derivative of the prologue's activation, computed again from the input.
template <class S>
class InputGradientRows {
 public:
  using T = Compute<S>;
  // `prologue` is of the channels of the input, before they are repeated.
  InputGradientRows(const SeparableConv2dBackwardParams& b, const Stage<T>& prologue, int64_t channels,
                    Scratch& scratch)
      : x_(b.grad_input),
        input_(b.forward.input),
        prologue_(prologue),
        multiplier_(b.forward.depth_multiplier),
        scratch_(scratch),
        direct_(std::is_same_v<S, T> && channels_are_adjacent(x_) && multiplier_ == 1),
        ld_(panel_ld<T>(channels)) {
    if (!direct_) slot_ = scratch.add<T>(x_.w * ld_);
    if (prologue.activation != Activation::kNone) input_slot_ = scratch.add<T>(x_.w * ld_);
  }
  T* row(int64_t n, int64_t h, int64_t c0) {
    if (!direct_) return scratch_.get<T>(slot_);
    return static_cast<T*>(x_.data) + n * x_.stride_n + h * x_.stride_h + c0 * x_.stride_c;
  }
  int64_t step() const { return direct_ ? x_.stride_w : ld_; }
  // `channels` of the repeated channels from c0 on are in row(); blocks hold whole groups of `multiplier`.
  void commit(int64_t n, int64_t h, int64_t c0, int64_t channels) {
    T* to = row(n, h, c0);
    if (multiplier_ != 1) fold(to, channels);
    const int64_t first = c0 / multiplier_, count = channels / multiplier_;
    if (prologue_.activation != Activation::kNone) pass_activation(n, h, first, count, to);
    if (!direct_) store_pixels<S>(to, ld_, x_, (n * x_.h + h) * x_.w, x_.w, first, count);
  }

 private:
  void fold(T* row, int64_t channels) const {
    for (int64_t w = 0; w < x_.w; ++w)
      for (int64_t c = 0; c < channels / multiplier_; ++c) {
        T sum = 0;
        for (int64_t m = 0; m < multiplier_; ++m) sum += row[w * ld_ + c * multiplier_ + m];
        row[w * ld_ + c] = sum;
      }
  }
  void pass_activation(int64_t n, int64_t h, int64_t c0, int64_t channels, T* row) {
    const auto mask = [&](const auto* input, int64_t input_step) {
      for (int64_t w = 0; w < x_.w; ++w)
        for_each_vector<T>(channels, [&](auto vector, int64_t c) {
          T* g = row + w * step() + c;
          const Vec<T> x = affine(vector.read(input + w * input_step + c), prologue_, c0 + c);
          vector.write(g, activate_backward(vector.read(g), x, prologue_.activation));
        });
    };
    if (channels_are_adjacent(input_))
      return mask(static_cast<const S*>(input_.data) + n * input_.stride_n + h * input_.stride_h + c0,
                  input_.stride_w);
    T* input = scratch_.get<T>(input_slot_);
    load_pixels<S>(input_, (n * input_.h + h) * input_.w, input_.w, c0, channels, input, ld_);
    mask(static_cast<const T*>(input), ld_);
  }

  Image x_, input_;
  Stage<T> prologue_;
  int64_t multiplier_;
  Scratch& scratch_;
  bool direct_;
  int64_t ld_;
  size_t slot_ = 0, input_slot_ = 0;
};

// sums[c] += sum over rows of x[row * ld + c]; the rows are summed in a register first.
template <class T>
inline void add_columns(const T* x, int64_t ld, int64_t rows, int64_t columns, T* sums) {
  for_each_vector<T>(columns, [&](auto vector, int64_t c) {
    Vec<T> total = zero<T>();
    for (int64_t row = 0; row < rows; ++row) total = add(total, vector.read(x + row * ld + c));
    vector.write(sums + c, add(vector.read(sums + c), total));
  });
}

// grad_input, grad_depthwise_weight, grad_depthwise_bias.
template <class S>
void input_pass(const SeparableConv2dBackwardParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  const SeparableConv2dParams& p = b.forward;
  const Image& gy = p.output;
  const int64_t lanes = Vec<T>::kLanes;
  Scratch call(ScratchUse::kCall);
  DepthwiseStage<S> depthwise(p, call);
  const int64_t depth = depthwise.depth(), taps = depthwise.taps();
  InputGradientPlan plan = plan_input_gradient(gy.n, gy.h, gy.w, depth, tile_shape<T>());
  // A block holds whole groups of repeated channels and whole weight panels.
  plan.channel_block = round_up(plan.channel_block, std::lcm(p.depth_multiplier, int64_t{kTileColumns<T>}));
  plan.channel_blocks = divide_up(depth, plan.channel_block);

  const int64_t sums_ld = round_up(depth, lanes), sums_rows = taps + 1;  // the last row: the bias
  StageVectors<S> prologue_vectors(p.prologue, p.input.c, call);
  PackedWeights<T> weights{nullptr, gy.c, p.has_pointwise() ? depth : 0};
  const size_t packed_slot = call.add<T>(weights.size());
  const size_t sums_slot = call.add<T>(plan.image_groups * sums_rows * sums_ld);
  depthwise.prepare(call);
  const Stage<T> prologue = prologue_vectors.prepare(call);
  T* packed = call.get<T>(packed_slot);
  T* all_sums = call.get<T>(sums_slot);
  parallel.run(weights.panels(), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      pack_rows(static_cast<const S*>(p.pointwise_weight), weights, panel, packed + weights.offset(panel));
  });
  weights.data = packed;
  const DepthwisePlan backward{Direction::kBackward, depthwise.plan.vertical,
                               segments_of(axis_of(p.window, 1, p.input.w, gy.w), Direction::kBackward)};
  const int64_t reach =
      (p.window.kernel[0] - 1) * p.window.dilation[0] / p.window.stride[0];  // rows of G above the last

  parallel.run(plan.tasks(), [&](int64_t begin, int64_t end) {
    Scratch task(ScratchUse::kTask);
    const int64_t block = std::min(plan.channel_block, depth), tile_pixels = plan.tile_rows * gy.w;
    GradientRing<S> ring(p, plan.tile_rows, 1 + divide_up(reach, plan.tile_rows), block, task);
    GradientTiles<S> gradient(gy, tile_pixels, task);
    RowSource<S> rows(depthwise.rows(), block, task);
    InputGradientRows<S> result(b, prologue, block, task);
    DepthwiseRow<T> read_backward;
    DepthwiseGradientRow<T> weight_gradient;
    std::vector<Tap> needed;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t group = index / plan.channel_blocks,
                    c0 = index % plan.channel_blocks * plan.channel_block;
      const int64_t channels = std::min(plan.channel_block, depth - c0);
      const int64_t n0 = gy.n * group / plan.image_groups, n1 = gy.n * (group + 1) / plan.image_groups;
      const int64_t row0 = n0 * gy.h, row1 = n1 * gy.h;
      const DepthwiseWeights<T> from_c0{depthwise.weights.data + c0, depthwise.weights.ld,
                                        depthwise.weights.kernel_width};
      T* sums = all_sums + group * sums_rows * sums_ld + c0;
      for (int64_t t = 0; t < sums_rows; ++t)
        std::fill(sums + t * sums_ld, sums + t * sums_ld + channels, T(0));
      T* const bias_sums = sums + taps * sums_ld;
      rows.select(c0, channels);
      ring.start(c0, row0);
      int64_t next = n0 * p.input.h;  // first row of grad_input not written yet
      for (int64_t tile = 0; row0 + tile * plan.tile_rows < row1 || next < n1 * p.input.h; ++tile) {
        const int64_t first = std::min(row1, row0 + tile * plan.tile_rows),
                      last = std::min(row1, first + plan.tile_rows);
        const int64_t pixels = (last - first) * gy.w;
        if (pixels > 0 && !p.has_pointwise() && !ring.in_place()) {
          load_pixels<S>(gy, first * gy.w, pixels, c0, channels, ring.tile(tile), ring.pixel_stride());
        } else if (pixels > 0 && p.has_pointwise()) {
          const T* tile_gradient = gradient.tile(first * gy.w, pixels);
          for (int64_t c = 0; c < channels; c += kTileColumns<T>)
            multiply<false>(Panel<T>{tile_gradient, gradient.ld(), 1}, pixels,
                            weights.panel((c0 + c) / kTileColumns<T>),
                            weights.width((c0 + c) / kTileColumns<T>), gy.c,
                            TileOutput<T>{ring.tile(tile) + c, ring.pixel_stride(),
                                          std::min<int64_t>(kTileColumns<T>, channels - c)});
        }
        for (int64_t r = first; r < last; ++r) {
          const T* g = ring.row(r / gy.h, r % gy.h);
          if (b.grad_depthwise_weight != nullptr)
            weight_gradient.run(depthwise.plan, rows, r / gy.h, r % gy.h, g, ring.pixel_stride(), channels,
                                sums, sums_ld, p.window.kernel[1]);
          if (b.grad_depthwise_bias != nullptr)
            add_columns(g, ring.pixel_stride(), gy.w, channels, bias_sums);
        }
        if (b.grad_input.data == nullptr) {
          next = n1 * p.input.h;
          continue;
        }
        for (; next < n1 * p.input.h; ++next) {  // every row whose gradients have all arrived
          const int64_t n = next / p.input.h, h = next % p.input.h;
          taps_at(backward.vertical, Direction::kBackward, h, needed);
          if (!needed.empty() && n * gy.h + needed.back().source >= last) break;
          read_backward.run(backward, ring, from_c0, n, h, 1, 0, p.input.w, Stage<T>{}, channels,
                            result.row(n, h, c0), result.step(), 0);
          result.commit(n, h, c0, channels);
        }
      }
    }
  });

  // Groups in order, on one thread: taps x channels values.
  for (int64_t group = 1; group < plan.image_groups; ++group)
    for (int64_t i = 0; i < sums_rows * sums_ld; i += lanes)
      store(all_sums + i, add(load(all_sums + i), load(all_sums + group * sums_rows * sums_ld + i)));
  if (b.grad_depthwise_weight != nullptr)
    transpose_block(all_sums, sums_ld, static_cast<S*>(b.grad_depthwise_weight), taps, taps, depth);
  if (b.grad_depthwise_bias != nullptr)
    convert(all_sums + taps * sums_ld, static_cast<S*>(b.grad_depthwise_bias), depth);
}

// result[c] = sum of x over its pixels: the gradient of a bias.
template <class S>
void sum_pixels(const Image& x, S* result, const Parallel& parallel) {
  using T = Compute<S>;
  constexpr int64_t kChunk = 64, kMaxSplits = 32, kMinSplitPixels = 512;
  const int64_t pixels = x.n * x.h * x.w,
                splits = std::clamp<int64_t>(pixels / kMinSplitPixels, 1, kMaxSplits);
  const int64_t ld = round_up(x.c, Vec<T>::kLanes);
  Scratch call(ScratchUse::kCall);
  const size_t slot = call.add<T>(splits * ld);
  T* sums = call.get<T>(slot);
  parallel.run(splits, [&](int64_t begin, int64_t end) {
    Scratch task(ScratchUse::kTask);
    GradientTiles<S> tiles(x, kChunk, task);
    for (int64_t split = begin; split < end; ++split) {
      T* sum = sums + split * ld;
      std::fill(sum, sum + ld, T(0));
      const int64_t p1 = pixels * (split + 1) / splits;
      for (int64_t first = pixels * split / splits; first < p1; first += kChunk) {
        const int64_t count = std::min(kChunk, p1 - first);
        add_columns(tiles.tile(first, count), tiles.ld(), count, x.c, sum);
      }
    }
  });
  for (int64_t split = 1; split < splits; ++split)
    for (int64_t c = 0; c < ld; c += Vec<T>::kLanes)
      store(sums + c, add(load(sums + c), load(sums + split * ld + c)));
  convert(sums, result, x.c);
}

template <class S>
void separable_conv2d_backward(const SeparableConv2dBackwardParams& b, const Parallel& parallel) {
  if (b.grad_input.data != nullptr || b.grad_depthwise_weight != nullptr || b.grad_depthwise_bias != nullptr)
    input_pass<S>(b, parallel);
  if (b.grad_pointwise_weight != nullptr) weight_pass<S>(b, parallel);
  if (b.grad_pointwise_bias != nullptr)
    sum_pixels(b.forward.output, static_cast<S*>(b.grad_pointwise_bias), parallel);
}
