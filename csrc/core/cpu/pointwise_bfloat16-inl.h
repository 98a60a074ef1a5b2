// The GEMM for bfloat16 where the CPU multiplies pairs of bfloat16 itself: both factors are bfloat16, sums
// are float32 and stay in registers over the full depth. A panel of pixels is row-major, as in
// pointwise-inl.h; weights are packed in pairs of depth, in panels of kPairColumns columns, of which
// multiply_block computes up to kPairRows rows. The instructions take subnormal factors as zero.

// Size of a buffer for the sums of a block, in whole vectors of rows.
inline constexpr int64_t kPairSums = (kPairRows + 15) / 16 * 16 * kPairColumns;
// Depth is padded with zeros, in the panel and in the weights, to whole rows of an AMX tile.
inline constexpr int64_t kPairDepth = 32;

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
