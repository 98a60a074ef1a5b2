// What vocabularies share whose products of pairs work on single rows, by multiply_rows<kRows>.

// Nothing to set up before products, and nothing to leave behind.
struct DotRegisters {
  DotRegisters() {}
};

template <int... kRows>
constexpr auto row_kernels(std::integer_sequence<int, kRows...>) {
  return std::array{multiply_rows<kRows + 1>...};
}

// sums[r][c] = sum over k of panel[r][k] * weights[k][c], for `rows` rows and all columns; where `rounded` is
// not null, rounded[r][c] in their stead.
inline void multiply_block(const BFloat16* panel, int64_t ld, int64_t rows, const BFloat16* weights,
                           int64_t depth, int64_t /* columns */, float* sums, BFloat16* const* rounded) {
  static constexpr auto kKernels = row_kernels(std::make_integer_sequence<int, kPairRows>{});
  kKernels[static_cast<size_t>(rows - 1)](panel, ld, weights, depth, sums, rounded);
}
