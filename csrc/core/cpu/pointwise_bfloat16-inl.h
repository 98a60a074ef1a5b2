// The GEMM for bfloat16 where the CPU multiplies pairs of bfloat16 itself: both factors are bfloat16, sums
// are float32 and stay in registers over the full depth. A panel of pixels is row-major, as in
// pointwise-inl.h; weights are packed in pairs of depth, in panels of kPairColumns columns, of which
// multiply_block computes up to kPairRows rows. The instructions take subnormal factors as zero.

// Size of a buffer for the sums of a block, in whole vectors of rows.
inline constexpr int64_t kPairSums = (kPairRows + 15) / 16 * 16 * kPairColumns;
// Depth is padded with zeros, in the panel and in the weights, to whole rows of an AMX tile.
inline constexpr int64_t kPairDepth = 32;

// An odd number of cache lines, and more than is used: rows of the panel must not share cache sets.
inline int64_t pair_panel_ld(int64_t depth) {
  const int64_t padded = round_up(depth, kPairDepth);
  return padded % (2 * kPairDepth) == 0 ? padded + kPairDepth : padded;
}

// Packed weights: panels of kPairColumns columns, each [padded depth / 2][kPairColumns][2].
inline int64_t pair_panel_size(int64_t depth) {
  return round_up(depth, kPairDepth) * kPairColumns;
}

// Panel `p` from weights stored (columns, depth). A pair moves as one float: the transpose is that of floats.
inline void pack_pairs(const BFloat16* weights, int64_t depth, int64_t columns, int64_t p, BFloat16* packed) {
  constexpr int kLanes = Vec<float>::kLanes;
  static_assert(kPairDepth % (2 * kLanes) == 0);
  for (int64_t part = 0; part < kPairColumns; part += kLanes) {
    const int64_t first = p * kPairColumns + part, valid = std::clamp<int64_t>(columns - first, 0, kLanes);
    for (int64_t k = 0; k < round_up(depth, kPairDepth); k += 2 * kLanes) {
      const int values = static_cast<int>(std::clamp<int64_t>(depth - k, 0, 2 * kLanes));
      Vec<float> square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        square[i] =
            i < valid && values > 0 ? load_pairs(weights + (first + i) * depth + k, values) : zero<float>();
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        store(reinterpret_cast<float*>(packed + (k + 2 * i) * kPairColumns + 2 * part), square[i]);
    }
  }
}

// Panels [padded depth / 2][kPairColumns][2] from values stored (depth, columns), rows `ld` apart: pairs of
// rows one after another, so that values are read in long runs.
inline void pack_rows_in_pairs(const BFloat16* values, int64_t ld, int64_t depth, int64_t columns,
                               BFloat16* packed) {
  constexpr int kLanes = Vec<float>::kLanes;
  const int64_t panel = pair_panel_size(depth);
  for (int64_t k = 0; k < round_up(depth, kPairDepth); k += 2)
    for (int64_t c = 0; c < round_up(columns, kPairColumns); c += kLanes) {
      const int valid = static_cast<int>(std::clamp<int64_t>(columns - c, 0, kLanes));
      const BFloat16* row = values + k * ld + c;
      float* to =
          reinterpret_cast<float*>(packed + c / kPairColumns * panel + k * kPairColumns) + c % kPairColumns;
      store(to, k < depth && valid > 0 ? interleave(row, k + 1 < depth ? row + ld : nullptr, valid)
                                       : zero<float>());
    }
}

// to[column][k] = values[k][column], the depth padded with zeros: a left factor from rows of `ld` values.
inline void transpose_pairs(const BFloat16* values, int64_t ld, int64_t depth, int64_t columns, BFloat16* to,
                            int64_t to_ld) {
  constexpr int kLanes = Vec<float>::kLanes;
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int valid = static_cast<int>(std::min<int64_t>(columns - c, kLanes));
    for (int64_t k = 0; k < round_up(depth, kPairDepth); k += 2 * kLanes) {
      Vec<float> square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const int64_t even = k + 2 * i;
        const BFloat16* row = values + even * ld + c;
        square[i] =
            even < depth ? interleave(row, even + 1 < depth ? row + ld : nullptr, valid) : zero<float>();
      }
      transpose(square);
      for (int i = 0; i < valid; ++i) store(reinterpret_cast<float*>(to + (c + i) * to_ld + k), square[i]);
    }
  }
}

// to[r][c] = sum over k of panel[r][k] * weights[k][c], or added to what is there, for one packed panel of
// weights and any number of rows. Whole vectors of columns are written.
inline void multiply_pairs(const DotRegisters& registers, const BFloat16* panel, int64_t panel_ld,
                           int64_t rows, const BFloat16* weights, int64_t depth, int64_t columns, float* to,
                           int64_t ld, bool accumulate, Ahead& ahead, int64_t ahead_lines) {
  constexpr int kLanes = Vec<float>::kLanes;
  alignas(kScratchAlignment) float sums[kPairSums];
  for (int64_t row = 0; row < rows; row += kPairRows) {
    const int64_t count = std::min(kPairRows, rows - row);
    for (int64_t line = 0; line < ahead_lines && !ahead.empty(); ++line, ahead.advance(1))
      __builtin_prefetch(ahead.at(), 0, 2);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = 0; c < columns; c += kLanes) __builtin_prefetch(to + (row + r) * ld + c, 1);
    multiply_block(registers, panel + row * panel_ld, panel_ld, count, weights, depth, columns, sums,
                   nullptr);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = 0; c < columns; c += kLanes) {
        float* at = to + (row + r) * ld + c;
        const Vec<float> sum = load(sums + r * kPairColumns + c);
        store(at, accumulate ? add(load(at), sum) : sum);
      }
  }
}

// Where a run of pixels goes: to a tensor of bfloat16, or back to L1 where the tensor has another layout.
template <class D>
struct PairOutput {
  D* data;
  int64_t ld;
  int64_t columns;          // valid ones, at most kPairColumns
  Stage<float> stage = {};  // from the first column
  const D* residual = nullptr;
  int64_t residual_ld = 0;
};

// Sums in L1 ([rows][kPairColumns]) through the epilogue to their place.
template <class D>
inline void finish_pairs(const float* sums, int64_t rows, const PairOutput<D>& out) {
  for (int64_t r = 0; r < rows; ++r, sums += kPairColumns) {
    D* to = out.data + r * out.ld;
    const D* residual = out.residual == nullptr ? nullptr : out.residual + r * out.residual_ld;
    for_each_vector<float>(out.columns, [&](auto vector, int64_t c) {
      Vec<float> sum = affine(load(sums + c), out.stage, c);
      if (residual != nullptr) sum = add(sum, vector.read(residual + c));
      vector.write(to + c, activate(sum, out.stage.activation));
    });
  }
}
