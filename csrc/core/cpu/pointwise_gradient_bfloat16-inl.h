// The two products of the backward where the CPU multiplies pairs of bfloat16 itself: G stays float32; the
// depthwise output is rounded once, as in the forward.

// Rows of grad_output as bfloat16: from where they lie, or converted from another layout.
class PairGradientRows {
 public:
  PairGradientRows(const Image& gradient, int64_t pixels, int64_t columns, Scratch& scratch)
      : gradient_(gradient),
        direct_(channels_are_adjacent(gradient) && pixels_are_linear(gradient)),
        ld_(round_up(columns, Vec<float>::kLanes)),
        scratch_(scratch) {
    if (direct_) return;
    wide_slot_ = scratch.add<float>(pixels * ld_);
    slot_ = scratch.add<BFloat16>(pixels * ld_);
  }
  int64_t ld() const { return direct_ ? gradient_.stride_w : ld_; }
  // Columns [column, column + columns) of pixels [first, first + pixels).
  const BFloat16* read(int64_t first, int64_t pixels, int64_t column, int64_t columns) {
    if (direct_) return static_cast<const BFloat16*>(gradient_.data) + first * ld() + column;
    float* wide = scratch_.get<float>(wide_slot_);
    BFloat16* rows = scratch_.get<BFloat16>(slot_);
    load_pixels<BFloat16>(gradient_, first, pixels, column, columns, wide, ld_);
    for (int64_t p = 0; p < pixels; ++p) convert(wide + p * ld_, rows + p * ld_, columns);
    return rows;
  }
  Ahead ahead(int64_t first, int64_t pixels) const {
    if (!direct_) return {};
    return {static_cast<const BFloat16*>(gradient_.data) + first * ld(),
            pixels * ld() * int64_t{sizeof(BFloat16)}};
  }

 private:
  Image gradient_;
  bool direct_;
  int64_t ld_;
  Scratch& scratch_;
  size_t wide_slot_ = 0, slot_ = 0;
};

// G = grad_output x pointwise weights.
class PairGradientProduct {
 public:
  PairGradientProduct(const SeparableConv2dParams& p, int64_t depth, bool few_pixels, Scratch& call)
      : p_(p),
        depth_(depth),
        few_pixels_(few_pixels),
        panels_(p.has_pointwise() && !few_pixels ? divide_up(depth, kPairColumns) : 0),
        slot_(call.add<BFloat16>(panels_ * pair_panel_size(p.output.c))) {}
  void prepare(Scratch& call, const Parallel& parallel) {
    BFloat16* packed = call.get<BFloat16>(slot_);
    parallel.share(panels_, [&](Tasks& tasks) {
      for (int64_t panel; tasks.next(panel);) {
        const int64_t column = panel * kPairColumns;
        pack_rows_in_pairs(weights() + column, depth_, p_.output.c, std::min(kPairColumns, depth_ - column),
                           packed + panel * pair_panel_size(p_.output.c));
      }
    });
    packed_ = packed;
  }

  class Task {
   public:
    // For at most `pixels` pixels and `columns` channels of G at a time.
    Task(const PairGradientProduct& product, int64_t pixels, int64_t columns, Scratch& scratch)
        : product_(product),
          rows_(product.p_.output, product.p_.has_pointwise() ? pixels : 0, out_channels(), scratch),
          // Slices of L2's size under few pixels, whose weights are read once.
          slice_(std::min(pair_depth(), std::max(kPairDepth, kSliceValues / std::max<int64_t>(1, columns) /
                                                                 kPairDepth * kPairDepth))),
          scratch_(scratch) {
      if (!product.p_.has_pointwise()) return;
      panel_slot_ = scratch.add<BFloat16>(round_up(pixels, kPairRowsRead) * pair_panel_ld(out_channels()));
      if (product.few_pixels_) slice_slot_ = scratch.add<BFloat16>(slice_ * round_up(columns, kPairColumns));
    }

    // to[pixel][channel], for channels [c0, c0 + channels); asks for `ahead` on the way.
    void multiply(int64_t first, int64_t pixels, int64_t c0, int64_t channels, float* to, int64_t ld,
                  Ahead ahead) {
      const BFloat16* panel = fill(first, pixels);
      const int64_t depth = out_channels(), panel_ld = pair_panel_ld(depth);
      const int64_t lines =
          divide_up(ahead.lines(), divide_up(channels, kPairColumns) * divide_up(pixels, kPairRows));
      for (int64_t k = 0; k < depth; k += few_pixels() ? slice_ : depth) {
        const int64_t slice = few_pixels() ? std::min(slice_, depth - k) : depth,
                      panel_size = pair_panel_size(slice);
        const BFloat16* weights = product_.packed_ + c0 / kPairColumns * panel_size;
        if (few_pixels()) {
          BFloat16* packed = scratch_.get<BFloat16>(slice_slot_);
          pack_rows_in_pairs(product_.weights() + k * product_.depth_ + c0, product_.depth_, slice, channels,
                             packed);
          weights = packed;
        }
        for (int64_t c = 0; c < channels; c += kPairColumns)
          multiply_pairs(registers_, panel + k, panel_ld, pixels, weights + c / kPairColumns * panel_size,
                         slice, std::min(kPairColumns, channels - c), to + c, ld, k > 0, ahead, lines);
      }
    }
    // What multiply() will read of these pixels.
    Ahead ahead(int64_t first, int64_t pixels) const { return rows_.ahead(first, pixels); }

   private:
    static constexpr int64_t kSliceValues = 128 << 10;
    int64_t out_channels() const { return product_.p_.output.c; }
    int64_t pair_depth() const { return round_up(out_channels(), kPairDepth); }
    bool few_pixels() const { return product_.few_pixels_; }

    // Rows that share no cache sets, padded with zeros.
    const BFloat16* fill(int64_t first, int64_t pixels) {
      const int64_t channels = out_channels(), ld = pair_panel_ld(channels);
      BFloat16* panel = scratch_.get<BFloat16>(panel_slot_);
      const BFloat16* from = rows_.read(first, pixels, 0, channels);
      for (int64_t p = 0; p < pixels; ++p) {
        BFloat16* row = panel + p * ld;
        std::copy_n(from + p * rows_.ld(), channels, row);
        std::fill(row + channels, row + pair_depth(), BFloat16{0});
      }
      return panel;
    }

    const DotRegisters registers_;
    const PairGradientProduct& product_;
    PairGradientRows rows_;
    int64_t slice_;
    Scratch& scratch_;
    size_t panel_slot_ = 0, slice_slot_ = 0;
  };

 private:
  const BFloat16* weights() const { return static_cast<const BFloat16*>(p_.pointwise_weight); }
  const SeparableConv2dParams& p_;
  int64_t depth_;
  bool few_pixels_;
  int64_t panels_;
  size_t slot_;
  const BFloat16* packed_ = nullptr;
};

// The factors of a chunk of a weight gradient, both with pixels as their depth.
class PairFactors {
 public:
  static constexpr int64_t kRows = 8 * kPairRows;  // of the left factor at a time: they stay in L2

  PairFactors(const Image& gradient, int64_t chunk, int64_t depth, Scratch& scratch)
      : channels_(gradient.c),
        ld_(pair_panel_ld(chunk)),
        rows_(gradient, chunk, at_once(), scratch),
        scratch_(scratch),
        left_slot_(scratch.add<BFloat16>(
            round_up(at_once(), std::max<int64_t>(kPairRowsRead, Vec<float>::kLanes)) * ld_)),
        right_slot_(scratch.add<BFloat16>(divide_up(depth, kPairColumns) * pair_panel_size(chunk))) {}

  const DotRegisters& registers() const { return registers_; }
  int64_t at_once() const { return std::min(kRows, channels_); }
  int64_t ld() const { return ld_; }
  const BFloat16* left(int64_t first, int64_t count, int64_t column, int64_t columns) {
    BFloat16* to = scratch_.get<BFloat16>(left_slot_);
    transpose_pairs(rows_.read(first, count, column, columns), rows_.ld(), count, columns, to, ld_);
    return to;
  }
  const BFloat16* right(const BFloat16* values, int64_t ld, int64_t count, int64_t columns) {
    BFloat16* to = scratch_.get<BFloat16>(right_slot_);
    pack_rows_in_pairs(values, ld, count, columns, to);
    return to;
  }
  Ahead ahead(int64_t first, int64_t count) const { return rows_.ahead(first, count); }

 private:
  const DotRegisters registers_;
  int64_t channels_, ld_;
  PairGradientRows rows_;
  Scratch& scratch_;
  size_t left_slot_, right_slot_;
};

// grad_output^T x depthwise output. Every split sums its chunks in order; the splits are merged in order.
// What one chunk holds whole is rounded from registers.
class PairWeightProduct {
 public:
  using Value = BFloat16;  // of the right factor
  using Task = PairFactors;

  PairWeightProduct(const WeightGradientPlan& plan, int64_t left_columns, int64_t right_columns,
                    Scratch& call)
      : at_once_(plan.in_one_chunk()),
        left_columns_(left_columns),
        right_columns_(right_columns),
        sums_(plan.pixel_splits, at_once_ ? 0 : left_columns, right_columns, call) {}
  void prepare(Scratch& call, BFloat16* result) {
    result_ = result;
    sums_.prepare(call, result);
  }

  // The product of `count` pixels, for columns [column, column + columns) of `right`, which points at the
  // first of them: sets what the split holds, or adds to it.
  void chunk(int64_t split, PairFactors& factors, int64_t first, int64_t count, const BFloat16* values,
             int64_t values_ld, int64_t column, int64_t columns, bool accumulate, Ahead ahead = {}) const {
    const BFloat16* right = factors.right(values, values_ld, count, columns);
    const int64_t panel = pair_panel_size(count);
    const int64_t lines =
        divide_up(ahead.lines(), divide_up(left_columns_, kPairRows) * divide_up(columns, kPairColumns));
    for (int64_t row = 0; row < left_columns_; row += factors.at_once()) {
      const int64_t rows = std::min(factors.at_once(), left_columns_ - row);
      const BFloat16* left = factors.left(first, count, row, rows);
      for (int64_t c = 0; c < columns; c += kPairColumns) {
        const BFloat16* of_panel = right + c / kPairColumns * panel;
        const int64_t of_columns = std::min(kPairColumns, columns - c);
        if (at_once_) {
          round(factors.registers(), left, factors.ld(), rows, of_panel, count,
                {result_ + row * right_columns_ + column + c, right_columns_, of_columns});
        } else {
          multiply_pairs(factors.registers(), left, factors.ld(), rows, of_panel, count, of_columns,
                         sums_.of(split, row) + column + c, sums_.ld(), accumulate, ahead, lines);
        }
      }
    }
  }
  void merge(const Parallel& parallel) const {
    if (!at_once_) sums_.merge(parallel);
  }

 private:
  static void round(const DotRegisters& registers, const BFloat16* left, int64_t ld, int64_t rows,
                    const BFloat16* right, int64_t depth, PairOutput<BFloat16> out) {
    alignas(kScratchAlignment) float sums[kPairSums];
    const bool whole = out.columns == kPairColumns || out.columns == Vec<float>::kLanes;
    for (int64_t row = 0; row < rows; row += kPairRows, out.data += kPairRows * out.ld) {
      const int64_t count = std::min(kPairRows, rows - row);
      BFloat16* rounded[kPairRows];
      for (int64_t r = 0; r < count; ++r) {
        rounded[r] = out.data + r * out.ld;
        __builtin_prefetch(rounded[r], 1);
      }
      multiply_block(registers, left + row * ld, ld, count, right, depth, out.columns, sums,
                     whole ? rounded : nullptr);
      if (!whole) finish_pairs(sums, count, out);
    }
  }

  bool at_once_;
  int64_t left_columns_, right_columns_;
  SplitSums<BFloat16> sums_;
  BFloat16* result_ = nullptr;
};

struct PairProducts {
  using Gradient = PairGradientProduct;
  using Weights = PairWeightProduct;
};

inline void separable_conv2d_backward_pairs(const SeparableConv2dBackwardParams& b,
                                            const Parallel& parallel) {
  separable_conv2d_backward<BFloat16, PairProducts>(b, parallel);
}
