// Forward: for each tile of pixels, rows -> depthwise panel -> pointwise -> output. See csrc/README.md for
// the picture.

// Both weights in the compute type and in the kernels' order: taps of the depthwise, then panels of the
// pointwise.
template <class S>
struct PackedLayout {
  using T = Compute<S>;
  explicit PackedLayout(const SeparableConv2dParams& p)
      : depth(p.input.c * p.depth_multiplier),
        columns(p.output.c),
        taps(p.window.kernel[0] * p.window.kernel[1]),
        ld(round_up(depth, Vec<T>::kLanes)),
        pointwise(round_up(taps * ld, kScratchAlignment / sizeof(T))) {}
  int64_t depth, columns, taps, ld;
  int64_t pointwise;  // where the panels begin, in elements
  PackedWeights<T> weights() const { return {nullptr, depth, columns}; }
};

template <class S>
inline void pack_depthwise(const SeparableConv2dParams& p, const PackedLayout<S>& layout, Compute<S>* to) {
  // The pointwise convolution alone is one whose depthwise has one tap, one.
  if (p.depthwise_weight == nullptr) return std::fill(to, to + layout.ld, Compute<S>(1));
  for (int64_t t = 0; t < layout.taps; ++t)
    std::fill(to + t * layout.ld + layout.depth, to + (t + 1) * layout.ld, Compute<S>(0));
  transpose_block(static_cast<const S*>(p.depthwise_weight), layout.taps, to, layout.ld, layout.depth,
                  layout.taps);
}

template <class S>
int64_t packed_bytes(const SeparableConv2dParams& p) {
  using T = Compute<S>;
  const PackedLayout<S> layout(p);
  return (layout.pointwise + layout.weights().size()) * int64_t{sizeof(T)};
}

template <class S>
void pack(const SeparableConv2dParams& p, void* packed) {
  using T = Compute<S>;
  const PackedLayout<S> layout(p);
  pack_depthwise(p, layout, static_cast<T*>(packed));
  const PackedWeights<T> weights = layout.weights();
  for (int64_t j = 0; j < weights.panels(); ++j)
    pack_transposed(static_cast<const S*>(p.pointwise_weight), weights, j,
                    static_cast<T*>(packed) + layout.pointwise + weights.offset(j));
}

// The depthwise side of a call, shared by forward and weight gradient: packed weights, taps and the middle
// stage.
template <class S>
class DepthwiseStage {
 public:
  using T = Compute<S>;

  DepthwiseStage(const SeparableConv2dParams& p, Scratch& call)
      : p_(p),
        layout_(p),
        weights_(call.add<T>(p.packed_weights == nullptr ? layout_.taps * layout_.ld : 0)),
        prologue_(p.prologue, depth(), call),
        middle_(p.middle, depth(), call) {}

  void prepare(Scratch& call) {
    if (p_.packed_weights == nullptr && !call.only_counts())
      pack_depthwise(p_, layout_, call.get<T>(weights_));
    weights = {
        p_.packed_weights == nullptr ? call.get<T>(weights_) : static_cast<const T*>(p_.packed_weights),
        layout_.ld, p_.window.kernel[1]};
    prologue = prologue_.prepare(call, p_.depth_multiplier);
    middle = middle_.prepare(call);
    const Axis vertical = axis_of(p_.window, 0, rows_of_input(), p_.output.h);
    const Axis horizontal = axis_of(p_.window, 1, p_.input.w, p_.output.w);
    plan = {Direction::kForward, vertical, segments_of(horizontal, Direction::kForward)};
  }

  typename RowSource<S>::Shape rows() const {
    const int64_t window = (p_.window.kernel[0] - 1) * p_.window.dilation[0] + Registers<T>::kBlockRows;
    return {p_.input, p_.depth_multiplier, p_.prologue.row_average_stride, prologue,
            std::min(window, rows_of_input())};
  }
  int64_t depth() const { return layout_.depth; }
  int64_t taps() const { return layout_.taps; }

  // Depthwise outputs of pixels [first, first + count), channels [c0, c0 + channels) (those `rows` has
  // selected), into panel[pixel][channel].
  void fill(RowSource<S>& rows, DepthwiseRow<T>& kernel, int64_t first, int64_t count, int64_t c0,
            int64_t channels, T* panel, int64_t ld) const {
    fill(rows, kernel, {0, p_.output.w, first, count}, c0, channels, panel, ld);
  }
  template <class Rows, class Source, class D>
  void fill(Rows& rows, DepthwiseRow<Source>& kernel, const PixelTile& tile, int64_t c0, int64_t channels,
            D* panel, int64_t ld) const {
    const int64_t height = p_.output.h, width = tile.width;
    const DepthwiseWeights<T> from_c0{weights.data + c0, weights.ld, weights.kernel_width};
    for (int64_t done = 0; done < tile.count;) {
      const int64_t pixel = tile.first + done, w = pixel % width, h = pixel / width % height,
                    n = pixel / width / height;
      const int64_t whole_rows = w == 0 ? std::min((tile.count - done) / width, height - h) : 0;
      const bool block = plan.alike(h, whole_rows) >= Registers<T>::kBlockRows;
      const int64_t row_count = block ? Registers<T>::kBlockRows : 1,
                    length = std::min(tile.count - done, width - w);
      kernel.run(plan, rows, from_c0, n, h, row_count, tile.column + w, tile.column + w + length,
                 middle.from(c0), channels, panel + done * ld, ld, width * ld);
      done += row_count * length;
    }
  }

  // Rows [h, h + count) of image n, `row_step` apart, pixels `step` apart; all channels.
  template <class D>
  void fill_rows(RowSource<S>& rows, DepthwiseRow<T>& kernel, int64_t n, int64_t h, int64_t count, D* to,
                 int64_t step, int64_t row_step) const {
    for (int64_t r = 0; r < count;) {
      const int64_t at_once =
          plan.alike(h + r, count - r) >= Registers<T>::kBlockRows ? Registers<T>::kBlockRows : 1;
      kernel.run(plan, rows, weights, n, h + r, at_once, 0, p_.output.w, middle, depth(), to + r * row_step,
                 step, row_step);
      r += at_once;
    }
  }

  // Whether what fill() leaves in a buffer, the left factor of a tile's product, would be a copy of the
  // input, which can be read where it lies.
  template <class D = T>
  bool is_input() const {
    const Window& window = p_.window;
    return std::is_same_v<S, D> && !p_.has_depthwise() && RowsInPlace<S>::serves(p_) && prologue.empty() &&
           middle.empty() && window.stride[0] == 1 && window.stride[1] == 1 && pixels_are_linear(p_.input);
  }
  template <class D = T>
  Panel<D> input(const PixelTile& tile, int64_t c0) const {
    const Image& in = p_.input;
    return {static_cast<const D*>(in.data) + tile.first * in.stride_w + c0, in.stride_w, 1};
  }

  // What a tile reads and the tile above it did not: of each of its rows the lowest pixels, and with a stride
  // as many rows of the input as it goes down. For rows that are read where they lie.
  Ahead ahead(const PixelTile& tile) const {
    const int64_t row = tile.first / tile.width, last = (tile.first + tile.count - 1) / tile.width;
    if (tile.width == p_.output.w) {  // rows join
      const S* begin = lowest(row, tile.first % tile.width);
      const S* end = lowest(last, (tile.first + tile.count - 1) % tile.width);
      return {begin, (end - begin + depth()) * int64_t{sizeof(S)}};
    }
    const Window& window = p_.window;
    const int64_t stride = window.stride[0];
    const int64_t fresh = window.dilation[0] == 1 && stride <= window.kernel[0] ? stride : 1;
    const S* begin = lowest(row, tile.column, fresh - 1);
    const S* end = lowest(row, tile.column + tile.width - 1, fresh - 1);
    return {begin, (end - begin + depth()) * int64_t{sizeof(S)}, (last - row + 1) * fresh,
            stride / fresh * p_.input.stride_h * int64_t{sizeof(S)}};
  }

  DepthwiseWeights<T> weights{};
  DepthwisePlan plan{};
  Stage<T> prologue, middle;

 private:
  // The input pixel at the foot of the window of output `w` of a row, or `above` it; rows counted over all
  // images.
  const S* lowest(int64_t row, int64_t w, int64_t above = 0) const {
    const Image& in = p_.input;
    const int64_t h = row % p_.output.h, n = row / p_.output.h;
    const Window& window = p_.window;
    const int64_t bottom = (window.kernel[0] - 1) * window.dilation[0] - window.padding[0];
    const int64_t lowest_row = std::clamp<int64_t>(h * window.stride[0] + bottom - above, 0, in.h - 1);
    const int64_t column = std::min(w * window.stride[1], in.w - 1);
    return static_cast<const S*>(in.data) + n * in.stride_n + lowest_row * in.stride_h + column * in.stride_w;
  }
  int64_t rows_of_input() const {
    const int64_t s = p_.prologue.row_average_stride;
    return s == 0 ? p_.input.h : row_average_size(p_.input.h, s);
  }
  const SeparableConv2dParams& p_;
  PackedLayout<S> layout_;
  size_t weights_;
  StageVectors<S> prologue_, middle_;
};

// Leading dimension of a panel: whole vectors, and one more so that its rows do not share cache sets.
template <class T>
inline int64_t panel_ld(int64_t depth) {
  return round_up(depth, Vec<T>::kLanes) + Vec<T>::kLanes;
}

// The pointwise weights of a task. Packed before the call (frozen), by all threads at its start, or by each
// task for itself, a panel right before its first use: what one core packs and another reads crosses the
// chip, which takes longer than packing.
template <class S>
class WeightPanels {
 public:
  using T = Compute<S>;

  // `shared`: where every panel is packed already, or null: panels are packed on demand. Those of one use
  // only share the memory of one, which then stays in L2.
  WeightPanels(const SeparableConv2dParams& p, const T* shared, int64_t depth, bool used_once, Scratch& task)
      : from_(static_cast<const S*>(p.pointwise_weight)),
        task_(task),
        weights_{shared, depth, p.output.c},
        used_once_(used_once) {
    if (shared != nullptr) return;
    slot_ = task.add<T>(used_once ? depth * weights_.width(0) : weights_.size());
    packed_.assign(static_cast<size_t>(weights_.panels()), false);
  }

  int64_t width(int64_t j) const { return weights_.width(j); }
  const T* panel(int64_t j) {
    if (weights_.data != nullptr) return weights_.panel(j);
    T* own = task_.get<T>(slot_) + (used_once_ ? 0 : weights_.offset(j));
    if (!packed_[static_cast<size_t>(j)]) pack_transposed(from_, weights_, j, own);
    packed_[static_cast<size_t>(j)] = !used_once_;
    return own;
  }
  // What panel(j) will read.
  Ahead ahead(int64_t j) const {
    const int64_t depth = weights_.depth, first = j * kTileColumns<T>;
    if (weights_.data == nullptr && !packed_[static_cast<size_t>(j)])
      return {from_ + first * depth,
              std::min<int64_t>(kTileColumns<T>, weights_.columns - first) * depth * int64_t{sizeof(S)}};
    const T* data = weights_.data != nullptr ? weights_.data : task_.get<T>(slot_);
    return {data + weights_.offset(j), depth * width(j) * int64_t{sizeof(T)}};
  }
  int64_t bytes() const { return weights_.size() * int64_t{sizeof(T)}; }

 private:
  const S* from_;
  Scratch& task_;
  PackedWeights<T> weights_;  // data: null where they are packed here
  bool used_once_;
  size_t slot_ = 0;
  ScratchVector<bool> packed_;
};

template <class S>
void separable_conv2d_tiles(const SeparableConv2dParams& p, ForwardPlan plan, const Parallel& parallel) {
  using T = Compute<S>;
  const bool in_place = std::is_same_v<S, T> && RowsInPlace<S>::serves(p);
  plan.down_strips = in_place;
  Scratch call(ScratchUse::kCall);
  DepthwiseStage<S> depthwise(p, call);
  StageVectors<S> epilogue_vectors(p.epilogue, p.output.c, call);
  const int64_t depth = depthwise.depth();
  PackedWeights<T> weights{nullptr, depth, p.output.c};
  const bool pack_now = p.packed_weights == nullptr && !plan.pack_in_task;
  const size_t packed_slot = call.add<T>(pack_now ? weights.size() : 0);
  depthwise.prepare(call);
  const Stage<T> epilogue = epilogue_vectors.prepare(call);
  if (p.packed_weights != nullptr)
    weights.data = static_cast<const T*>(p.packed_weights) + PackedLayout<S>(p).pointwise;
  if (pack_now) {
    T* packed = call.get<T>(packed_slot);
    parallel.share(plan.panels, [&](Tasks& tasks) {
      for (int64_t j; tasks.next(j);)
        pack_transposed(static_cast<const S*>(p.pointwise_weight), weights, j, packed + weights.offset(j));
    });
    weights.data = packed;
  }

  const int workers = parallel.workers(plan.tasks());
  OpenTiles<T> open_tiles(workers);
  parallel.share(plan.tasks(), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const int64_t ld = panel_ld<T>(depth);
    const size_t panel_slot = task.add<T>(plan.pixel_tile * ld);
    RowsInPlace<T> rows(p.input, depthwise.prologue);
    RowSource<S> staged(in_place ? typename RowSource<S>::Shape{} : depthwise.rows(), depth, task);
    OutputTiles<S> output(p.output, p.epilogue, plan.pixel_tile, task);
    WeightPanels<S> panels(p, weights.data, depth, plan.tasks() <= workers, task);
    DepthwiseRow<T> kernel(p.window);
    staged.select(0, depth);
    T* panel = task.get<T>(panel_slot);
    const bool stream_weights = panels.bytes() > cache_sizes().l2 / 4;
    const auto multiply_panel = [&](const TileValues<T>& open, int64_t j, Ahead& ahead) {
      const T* panel_weights = panels.panel(j);
      output.write(open.tile, j * kTileColumns<T>, epilogue,
                   [&](const TileOutput<T>& out, int64_t from, int64_t count) {
                     multiply<false>(Panel<T>{open.data + from * open.ld, open.ld, 1}, count, panel_weights,
                                     panels.width(j), depth, out, ahead);
                   });
    };

    OpenTile<T>& own = open_tiles.of(tasks.worker());
    for (int64_t index; tasks.next(index);) {
      // Tiles vary fastest: a thread keeps its share of the weights in cache.
      const int64_t split = index / plan.pixel_tiles, at = index % plan.pixel_tiles;
      const PixelTile tile = plan.tile(at);
      own.wait_for_guests();
      Panel<T> values{panel, ld, 1};
      if (depthwise.is_input()) {
        values = depthwise.input(tile, 0);
      } else if (in_place) {
        depthwise.fill(rows, kernel, tile, 0, depth, panel, ld);
      } else {
        depthwise.fill(staged, kernel, tile, 0, depth, panel, ld);
      }
      own.open({tile, values.data, values.row_step}, plan.panels * split / plan.panel_splits,
               plan.panels * (split + 1) / plan.panel_splits);
      Ahead next_rows;
      if (in_place && at + 1 < plan.pixel_tiles) next_rows = depthwise.ahead(plan.tile(at + 1));
      for (int64_t j; own.take_panel(j);) {
        Ahead next_weights;
        if (stream_weights && own.panels_left() > 0) next_weights = panels.ahead(j + 1);
        multiply_panel(own.values(), j, next_weights.empty() ? next_rows : next_weights);
      }
    }
    Ahead nothing;
    open_tiles.help([&](const TileValues<T>& others, int64_t j) { multiply_panel(others, j, nothing); });
    own.wait_for_guests();
  });
}

// Few pixels under many weights: the factors change places. The depthwise output is packed, kTileColumns
// pixels a panel, and the weights are the left factor as they lie in memory: read once, never packed. Sums
// have the same order.
template <class S>
void separable_conv2d_few_pixels(const SeparableConv2dParams& p, const ForwardPlan& plan,
                                 const Parallel& parallel) {
  using T = Compute<S>;
  constexpr int64_t kColumns = kTileColumns<T>, kChannelBlock = 64;
  Scratch call(ScratchUse::kCall);
  DepthwiseStage<S> depthwise(p, call);
  StageVectors<S> epilogue_vectors(p.epilogue, p.output.c, call);
  const int64_t depth = depthwise.depth(), pixels = p.output.n * p.output.h * p.output.w;
  PackedWeights<T> packed_pixels{nullptr, depth, pixels};  // the right factor, as weights are elsewhere
  const size_t packed_slot = call.add<T>(packed_pixels.size());
  depthwise.prepare(call);
  const Stage<T> epilogue = epilogue_vectors.prepare(call);
  T* packed = call.get<T>(packed_slot);

  parallel.share(divide_up(depth, kChannelBlock), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const int64_t ld = panel_ld<T>(kChannelBlock);
    const size_t panel_slot = task.add<T>(kColumns * ld);
    RowSource<S> rows(depthwise.rows(), std::min(depth, kChannelBlock), task);
    DepthwiseRow<T> kernel(p.window);
    T* panel = task.get<T>(panel_slot);
    for (int64_t block; tasks.next(block);) {
      const int64_t c0 = block * kChannelBlock, channels = std::min(kChannelBlock, depth - c0);
      rows.select(c0, channels);
      for (int64_t first = 0; first < pixels; first += kColumns) {
        const int64_t count = std::min(kColumns, pixels - first);
        depthwise.fill(rows, kernel, first, count, c0, channels, panel, ld);
        const int64_t width = packed_pixels.width(first / kColumns);
        T* to = packed + first * depth + c0 * width;
        if (count < width) std::fill(to, to + channels * width, T(0));
        transpose_block(static_cast<const T*>(panel), ld, to, width, count, channels);
      }
    }
  });
  packed_pixels.data = packed;

  parallel.share(plan.channel_blocks, [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const size_t by_channel_slot = task.add<T>(kColumns * kColumns),
                 by_pixel_slot = task.add<T>(kColumns * kColumns);
    const size_t weights_slot = task.add<T>(std::is_same_v<S, T> ? 0 : kColumns * depth);
    OutputTiles<S> output(p.output, p.epilogue, kColumns, task);
    T* by_channel = task.get<T>(by_channel_slot);
    T* by_pixel = task.get<T>(by_pixel_slot);
    for (int64_t block; tasks.next(block);) {
      const int64_t c0 = p.output.c * block / plan.channel_blocks,
                    channels = p.output.c * (block + 1) / plan.channel_blocks - c0;
      const T* weights = compute_values(static_cast<const S*>(p.pointwise_weight) + c0 * depth,
                                        channels * depth, task.get<T>(weights_slot));
      for (int64_t first = 0; first < pixels; first += kColumns) {
        const int64_t count = std::min(kColumns, pixels - first);
        const int64_t panel = first / kColumns;
        Ahead ahead;  // the next pixels, which come round again for every block of channels
        if (panel + 1 < packed_pixels.panels() &&
            packed_pixels.size() * int64_t{sizeof(T)} > cache_sizes().l2 / 4)
          ahead = {packed_pixels.panel(panel + 1),
                   packed_pixels.width(panel + 1) * depth * int64_t{sizeof(T)}};
        multiply<false>(Panel<T>{weights, depth, 1}, channels, packed_pixels.panel(panel),
                        packed_pixels.width(panel), depth, TileOutput<T>{by_channel, kColumns, count}, ahead);
        output.write(
            {0, p.output.w, first, count}, c0, epilogue,
            [&](const TileOutput<T>& out, int64_t, int64_t) {
              const bool plain = out.stage.empty() && out.residual == nullptr;
              transpose_block(static_cast<const T*>(by_channel), kColumns, plain ? out.data : by_pixel,
                              plain ? out.ld : kColumns, channels, count);
              if (!plain) finish_tile(static_cast<const T*>(by_pixel), count, out, 0);
            },
            channels);
      }
    }
  });
}

// The depthwise alone: groups of rows, straight into the output where its channels are adjacent.
template <class S>
void depthwise_conv2d(const SeparableConv2dParams& p, const Parallel& parallel) {
  using T = Compute<S>;
  constexpr int64_t kRows = Registers<T>::kBlockRows;
  const Image& out = p.output;
  Scratch call(ScratchUse::kCall);
  DepthwiseStage<S> depthwise(p, call);
  depthwise.prepare(call);
  const int64_t groups = divide_up(out.h, kRows), ld = panel_ld<T>(depthwise.depth());
  const bool direct = channels_are_adjacent(out);

  parallel.share(out.n * groups, [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    RowSource<S> rows(depthwise.rows(), depthwise.depth(), task);
    const size_t buffer_slot = task.add<T>(direct ? 0 : kRows * out.w * ld);
    DepthwiseRow<T> kernel(p.window);
    rows.select(0, depthwise.depth());
    T* buffer = task.get<T>(buffer_slot);
    for (int64_t group; tasks.next(group);) {
      const int64_t n = group / groups, h = group % groups * kRows, count = std::min(kRows, out.h - h);
      if (direct) {
        S* to = static_cast<S*>(out.data) + n * out.stride_n + h * out.stride_h;
        depthwise.fill_rows(rows, kernel, n, h, count, to, out.stride_w, out.stride_h);
      } else {
        depthwise.fill_rows(rows, kernel, n, h, count, buffer, ld, out.w * ld);
        store_pixels<S>(buffer, ld, out, (n * out.h + h) * out.w, count * out.w, 0, out.c);
      }
    }
  });
}

template <class S>
void separable_conv2d(const SeparableConv2dParams& p, const Parallel& parallel) {
  using T = Compute<S>;
  if (!p.has_pointwise()) return depthwise_conv2d<S>(p, parallel);
  const int64_t pixels = p.output.n * p.output.h * p.output.w, depth = p.input.c * p.depth_multiplier;
  if (takes_nchw(p))
    return separable_conv2d_nchw<S>(
        p, plan_nchw(pixels, depth, p.output.c, sizeof(T), tile_shape<T>(), parallel.threads, cache_sizes()),
        parallel);
  // Strips of columns are for rows that share neighbours.
  ForwardPlan plan = plan_forward(pixels, p.has_depthwise() ? p.output.w : 1, depth, p.output.c, sizeof(T),
                                  tile_shape<T>(), parallel.threads, cache_sizes());
  plan.width = p.output.w;
  if (plan.few_pixels && p.packed_weights == nullptr)
    separable_conv2d_few_pixels<S>(p, plan, parallel);
  else
    separable_conv2d_tiles<S>(p, plan, parallel);
}
