// A dense convolution of averaged rows: the same GEMM over kh x kw x C values a pixel in the order (kh, kw,
// c), in which the taps of a kernel row are one run of memory. Where rows can be staged, the product reads
// these runs in place; else a gather fills its panel.

template <class S>
class DenseStage {
 public:
  using T = Compute<S>;

  DenseStage(const RowAverageConv2dParams& p, Scratch& call)
      : p_(p), taps_(p.window.kernel[0] * p.window.kernel[1]), prologue_(p.prologue, p.input.c, call) {}

  void prepare(Scratch& call) {
    const int64_t s = p_.prologue.row_average_stride;
    height_ = s == 0 ? p_.input.h : row_average_size(p_.input.h, s);
    vertical_ = axis_of(p_.window, 0, height_, p_.output.h);
    segments_ = segments_of(axis_of(p_.window, 1, p_.input.w, p_.output.w), Direction::kForward);
    stage_ = prologue_.prepare(call);
  }
  typename RowSource<S>::Shape rows() const {
    const int64_t window = (p_.window.kernel[0] - 1) * p_.window.dilation[0] + 1;
    return {p_.input, 1, p_.prologue.row_average_stride, stage_, std::min(window, height_)};
  }
  int64_t depth() const { return taps_ * p_.input.c; }
  int64_t height() const { return height_; }  // of the averaged image
  const Axis& vertical() const { return vertical_; }
  const ScratchVector<Segment>& segments() const { return segments_; }

  // The gathered inputs of pixels [first, first + count): panel[pixel][(kh, kw, c)]. `vertical` is for the
  // taps of a row.
  void fill(RowSource<S>& rows, ScratchVector<Tap>& vertical, int64_t first, int64_t count, T* panel,
            int64_t ld) const {
    const Image& out = p_.output;
    for (int64_t done = 0; done < count;) {
      const int64_t pixel = first + done, w = pixel % out.w, h = pixel / out.w % out.h,
                    n = pixel / out.w / out.h;
      const int64_t length = std::min(count - done, out.w - w);
      taps_at(vertical_, Direction::kForward, h, vertical);
      fill_row(rows, vertical, n, w, w + length, panel + done * ld, ld);
      done += length;
    }
  }

  // (c_out, c, kh, kw) as the panel orders it: (c_out, kh, kw, c), and back.
  void to_panel_order(const S* weight, S* ordered) const { to_panel_order(weight, ordered, depth()); }
  void to_panel_order(const S* weight, S* ordered, int64_t ld) const {
    for_each_weight(ld, [&](int64_t stored, int64_t panel) { ordered[panel] = weight[stored]; });
  }
  void from_panel_order(const S* ordered, S* weight) const {
    for_each_weight(depth(), [&](int64_t stored, int64_t panel) { weight[stored] = ordered[panel]; });
  }

 private:
  template <class Body>
  void for_each_weight(int64_t ld, Body&& body) const {
    const int64_t channels = p_.input.c;
    for (int64_t o = 0; o < p_.output.c; ++o)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t t = 0; t < taps_; ++t) body((o * channels + c) * taps_ + t, o * ld + t * channels + c);
  }

  void fill_row(RowSource<S>& rows, const ScratchVector<Tap>& vertical, int64_t n, int64_t begin, int64_t end,
                T* panel, int64_t ld) const {
    const int64_t channels = p_.input.c, kernel_row = p_.window.kernel[1] * channels;
    const int64_t pixel = rows.pixel_stride();
    for (const Segment& segment : segments_) {
      const int64_t j0 = std::max<int64_t>(0, begin - segment.begin),
                    j1 = std::min(segment.count, end - segment.begin);
      if (j0 >= j1) continue;
      T* to = panel + (segment.begin + j0 - begin) * ld;
      const bool whole = static_cast<int64_t>(vertical.size() * segment.taps.size()) == taps_;
      if (!whole)
        for (int64_t j = 0; j < j1 - j0; ++j) std::fill(to + j * ld, to + j * ld + depth(), T(0));
      const bool joined = pixel == channels && p_.window.dilation[1] == 1;
      for (const Tap& row_tap : vertical) {
        const T* row = rows.row(n, row_tap.source);
        T* row_to = to + row_tap.kernel_index * kernel_row;
        for (size_t t = 0; t < segment.taps.size(); t += joined ? segment.taps.size() : 1) {
          const Tap& tap = segment.taps[t];
          const int64_t values = joined ? static_cast<int64_t>(segment.taps.size()) * channels : channels;
          for (int64_t j = j0; j < j1; ++j)
            convert(row + (tap.source + j * segment.source_step) * pixel,
                    row_to + (j - j0) * ld + tap.kernel_index * channels, values);
        }
      }
    }
  }

  const RowAverageConv2dParams& p_;
  int64_t taps_, height_ = 0;
  StageVectors<S> prologue_;
  Axis vertical_{};
  ScratchVector<Segment> segments_;
  Stage<T> stage_;
};

// NCHW in and out: the factors change places, as the pixels of a channel are what is adjacent. Pixels are the
// columns of the product, output channels its rows, and a bias is one more step of the depth. Sums keep their
// order.
template <class S>
bool is_planar(const RowAverageConv2dParams& p) {
  using T = Compute<S>;
  const Image& y = p.output;
  return std::is_same_v<S, T> && WindowRows<S>::serves(p, RowOrder::kPlanar) && y.stride_w == 1 &&
         y.stride_h == y.w && y.h * y.w >= kTileColumns<T> && p.epilogue.scale == nullptr &&
         p.epilogue.activation == Activation::kNone && p.epilogue.residual.data == nullptr;
}

template <class S>
void row_average_conv2d_planar(const RowAverageConv2dParams& p, const Parallel& parallel) {
  using T = Compute<S>;
  constexpr int64_t kColumns = kTileColumns<T>, kLd = kColumns + Vec<T>::kLanes;
  const Image& y = p.output;
  const bool bias = p.epilogue.shift != nullptr;
  Scratch call(ScratchUse::kCall);
  DenseStage<S> dense(p, call);
  const int64_t taps = dense.depth(), depth = taps + bias, pixels = y.h * y.w,
                tiles = divide_up(pixels, kColumns);
  const size_t weights_slot = call.add<S>(y.c * depth);
  dense.prepare(call);
  S* weights = call.get<S>(weights_slot);
  if (!call.only_counts()) {
    dense.to_panel_order(static_cast<const S*>(p.weight), weights, depth);
    for (int64_t o = 0; bias && o < y.c; ++o)
      weights[o * depth + taps] = static_cast<const S*>(p.epilogue.shift)[o];
  }

  parallel.share(y.n * tiles, [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    WindowRows<S> rows(p, RowOrder::kPlanar, dense.height(), task);
    const size_t panel_slot = task.add<T>(depth * kLd);
    rows.prepare(task);
    T* panel = task.get<T>(panel_slot);
    if (!task.only_counts()) std::fill(panel, panel + depth * kLd, T(1));
    for (int64_t index; tasks.next(index);) {
      const int64_t n = index / tiles, first = index % tiles * kColumns,
                    count = std::min(kColumns, pixels - first);
      rows.fill_by_tap(n * pixels + first, count, panel, kLd);
      const Panel<T> left{reinterpret_cast<const T*>(weights), depth, 1};
      multiply<false>(left, y.c, static_cast<const T*>(panel), kLd, depth,
                      TileOutput<T>{static_cast<T*>(y.data) + n * y.stride_n + first, y.stride_c, count});
    }
  });
}

template <class S>
void row_average_conv2d(const RowAverageConv2dParams& p, const Parallel& parallel) {
  using T = Compute<S>;
  if (is_planar<S>(p)) return row_average_conv2d_planar<S>(p, parallel);
  const bool interleaved = WindowRows<S>::serves(p, RowOrder::kInterleaved);
  Scratch call(ScratchUse::kCall);
  DenseStage<S> dense(p, call);
  StageVectors<S> epilogue_vectors(p.epilogue, p.output.c, call);
  const int64_t depth = dense.depth(), pixels = p.output.n * p.output.h * p.output.w;
  const size_t ordered_slot = call.add<S>(p.output.c * depth);
  PackedWeights<T> weights{nullptr, depth, p.output.c};
  const size_t packed_slot = call.add<T>(weights.size());
  dense.prepare(call);
  const Stage<T> epilogue = epilogue_vectors.prepare(call);
  S* ordered = call.get<S>(ordered_slot);
  T* packed = call.get<T>(packed_slot);
  // One column wide: there is no depthwise that would gain from strips.
  ForwardPlan plan =
      plan_forward(pixels, 1, depth, p.output.c, sizeof(T), tile_shape<T>(), parallel.threads, cache_sizes());
  if (interleaved) plan.prefer_whole_rows(p.output.w, parallel.threads);
  if (!call.only_counts()) {
    dense.to_panel_order(static_cast<const S*>(p.weight), ordered);
    for (int64_t panel = 0; panel < plan.panels; ++panel)
      pack_transposed(static_cast<const S*>(ordered), weights, panel, packed + weights.offset(panel));
  }
  weights.data = packed;

  parallel.share(plan.tasks(), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const int64_t ld = panel_ld<T>(depth);
    std::optional<WindowRows<S>> window_rows;
    std::optional<RowSource<S>> rows;
    size_t panel_slot = 0;
    auto vertical = reserved<Tap>(p.window.kernel[0]);
    if (interleaved) {
      window_rows.emplace(p, RowOrder::kInterleaved, dense.height(), task);
    } else {
      rows.emplace(dense.rows(), p.input.c, task);
      panel_slot = task.add<T>(plan.pixel_tile * ld);
    }
    OutputTiles<S> output(p.output, p.epilogue, plan.pixel_tile, task);
    interleaved ? window_rows->prepare(task) : rows->select(0, p.input.c);
    for (int64_t index; tasks.next(index);) {
      const int64_t split = index / plan.pixel_tiles, first = index % plan.pixel_tiles * plan.pixel_tile;
      const int64_t count = std::min(plan.pixel_tile, pixels - first);
      const int64_t j0 = plan.panels * split / plan.panel_splits,
                    j1 = plan.panels * (split + 1) / plan.panel_splits;
      const auto multiply_by_all = [&](const Panel<T>& left, int64_t run_depth, int64_t from,
                                       int64_t length) {
        for (int64_t j = j0; j < j1; ++j)
          output.write({0, p.output.w, first + from, length}, j * kTileColumns<T>, epilogue,
                       [&](const TileOutput<T>& out, int64_t, int64_t) {
                         multiply<false>(left, length, weights.panel(j), weights.width(j), run_depth, out);
                       });
      };
      if (interleaved) {
        window_rows->for_each_row_of_windows(
            first, count, [&](const Panel<T>& windows, int64_t from, int64_t length) {
              multiply_by_all(windows, window_rows->run_depth(), from, length);
            });
      } else {
        T* panel = task.get<T>(panel_slot);
        dense.fill(*rows, vertical, first, count, panel, ld);
        multiply_by_all({panel, ld, 1}, depth, 0, count);
      }
    }
  });
}
