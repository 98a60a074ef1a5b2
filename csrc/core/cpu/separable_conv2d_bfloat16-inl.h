// Forward for bfloat16 on CPUs that multiply it themselves. The depthwise sums in float32 and is rounded
// once, into the panel, as stock rounds its intermediate; everything else is the forward of
// separable_conv2d-inl.h.

// Both weights: taps of the depthwise in float32, then panels of the pointwise in pairs.
struct PairLayout {
  explicit PairLayout(const SeparableConv2dParams& p)
      : depth(p.input.c * p.depth_multiplier),
        panels(divide_up(p.output.c, kPairColumns)),
        pointwise_bytes(PackedLayout<BFloat16>(p).pointwise * int64_t{sizeof(float)}),
        bytes(pointwise_bytes + panels * pair_panel_size(depth) * int64_t{sizeof(BFloat16)}) {}
  int64_t depth, panels;
  int64_t pointwise_bytes, bytes;  // where the panels begin and end

  template <class Void>
  auto* pointwise(Void* packed) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
    using Value = std::conditional_t<std::is_const_v<Void>, const BFloat16, BFloat16>;
    return reinterpret_cast<Value*>(static_cast<Byte*>(packed) + pointwise_bytes);
  }
};

inline int64_t packed_bytes_of_pairs(const SeparableConv2dParams& p) {
  return PairLayout(p).bytes;
}

inline void pack_weights_in_pairs(const SeparableConv2dParams& p, void* packed) {
  const PairLayout layout(p);
  pack_depthwise(p, PackedLayout<BFloat16>(p), static_cast<float*>(packed));
  for (int64_t j = 0; j < layout.panels; ++j)
    pack_pairs(static_cast<const BFloat16*>(p.pointwise_weight), layout.depth, p.output.c, j,
               layout.pointwise(packed) + j * pair_panel_size(layout.depth));
}

// Blocks of sums into the tensor: straight where its layout is the kernel's, else from L1.
class PairTiles {
 public:
  PairTiles(const Image& output, const Epilogue& epilogue, const Stage<float>& stage)
      : output_(output),
        residual_(epilogue.residual),
        stage_(stage),
        direct_(linear(output) && (residual_.data == nullptr || linear(residual_))) {}

  // `rows` pixels of a tile from its pixel `row` on, one panel of columns from `column`; `sums` is
  // overwritten.
  void write(const PixelTile& tile, int64_t row, int64_t rows, int64_t column, float* sums) const {
    for_each_run_of_tile(tile, output_.w, row, rows, [&](int64_t first, int64_t done, int64_t count) {
      write_run(first, count, column, sums + done * kPairColumns);
    });
  }

  // Whether that is rounding them to where places() says, and nothing else.
  bool only_rounds(int64_t column) const {
    const int64_t columns = output_.c - column;
    return direct_ && residual_.data == nullptr && stage_.empty() &&
           (columns >= kPairColumns || columns == Vec<float>::kLanes);
  }
  // Where each of the rows goes, and a request for its line: in no cache as a rule.
  void places(const PixelTile& tile, int64_t row, int64_t rows, int64_t column, BFloat16** to) const {
    for_each_run_of_tile(tile, output_.w, row, rows, [&](int64_t first, int64_t done, int64_t count) {
      for (int64_t r = 0; r < count; ++r) {
        to[done + r] = pixel(output_, first + r, column);
        __builtin_prefetch(to[done + r], 1);
      }
    });
  }

 private:
  void write_run(int64_t first, int64_t count, int64_t column, float* sums) const {
    const int64_t columns = std::min(kPairColumns, output_.c - column);
    if (direct_) {
      PairOutput<BFloat16> out{pixel(output_, first, column), output_.stride_w, columns, stage_.from(column)};
      if (residual_.data != nullptr)
        out.residual = pixel(residual_, first, column), out.residual_ld = residual_.stride_w;
      return finish_pairs(sums, count, out);
    }
    alignas(kScratchAlignment) float residual[kPairSums];
    PairOutput<float> out{sums, kPairColumns, columns, stage_.from(column)};
    if (residual_.data != nullptr) {
      load_pixels<BFloat16>(residual_, first, count, column, columns, residual, kPairColumns);
      out.residual = residual, out.residual_ld = kPairColumns;
    }
    finish_pairs(sums, count, out);
    store_pixels<BFloat16>(sums, kPairColumns, output_, first, count, column, columns);
  }
  static bool linear(const Image& x) { return channels_are_adjacent(x) && pixels_are_linear(x); }
  static BFloat16* pixel(const Image& x, int64_t index, int64_t column) {
    return static_cast<BFloat16*>(x.data) + index * x.stride_w + column * x.stride_c;
  }
  Image output_, residual_;
  Stage<float> stage_;
  bool direct_;
};

inline ForwardPlan plan_pairs(const SeparableConv2dParams& p, int threads) {
  return plan_forward(p.output.n * p.output.h * p.output.w, p.output.w, pair_panel_ld(PairLayout(p).depth),
                      p.output.c, sizeof(BFloat16), {kPairRows, kPairColumns, Vec<float>::kLanes}, threads,
                      cache_sizes());
}

inline void separable_conv2d_pairs(const SeparableConv2dParams& p, const Parallel& parallel) {
  if (!p.has_pointwise()) return depthwise_conv2d<BFloat16>(p, parallel);
  const PairLayout layout(p);
  const int64_t depth = layout.depth, panel_size = pair_panel_size(depth), ld = pair_panel_ld(depth);
  ForwardPlan plan = plan_pairs(p, parallel.threads);
  plan.down_strips = RowsInPlace<BFloat16>::serves(p);
  // Weights that a thread uses once are packed by it, panel by panel, right before their use; others first,
  // by all threads.
  const bool used_once = plan.pixel_tiles == 1 || (plan.pack_in_task && plan.tasks() <= parallel.threads);
  const bool pack_first = p.packed_weights == nullptr && !used_once;
  const auto* pointwise = static_cast<const BFloat16*>(p.pointwise_weight);

  Scratch call(ScratchUse::kCall);
  DepthwiseStage<BFloat16> depthwise(p, call);
  StageVectors<BFloat16> epilogue(p.epilogue, p.output.c, call);
  const size_t packed_slot = call.add<BFloat16>(pack_first ? layout.panels * panel_size : 0);
  depthwise.prepare(call);
  const PairTiles output(p.output, p.epilogue, epilogue.prepare(call));
  const BFloat16* weights = p.packed_weights == nullptr ? nullptr : layout.pointwise(p.packed_weights);
  if (pack_first) {
    BFloat16* to = call.get<BFloat16>(packed_slot);
    parallel.share(layout.panels, [&](Tasks& tasks) {
      for (int64_t j; tasks.next(j);) pack_pairs(pointwise, depth, p.output.c, j, to + j * panel_size);
    });
    weights = to;
  }

  parallel.share(plan.tasks(), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const bool in_place = RowsInPlace<BFloat16>::serves(p);
    const size_t panel_slot = task.add<BFloat16>(round_up(plan.pixel_tile, kPairRowsRead) * ld),
                 weights_slot = task.add<BFloat16>(weights == nullptr ? panel_size : 0);
    RowsInPlace<BFloat16> rows(p.input, depthwise.prologue);
    RowSource<BFloat16> staged(in_place ? RowSource<BFloat16>::Shape{} : depthwise.rows(), depth, task);
    DepthwiseRow<BFloat16> kernel(p.window);
    DepthwiseRow<float> kernel_of_staged(p.window);
    staged.select(0, depth);
    BFloat16* panel = task.get<BFloat16>(panel_slot);
    for (int64_t r = 0; r < plan.pixel_tile && !task.only_counts(); ++r)
      std::fill(panel + r * ld + depth, panel + (r + 1) * ld, BFloat16{0});
    const DotRegisters registers;
    alignas(kScratchAlignment) float sums[kPairSums];
    for (int64_t index; tasks.next(index);) {
      const int64_t split = index / plan.pixel_tiles;
      const PixelTile tile = plan.tile(index % plan.pixel_tiles);
      if (in_place) {
        depthwise.fill(rows, kernel, tile, 0, depth, panel, ld);
      } else {
        depthwise.fill(staged, kernel_of_staged, tile, 0, depth, panel, ld);
      }
      const int64_t j0 = plan.panels * split / plan.panel_splits,
                    j1 = plan.panels * (split + 1) / plan.panel_splits;
      // The rows of the next tile, a few lines before each block; never more than it has steps to hide them.
      Ahead next_rows;
      if (in_place && index + 1 < plan.tasks())
        next_rows = depthwise.ahead(plan.tile((index + 1) % plan.pixel_tiles));
      const int64_t lines = std::min(
          divide_up(next_rows.lines(), (j1 - j0) * divide_up(tile.count, kPairRows)), divide_up(depth, 2));
      for (int64_t j = j0; j < j1; ++j) {
        const BFloat16* of_panel = weights + j * panel_size;
        if (weights == nullptr) {
          BFloat16* to = task.get<BFloat16>(weights_slot);
          pack_pairs(pointwise, depth, p.output.c, j, to);
          of_panel = to;
        }
        const int64_t column = j * kPairColumns;
        const bool only_rounds = output.only_rounds(column);
        for (int64_t row = 0; row < tile.count; row += kPairRows) {
          const int64_t count = std::min(kPairRows, tile.count - row);
          for (int64_t line = 0; line < lines && !next_rows.empty(); ++line, next_rows.advance(1))
            __builtin_prefetch(next_rows.at(), 0, 2);
          BFloat16* rounded[kPairRows];
          if (only_rounds) output.places(tile, row, count, column, rounded);
          multiply_block(registers, panel + row * ld, ld, count, of_panel, depth, p.output.c - column, sums,
                         only_rounds ? rounded : nullptr);
          if (!only_rounds) output.write(tile, row, count, column, sums);
        }
      }
    }
  });
}

// The table of the level below with the entries that this one has of its own.
inline Kernels with_pairs(Kernels kernels) {
  constexpr auto kIndex = static_cast<size_t>(DType::kBFloat16);
  kernels.packed_bytes[kIndex] = packed_bytes_of_pairs;
  kernels.pack[kIndex] = pack_weights_in_pairs;
  kernels.separable_conv2d[kIndex] = separable_conv2d_pairs;
#ifndef SEPCONV_WITHOUT_TRAINING
  kernels.separable_conv2d_backward[kIndex] = separable_conv2d_backward_pairs;
#endif
  kernels.pair_tile = {kPairRows, kPairColumns, Vec<float>::kLanes};
  kernels.plan_pairs = plan_pairs;
  return kernels;
}
