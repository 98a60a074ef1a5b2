// Forward of NCHW tensors in their own order: channel by channel through the depthwise into a panel
// [channel][pixel], then a GEMM whose left factor is the pointwise weights as they lie in memory and whose
// right factor is kTileColumns pixels of the panel. Nothing is transposed or packed; every sum has the order
// it has in separable_conv2d-inl.h, and so its bits.

// Output channels that pass over the pixels of a tile together: two register tiles.
template <class T>
inline constexpr int64_t kNchwRows = 2 * tile_shape<T>().rows;

// Rows of output channels of one block of pixels: straight into the tensor where its pixels are adjacent and
// of the compute type, else through a block in L1.
template <class S>
class ChannelOutput {
 public:
  using T = Compute<S>;
  static constexpr int64_t kColumns = kTileColumns<T>;

  ChannelOutput(const SeparableConv2dParams& p, const Stage<T>& epilogue, int64_t rows, Scratch& task)
      : output_(p.output),
        residual_(p.epilogue.residual),
        epilogue_(epilogue),
        plain_(std::is_same_v<S, T> && epilogue.empty() && residual_.data == nullptr),
        task_(task),
        block_slot_(task.add<T>(rows * kColumns)),
        residual_slot_(task.add<T>(kColumns)) {}

  // Channels [c0, c0 + rows) of pixels [first, first + count): fill(where) has to write all of it.
  template <class Fill>
  void write(int64_t c0, int64_t rows, int64_t first, int64_t count, Fill&& fill) {
    if (plain_) {
      bool whole = false;
      for_each_run(output_, first, count, [&](int64_t offset, int64_t, int64_t length) {
        whole = length == count;
        if (whole) {
          T* to = reinterpret_cast<T*>(static_cast<S*>(output_.data) + offset + c0 * output_.stride_c);
          fill(TileOutput<T>{to, output_.stride_c, count});
        }
      });
      if (whole) return;
    }
    T* block = task_.template get<T>(block_slot_);
    fill(TileOutput<T>{block, kColumns, count});
    for (int64_t r = 0; r < rows; ++r) finish_row(block + r * kColumns, c0 + r, first, count);
  }

 private:
  void finish_row(const T* row, int64_t c, int64_t first, int64_t count) {
    const ScalarStage<T> stage(epilogue_, c);
    T* residual = nullptr;
    if (residual_.data != nullptr) {
      residual = task_.template get<T>(residual_slot_);
      for_each_run(residual_, first, count, [&](int64_t offset, int64_t at, int64_t length) {
        convert(static_cast<const S*>(residual_.data) + offset + c * residual_.stride_c, residual + at,
                length);
      });
    }
    for_each_run(output_, first, count, [&](int64_t offset, int64_t at, int64_t length) {
      S* to = static_cast<S*>(output_.data) + offset + c * output_.stride_c;
      for_each_vector<T>(length, [&](auto vector, int64_t x) {
        Vec<T> value = stage.affine(vector.read(row + at + x));
        if (residual != nullptr) value = add(value, vector.read(residual + at + x));
        vector.write(to + x, activate(value, stage.activation));
      });
    });
  }

  Image output_, residual_;
  Stage<T> epilogue_;
  bool plain_;
  Scratch& task_;
  size_t block_slot_, residual_slot_;
};

// The GEMM side of a task.
template <class S>
class ChannelRows {
 public:
  using T = Compute<S>;
  static constexpr int64_t kColumns = kTileColumns<T>, kRows = kNchwRows<T>, kPackedRows = 2 * kRows;

  ChannelRows(const SeparableConv2dParams& p, const Stage<T>& epilogue, Scratch& task)
      : weights_(static_cast<const S*>(p.pointwise_weight)),
        depth_(p.input.c * p.depth_multiplier),
        channels_(p.output.c),
        packed_(PackedLayout<S>(p).weights()),
        output_(p, epilogue, kPackedRows, task),
        task_(task),
        buffer_slot_(task.add<T>(std::is_same_v<S, T> || p.packed_weights != nullptr ? 0 : kRows * depth_)),
        stream_(p.output.c * depth_ * int64_t{sizeof(S)} > cache_sizes().l2 / 4) {
    if (p.packed_weights != nullptr)
      packed_.data = static_cast<const T*>(p.packed_weights) + PackedLayout<S>(p).pointwise;
  }

  // Output channels [c0, c1) of pixels [first, first + count) from panel[depth][ld]. All pixels of the tile
  // pass under some rows of weights while the next rows come into L2.
  void multiply(const T* panel, int64_t ld, int64_t first, int64_t count, int64_t c0, int64_t c1) {
    packed_.data != nullptr ? multiply_packed(panel, ld, first, count, c0, c1)
                            : multiply_plain(panel, ld, first, count, c0, c1);
  }

 private:
  void multiply_plain(const T* panel, int64_t ld, int64_t first, int64_t count, int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; c += kRows) {
      const int64_t rows = std::min(kRows, c1 - c), next = std::min(kRows, channels_ - c - rows);
      const T* weights =
          compute_values(weights_ + c * depth_, rows * depth_, task_.template get<T>(buffer_slot_));
      Ahead ahead;
      if (stream_) ahead = {weights_ + (c + rows) * depth_, next * depth_ * int64_t{sizeof(S)}};
      multiply_rows<false>(Panel<T>{weights, depth_, 1}, c, rows, panel, ld, first, count, ahead);
    }
  }
  // A packed panel read sideways is rows of weights too.
  void multiply_packed(const T* panel, int64_t ld, int64_t first, int64_t count, int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1;) {
      const int64_t j = c / kColumns, in_panel = c % kColumns, width = packed_.width(j),
                    rows = std::min({kPackedRows, kColumns - in_panel, c1 - c});
      Ahead ahead;
      if (stream_ && c + rows < channels_ && in_panel + rows == kColumns)
        ahead = {packed_.panel(j + 1), depth_ * packed_.width(j + 1) * int64_t{sizeof(T)}};
      multiply_rows<true>(Panel<T>{packed_.panel(j) + in_panel, 1, width}, c, rows, panel, ld, first, count,
                          ahead);
      c += rows;
    }
  }
  template <bool kTransposed>
  void multiply_rows(const Panel<T>& weights, int64_t c, int64_t rows, const T* panel, int64_t ld,
                     int64_t first, int64_t count, Ahead& ahead) {
    for (int64_t x = 0; x < count; x += kColumns)
      output_.write(c, rows, first + x, std::min(kColumns, count - x), [&](const TileOutput<T>& out) {
        sepconv::multiply<kTransposed>(weights, rows, panel + x, ld, depth_, out, ahead);
      });
  }

  const S* weights_;
  int64_t depth_, channels_;
  PackedWeights<T> packed_;  // data: null where weights are as they lie
  ChannelOutput<S> output_;
  Scratch& task_;
  size_t buffer_slot_;
  bool stream_;
};

// Input channels [c0, c1) of a run of pixels into panel[depth][ld], filled up to whole vectors with zeros.
template <class S, class T>
inline void fill_panel(ChannelDepthwise<S>& depthwise, int64_t multiplier, int64_t c0, int64_t c1,
                       int64_t first, int64_t count, T* panel, int64_t ld) {
  const int64_t end = round_up(count, Vec<T>::kLanes);
  for (int64_t c = c0; c < c1; ++c) {
    T* rows = panel + c * multiplier * ld;
    depthwise.run(c, first, count, rows, ld);
    for (int64_t i = 0; i < multiplier; ++i) std::fill(rows + i * ld + count, rows + i * ld + end, T(0));
  }
}

template <class S>
void separable_conv2d_nchw(const SeparableConv2dParams& p, const NchwPlan& plan, const Parallel& parallel) {
  using T = Compute<S>;
  Scratch call(ScratchUse::kCall);
  const int64_t m = p.depth_multiplier, depth = p.input.c * m, pixels = p.output.n * p.output.h * p.output.w;
  const StageVectors<S> prologue_vectors(p.prologue, p.input.c, call), middle_vectors(p.middle, depth, call),
      epilogue_vectors(p.epilogue, p.output.c, call);
  // One vector more than the pixels, so that channels do not share cache sets.
  const int64_t ld = plan.pixel_tile + Vec<T>::kLanes;
  const size_t shared_slot = call.add<T>(plan.shared ? depth * ld : 0);
  const Stage<T> prologue = prologue_vectors.prepare(call), middle = middle_vectors.prepare(call),
                 epilogue = epilogue_vectors.prepare(call);

  if (plan.shared) {
    T* panel = call.get<T>(shared_slot);
    parallel.run(p.input.c, [&](int64_t begin, int64_t end) {
      Scratch task(ScratchUse::kTask);
      ChannelDepthwise<S> depthwise(p, prologue, middle, pixels, task);
      depthwise.prepare();
      fill_panel(depthwise, m, begin, end, 0, pixels, panel, ld);
    });
    // Whole panels of packed weights.
    const int64_t channels = p.packed_weights != nullptr ? kTileColumns<T> : kNchwRows<T>;
    parallel.share(divide_up(p.output.c, channels), [&](Tasks& tasks) {
      Scratch task(ScratchUse::kTask);
      ChannelRows<S> rows(p, epilogue, task);
      for (int64_t block; tasks.next(block);)
        rows.multiply(panel, ld, 0, pixels, block * channels, std::min((block + 1) * channels, p.output.c));
    });
    return;
  }

  parallel.share(plan.pixel_tiles, [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const size_t panel_slot = task.add<T>(depth * ld);
    ChannelDepthwise<S> depthwise(p, prologue, middle, plan.pixel_tile, task);
    ChannelRows<S> rows(p, epilogue, task);
    depthwise.prepare();
    T* panel = task.get<T>(panel_slot);
    for (int64_t tile; tasks.next(tile);) {
      const int64_t first = plan.first(tile), count = std::min(plan.first(tile + 1), pixels) - first;
      fill_panel(depthwise, m, 0, p.input.c, first, count, panel, ld);
      rows.multiply(panel, ld, first, count, 0, p.output.c);
    }
  });
}
