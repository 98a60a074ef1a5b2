// Backward, from the inputs alone: nothing of the forward was stored.
//   input pass      G = grad_output x pointwise weights, by tiles of rows in a ring; the depthwise read
//                   backward turns G into grad_input, and G against the input rows is grad_depthwise.
//   weight pass     grad_pointwise, from the depthwise output, which is computed again for a chunk of pixels
//                   and stays in L2 while grad_output passes by.
// Both products are those of pointwise_gradient-inl.h, or another instruction set's own (`Products`).
// Work is cut by the shape alone, partial sums are merged in order: the same bits for any number of threads.

// Rows of G, the gradient of the depthwise output: the latest few tiles of consecutive rows (over images).
// Where no pointwise follows the depthwise, G is grad_output, and is read where it lies if it can be.
template <class S>
class GradientRing {
 public:
  using T = Compute<S>;
  GradientRing(const SeparableConv2dParams& p, int64_t tile_rows, int64_t tiles, int64_t columns,
               Scratch& scratch)
      : gy_(p.output),
        in_place_(!p.has_pointwise() && std::is_same_v<S, T> && channels_are_adjacent(gy_)),
        tile_rows_(tile_rows),
        tiles_(tiles),
        ld_(panel_ld<T>(columns)),
        slot_(scratch.add<T>(in_place_ ? 0 : tiles * tile_rows * gy_.w * ld_)),
        scratch_(scratch) {}

  // From now on: channels from c0 on, tiles from this row on.
  void start(int64_t c0, int64_t first_row) { c0_ = c0, first_row_ = first_row; }
  bool in_place() const { return in_place_; }
  T* tile(int64_t t) { return scratch_.get<T>(slot_) + t % tiles_ * tile_rows_ * gy_.w * ld_; }

  // As a source of rows for DepthwiseRow.
  int64_t pixel_stride() const { return in_place_ ? gy_.stride_w : ld_; }
  Stage<T> on_load() const { return {}; }
  int64_t row_stride() const { return in_place_ ? gy_.stride_h : gy_.w * ld_; }
  int64_t image_stride() const { return in_place_ ? gy_.stride_n : gy_.h * row_stride(); }
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
// converts. They pass the derivative of the prologue's activation, computed again from the input, and are
// added up for a batch norm before it.
template <class S>
class InputGradientRows {
 public:
  using T = Compute<S>;
  // `rows` at a time; `prologue` is of the channels of the input, before they are repeated.
  InputGradientRows(const SeparableConv2dBackwardParams& b, const Stage<T>& prologue, int64_t channels,
                    int64_t rows, Scratch& scratch)
      : x_(b.grad_input),
        input_(b.forward.input),
        prologue_(prologue),
        mean_(static_cast<const T*>(b.prologue_mean)),
        multiplier_(b.forward.depth_multiplier),
        scratch_(scratch),
        direct_(std::is_same_v<S, T> && channels_are_adjacent(x_) && multiplier_ == 1),
        streamed_(direct_ && !reads_input(b) && is_in_lines(x_) &&
                  bypasses_caches(x_.n * x_.c * x_.h * x_.w * int64_t{sizeof(S)}, cache_sizes())),
        input_in_place_(std::is_same_v<S, T> && channels_are_adjacent(input_)),
        ld_(panel_ld<T>(channels)) {
    if (!direct_) slot_ = scratch.add<T>(rows * x_.w * ld_);
    if (reads_input(b) && !input_in_place_) input_slot_ = scratch.add<T>(x_.w * ld_);
    if (b.gradient_sums != nullptr) sums_.emplace(channels, scratch);
  }
  ~InputGradientRows() {
    if (streamed_) stream_fence();
  }
  // Whether what is written is not read here again, and may go past the caches: large results would push G
  // and the input out of them, and each of their lines would be fetched first.
  bool streamed() const { return streamed_; }
  // `at` counts the rows since the last commit.
  T* row(int64_t n, int64_t h, int64_t c0, int64_t at = 0) {
    if (!direct_) return scratch_.get<T>(slot_) + at * row_stride();
    return static_cast<T*>(x_.data) + n * x_.stride_n + h * x_.stride_h + c0;
  }
  int64_t pixel_stride() const { return direct_ ? x_.stride_w : ld_; }
  int64_t row_stride() const { return direct_ ? x_.stride_h : x_.w * ld_; }
  int64_t image_stride() const { return direct_ ? x_.stride_n : x_.h * row_stride(); }
  // Where the sums of the next rows go, of `channels` repeated channels from c0 on: those of all channels one
  // after another, twice.
  void start_sums(double* sums, int64_t c0, int64_t channels) {
    const int64_t first = c0 / multiplier_;
    if (sums_)
      sums_->begin({mean_ + first, nullptr, nullptr}, channels / multiplier_, sums + first,
                   sums + x_.c + first);
  }
  // `channels` of the repeated channels from c0 on of row h are in row(n, h, c0, at); blocks of channels hold
  // whole groups of `multiplier`.
  void commit(int64_t n, int64_t h, int64_t c0, int64_t channels, int64_t at = 0) {
    const int64_t first = c0 / multiplier_, count = channels / multiplier_;
    T* to = row(n, h, c0, at);
    if (multiplier_ != 1) fold(to, channels);
    if (sums_ || prologue_.activation != Activation::kNone) {
      const auto [x, step] = input_row(n, h, first, count);
      if (prologue_.activation != Activation::kNone) pass_activation(x, step, first, count, to);
      if (sums_) sums_->add_rows(x, step, to, pixel_stride(), x_.w);
    }
    if (!direct_) store_pixels<S>(to, ld_, x_, (n * x_.h + h) * x_.w, x_.w, first, count);
  }

 private:
  static bool reads_input(const SeparableConv2dBackwardParams& b) {
    return b.gradient_sums != nullptr || b.forward.prologue.activation != Activation::kNone;
  }
  static bool is_in_lines(const Image& x) {
    const auto whole = [](int64_t bytes) { return bytes % kLine == 0; };
    constexpr int64_t kSize = sizeof(S);
    return whole(static_cast<int64_t>(reinterpret_cast<uintptr_t>(x.data))) && whole(x.stride_w * kSize) &&
           whole(x.stride_h * kSize) && whole(x.stride_n * kSize);
  }
  void fold(T* row, int64_t channels) const {
    for (int64_t w = 0; w < x_.w; ++w)
      for (int64_t c = 0; c < channels / multiplier_; ++c) {
        T sum = 0;
        for (int64_t m = 0; m < multiplier_; ++m) sum += row[w * ld_ + c * multiplier_ + m];
        row[w * ld_ + c] = sum;
      }
  }
  // Channels [c0, c0 + channels) of an input row, and the step between its pixels.
  std::pair<const T*, int64_t> input_row(int64_t n, int64_t h, int64_t c0, int64_t channels) {
    if (input_in_place_)
      return {static_cast<const T*>(input_.data) + n * input_.stride_n + h * input_.stride_h + c0,
              input_.stride_w};
    T* to = scratch_.get<T>(input_slot_);
    load_pixels<S>(input_, (n * input_.h + h) * input_.w, input_.w, c0, channels, to, ld_);
    return {to, ld_};
  }
  void pass_activation(const T* input, int64_t step, int64_t c0, int64_t channels, T* row) const {
    for (int64_t w = 0; w < x_.w; ++w)
      for_each_vector<T>(channels, [&](auto vector, int64_t c) {
        T* g = row + w * pixel_stride() + c;
        const Vec<T> x = affine(vector.read(input + w * step + c), prologue_, c0 + c);
        vector.write(g, activate_backward(vector.read(g), x, prologue_.activation));
      });
  }

  Image x_, input_;
  Stage<T> prologue_;
  const T* mean_;
  int64_t multiplier_;
  Scratch& scratch_;
  bool direct_, streamed_, input_in_place_;
  int64_t ld_;
  size_t slot_ = 0, input_slot_ = 0;
  std::optional<GradientSums<Activation::kNone, T>> sums_;
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

// grad_input, grad_depthwise_weight, grad_depthwise_bias: what all tasks share.
template <class S, class Products>
class InputPass {
 public:
  using T = Compute<S>;
  using Product = typename Products::Gradient;

  InputPass(const SeparableConv2dBackwardParams& b, int threads, Scratch& call)
      : b_(b),
        depthwise_(b.forward, call),
        prologue_vectors_(b.forward.prologue, b.forward.input.c, call),
        depth_(depthwise_.depth()),
        plan_(plan_input_gradient(gy().n, gy().h, gy().w, depth_, threads, tile_shape<T>())),
        sums_ld_(round_up(depth_, Vec<T>::kLanes)),
        product_(b.forward, depth_, plan_.few_pixels, call),
        sums_slot_(call.add<T>(plan_.image_groups * sums_rows() * sums_ld_)),
        gradient_sums_slot_(
            call.add<double>(b.gradient_sums == nullptr ? 0 : plan_.image_groups * 2 * p().input.c)) {
    // A block holds whole groups of repeated channels and whole weight panels.
    plan_.channel_block =
        round_up(plan_.channel_block, std::lcm(p().depth_multiplier, int64_t{kTileColumns<T>}));
    plan_.channel_blocks = divide_up(depth_, plan_.channel_block);
  }
  void prepare(Scratch& call, const Parallel& parallel) {
    depthwise_.prepare(call);
    prologue_ = prologue_vectors_.prepare(call);
    sums_ = call.get<T>(sums_slot_);
    gradient_sums_ = call.get<double>(gradient_sums_slot_);
    vertical_ = depthwise_.plan.vertical;
    horizontal_ = axis_of(p().window, 1, p().input.w, gy().w);
    backward_ = {Direction::kBackward, vertical_, segments_of(horizontal_, Direction::kBackward)};
    product_.prepare(call, parallel);
  }
  int64_t tasks() const { return plan_.tasks(); }
  void run(Tasks& tasks) const { Task(*this).run(tasks); }

  // Groups in order, on one thread: taps x channels values.
  void merge() const {
    const int64_t values = 2 * p().input.c;
    for (int64_t i = 0; b_.gradient_sums != nullptr && i < values; ++i) {
      double sum = 0;
      for (int64_t group = 0; group < plan_.image_groups; ++group) sum += gradient_sums_[group * values + i];
      b_.gradient_sums[i] = sum;
    }
    for (int64_t group = 1; group < plan_.image_groups; ++group)
      for (int64_t i = 0; i < sums_rows() * sums_ld_; i += Vec<T>::kLanes)
        store(sums_ + i, add(load(sums_ + i), load(sums_ + group * sums_rows() * sums_ld_ + i)));
    const int64_t taps = depthwise_.taps();
    if (b_.grad_depthwise_weight != nullptr)
      transpose_block(sums_, sums_ld_, static_cast<S*>(b_.grad_depthwise_weight), taps, taps, depth_);
    if (b_.grad_depthwise_bias != nullptr)
      convert(sums_ + taps * sums_ld_, static_cast<S*>(b_.grad_depthwise_bias), depth_);
  }

 private:
  class Task;
  const SeparableConv2dParams& p() const { return b_.forward; }
  const Image& gy() const { return b_.forward.output; }
  int64_t sums_rows() const { return depthwise_.taps() + 1; }  // the last one: the bias
  int64_t reach() const {  // rows of G above the last that a row of grad_input reads
    return divide_up((p().window.kernel[0] - 1) * p().window.dilation[0], p().window.stride[0]);
  }
  int64_t tiles_kept() const {
    return plan_.whole_images ? 1 : 1 + divide_up(reach() + Registers<T>::kBlockRows - 1, plan_.tile_rows);
  }
  // Small images: a position of all images of a tile at once.
  bool by_position() const {
    constexpr int64_t kSmall = 16;
    return plan_.whole_images && gy().h * gy().w <= kSmall && p().input.h * p().input.w <= 4 * kSmall;
  }
  int64_t tile_images() const { return plan_.tile_rows / gy().h; }
  typename RowSource<S>::Shape rows() const {
    typename RowSource<S>::Shape shape = depthwise_.rows();
    if (by_position()) shape.window_rows = tile_images() * p().input.h;
    return shape;
  }

  const SeparableConv2dBackwardParams& b_;
  DepthwiseStage<S> depthwise_;
  StageVectors<S> prologue_vectors_;
  int64_t depth_;
  InputGradientPlan plan_;
  int64_t sums_ld_;
  Product product_;
  size_t sums_slot_, gradient_sums_slot_;
  Stage<T> prologue_;
  T* sums_ = nullptr;
  double* gradient_sums_ = nullptr;
  Axis vertical_{}, horizontal_{};
  DepthwisePlan backward_{};
};

// One block of channels of a group of images after another, tile by tile of rows of G.
template <class S, class Products>
class InputPass<S, Products>::Task {
 public:
  explicit Task(const InputPass& pass)
      : pass_(pass),
        p_(pass.p()),
        block_(std::min(pass.plan_.channel_block, pass.depth_)),
        ring_(p_, pass.plan_.tile_rows, pass.tiles_kept(), block_, scratch_),
        product_(pass.product_, pass.plan_.tile_rows * p_.output.w, block_, scratch_),
        rows_(pass.rows(), block_, scratch_),
        result_(pass.b_, pass.prologue_, block_,
                pass.by_position() ? pass.tile_images() * p_.input.h : Registers<T>::kBlockRows, scratch_),
        read_backward_(p_.window),
        vertical_(reserved<Tap>(p_.window.kernel[0])),
        horizontal_(reserved<Tap>(p_.window.kernel[1])),
        taps_(reserved<TapOffsets>(p_.window.kernel[0] * p_.window.kernel[1])) {}

  void run(Tasks& tasks) {
    const InputGradientPlan& plan = pass_.plan_;
    const int64_t batch = p_.output.n, height = p_.output.h, ld = pass_.sums_ld_;
    for (int64_t index; tasks.next(index);) {
      const int64_t group = index / plan.channel_blocks;
      c0_ = index % plan.channel_blocks * plan.channel_block;
      channels_ = std::min(plan.channel_block, pass_.depth_ - c0_);
      sums_ = pass_.sums_ + group * pass_.sums_rows() * ld + c0_;
      for (int64_t t = 0; t < pass_.sums_rows(); ++t)
        std::fill(sums_ + t * ld, sums_ + t * ld + channels_, T(0));
      const int64_t n0 = batch * group / plan.image_groups, n1 = batch * (group + 1) / plan.image_groups;
      next_ = n0 * p_.input.h;
      rows_.select(c0_, channels_);
      result_.start_sums(pass_.gradient_sums_ + group * 2 * p_.input.c, c0_, channels_);
      ring_.start(c0_, n0 * height);
      for (int64_t first = n0 * height, t = 0; first < n1 * height; first += plan.tile_rows, ++t)
        tile(t, first, std::min(first + plan.tile_rows, n1 * height));
    }
  }

 private:
  // Rows [first, last) of G.
  void tile(int64_t t, int64_t first, int64_t last) {
    const int64_t height = p_.output.h, width = p_.output.w, pixels = (last - first) * width;
    if (p_.has_pointwise()) {
      Ahead ahead;  // the input, which the weight gradient reads next; then grad_output of the next tile
      if (pass_.b_.grad_depthwise_weight != nullptr && channels_ == pass_.depth_ && rows_.in_place())
        ahead = pass_.depthwise_.ahead({0, width, first * width, pixels});
      const int64_t rows_left = p_.output.n * height - last;
      if (rows_left > 0)
        ahead.then(product_.ahead(last * width, std::min(pass_.plan_.tile_rows, rows_left) * width));
      product_.multiply(first * width, pixels, c0_, channels_, ring_.tile(t), ring_.pixel_stride(), ahead);
    } else if (!ring_.in_place()) {
      load_pixels<S>(p_.output, first * width, pixels, c0_, channels_, ring_.tile(t), ring_.pixel_stride());
    }
    if (pass_.b_.grad_depthwise_bias != nullptr)
      for (int64_t r = first; r < last; ++r)
        add_columns(ring_.row(r / height, r % height), ring_.pixel_stride(), width, channels_,
                    sums_ + pass_.depthwise_.taps() * pass_.sums_ld_);
    const bool by_position = pass_.by_position();
    if (pass_.b_.grad_depthwise_weight != nullptr)
      by_position ? add_weight_gradients(first / height, last / height)
                  : add_weight_gradients_of_rows(first, last);
    if (pass_.b_.grad_input.data != nullptr)
      by_position ? write_images(first / height, last / height) : write_rows(last);
  }

  DepthwiseGradient<T> weight_gradient() const {
    return {sums_, pass_.sums_ld_, p_.window.kernel[1], channels_};
  }
  void add_weight_gradients_of_rows(int64_t first, int64_t last) {
    const int64_t height = p_.output.h, pixel = rows_.pixel_stride();
    for (int64_t r = first; r < last; ++r) {
      const int64_t n = r / height;
      const T* g = ring_.row(n, r % height);
      taps_at(pass_.vertical_, Direction::kForward, r % height, vertical_);
      for (const Segment& segment : pass_.depthwise_.plan.segments) {
        if (segment.taps.empty()) continue;
        weight_gradient().add(
            vertical_, segment.taps, g + segment.begin * ring_.pixel_stride(), ring_.pixel_stride(),
            segment.count, segment.source_step * pixel, p_.window.dilation[1] * pixel,
            [&](int64_t row) { return rows_.row(n, row) + segment.taps[0].source * pixel; });
      }
    }
  }
  void add_weight_gradients(int64_t n0, int64_t n1) {
    rows_.start(n0);
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t r = 0; r < rows_.rows(); ++r) rows_.row(n, r);
    const T *x = rows_.row(n0, 0), *g = ring_.row(n0, 0);
    const int64_t pixel = rows_.pixel_stride();
    for (int64_t h = 0; h < p_.output.h; ++h) {
      taps_at(pass_.vertical_, Direction::kForward, h, vertical_);
      for (int64_t w = 0; w < p_.output.w; ++w) {
        taps_at(pass_.horizontal_, Direction::kForward, w, horizontal_);
        if (horizontal_.empty()) continue;
        weight_gradient().add(
            vertical_, horizontal_, g + h * ring_.row_stride() + w * ring_.pixel_stride(),
            ring_.image_stride(), n1 - n0, rows_.image_stride(), p_.window.dilation[1] * pixel,
            [&](int64_t row) { return x + row * rows_.row_stride() + horizontal_[0].source * pixel; });
      }
    }
  }

  // Rows of grad_input from next_ on whose gradients have all arrived with row `last` - 1.
  void write_rows(int64_t last) {
    constexpr int64_t kRows = Registers<T>::kBlockRows;
    const int64_t height = p_.input.h;
    while (next_ / height * p_.output.h < last) {
      const int64_t n = next_ / height, h = next_ % height, arrived = last - n * p_.output.h;
      const int64_t ready =
          arrived >= p_.output.h
              ? height
              : std::clamp<int64_t>(arrived * p_.window.stride[0] - p_.window.padding[0], 0, height);
      // Rows that can go together wait for each other.
      const int64_t count = pass_.backward_.alike(h, height - h) >= kRows ? kRows : 1;
      if (h + count > ready) break;
      read_backward_.run(pass_.backward_, ring_, weights(), n, h, count, 0, p_.input.w, Stage<T>{}, channels_,
                         result_.row(n, h, c0_), result_.pixel_stride(), result_.row_stride(),
                         result_.streamed());
      for (int64_t r = 0; r < count; ++r) result_.commit(n, h + r, c0_, channels_, r);
      next_ += count;
    }
  }
  void write_images(int64_t n0, int64_t n1) {
    const int64_t height = p_.input.h;
    const DepthwiseWeights<T> from_c0 = weights();
    const T *g = ring_.row(n0, 0), *from = from_c0.data;
    for (int64_t h = 0; h < height; ++h) {
      taps_at(pass_.vertical_, Direction::kBackward, h, vertical_);
      for (int64_t w = 0; w < p_.input.w; ++w) {
        taps_at(pass_.horizontal_, Direction::kBackward, w, horizontal_);
        taps_.clear();
        for (const Tap& row : vertical_)
          for (const Tap& tap : horizontal_)
            taps_.push_back({row.source * ring_.row_stride() + tap.source * ring_.pixel_stride(),
                             (row.kernel_index * from_c0.kernel_width + tap.kernel_index) * from_c0.ld});
        sum_all_taps<OnLoad::kNothing>(
            WeightedSum<T, T>{&g, &from, 1, taps_.data(), static_cast<int64_t>(taps_.size()),
                              ring_.image_stride(), result_.row(n0, h, c0_, h) + w * result_.pixel_stride(),
                              result_.image_stride(), n1 - n0, channels_, Stage<T>{}});
      }
    }
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t h = 0; h < height; ++h) result_.commit(n, h, c0_, channels_, (n - n0) * height + h);
  }
  DepthwiseWeights<T> weights() const {
    const DepthwiseWeights<T>& all = pass_.depthwise_.weights;
    return {all.data + c0_, all.ld, all.kernel_width};
  }

  const InputPass& pass_;
  const SeparableConv2dParams& p_;
  Scratch scratch_{ScratchUse::kTask};
  int64_t block_;
  GradientRing<S> ring_;
  typename Product::Task product_;
  RowSource<S> rows_;
  InputGradientRows<S> result_;
  DepthwiseRow<T> read_backward_;
  ScratchVector<Tap> vertical_, horizontal_;
  ScratchVector<TapOffsets> taps_;
  int64_t c0_ = 0, channels_ = 0, next_ = 0;
  T* sums_ = nullptr;
};

template <class S, class Products>
void input_pass(const SeparableConv2dBackwardParams& b, const Parallel& parallel) {
  Scratch call(ScratchUse::kCall);
  InputPass<S, Products> pass(b, parallel.threads, call);
  pass.prepare(call, parallel);
  parallel.share(pass.tasks(), [&](Tasks& tasks) { pass.run(tasks); });
  if (!call.only_counts()) pass.merge();
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
  parallel.share(splits, [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    GradientTiles<S> tiles(x, kChunk, task);
    for (int64_t split; tasks.next(split);) {
      T* sum = sums + split * ld;
      std::fill(sum, sum + ld, T(0));
      const int64_t p1 = pixels * (split + 1) / splits;
      for (int64_t first = pixels * split / splits; first < p1; first += kChunk) {
        const int64_t count = std::min(kChunk, p1 - first);
        add_columns(tiles.tile(first, count), tiles.ld(), count, x.c, sum);
      }
    }
  });
  if (call.only_counts()) return;
  for (int64_t split = 1; split < splits; ++split)
    for (int64_t c = 0; c < ld; c += Vec<T>::kLanes)
      store(sums + c, add(load(sums + c), load(sums + split * ld + c)));
  convert(sums, result, x.c);
}

// grad_pointwise_weight.
template <class S, class Products>
void weight_pass(const SeparableConv2dBackwardParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  using Product = typename Products::Weights;
  using Value = typename Product::Value;  // of the depthwise output
  const SeparableConv2dParams& p = b.forward;
  const Image& gy = p.output;
  Scratch call(ScratchUse::kCall);
  DepthwiseStage<S> depthwise(p, call);
  const int64_t depth = depthwise.depth();
  const WeightGradientPlan plan = plan_weight_gradient(gy.n, gy.h, gy.w, depth, sizeof(T), tile_shape<T>(),
                                                       parallel.threads, cache_sizes());
  Product product(plan, gy.c, depth, call);
  depthwise.prepare(call);
  product.prepare(call, static_cast<S*>(b.grad_pointwise_weight));

  // Without a depthwise the input itself is the right factor.
  const bool narrow = columns_are_near(plan.pixel_chunk, p.input.stride_w * int64_t{sizeof(S)});
  const bool in_place = std::is_same_v<S, Value> && RowsInPlace<S>::serves(p);
  parallel.share(plan.tasks(), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const int64_t block = std::min(plan.depth_block, round_up(depth, kTileColumns<T>)),
                  ld = panel_ld<T>(block);
    const size_t panel_slot = task.add<Value>(plan.pixel_chunk * ld);
    typename Product::Task gradient(gy, plan.pixel_chunk, block, task);
    RowsInPlace<Value> rows(p.input, depthwise.prologue);
    RowSource<S> staged(in_place ? typename RowSource<S>::Shape{} : depthwise.rows(), block, task);
    DepthwiseRow<Value> kernel(p.window);
    DepthwiseRow<T> kernel_of_staged(p.window);
    Value* panel = task.get<Value>(panel_slot);
    for (int64_t index; tasks.next(index);) {
      const int64_t split = index % plan.pixel_splits, c0 = index / plan.pixel_splits * plan.depth_block;
      const int64_t channels = std::min(plan.depth_block, depth - c0);
      rows.select(c0, channels), staged.select(c0, channels);
      const int64_t begin_pixel = plan.first_pixel(split), end_pixel = plan.first_pixel(split + 1);
      for (int64_t first = begin_pixel; first < end_pixel; first += plan.pixel_chunk) {
        const int64_t count = std::min(plan.pixel_chunk, end_pixel - first), next = first + count,
                      next_count = std::min(plan.pixel_chunk, end_pixel - next);
        const PixelTile tile{0, gy.w, first, count};
        Panel<Value> values{panel, ld, 1};
        if (narrow && depthwise.template is_input<Value>()) {
          values = depthwise.template input<Value>(tile, c0);
        } else if (in_place) {
          depthwise.fill(rows, kernel, tile, c0, channels, panel, ld);
        } else {
          depthwise.fill(staged, kernel_of_staged, tile, c0, channels, panel, ld);
        }
        Ahead ahead;
        if (next_count > 0) {
          ahead = gradient.ahead(next, next_count);
          if (channels == depth && in_place) ahead.then(depthwise.ahead({0, gy.w, next, next_count}));
        }
        product.chunk(split, gradient, first, count, values.data, values.row_step, c0, channels,
                      first != begin_pixel, ahead);
      }
    }
  });
  product.merge(parallel);
}

template <class S, class Products = ComputeProducts<S>>
void separable_conv2d_backward(const SeparableConv2dBackwardParams& b, const Parallel& parallel) {
  if (b.grad_input.data != nullptr || b.grad_depthwise_weight != nullptr || b.grad_depthwise_bias != nullptr)
    input_pass<S, Products>(b, parallel);
  if (b.grad_pointwise_weight != nullptr) weight_pass<S, Products>(b, parallel);
  if (b.grad_pointwise_bias != nullptr)
    sum_pixels(b.forward.output, static_cast<S*>(b.grad_pointwise_bias), parallel);
}
