// What vocabularies share whose products of pairs work on single rows, by multiply_rows<kRows, kVectors>, of
// one or both of a panel's vectors of columns.

// Nothing to set up before products, and nothing to leave behind.
struct DotRegisters {
  DotRegisters() {}
};

template <int kVectors, int... kRows>
constexpr auto row_kernels(std::integer_sequence<int, kRows...>) {
  return std::array{multiply_rows<kRows + 1, kVectors>...};
}

// sums[r][c] = sum over k of panel[r][k] * weights[k][c], for `rows` rows and at least `columns` columns;
// where `rounded` is not null, rounded[r][c] in their stead, of one vector of columns or of all.
inline void multiply_block(const DotRegisters& /* none */, const BFloat16* panel, int64_t ld, int64_t rows,
                           const BFloat16* weights, int64_t depth, int64_t columns, float* sums,
                           BFloat16* const* rounded) {
  constexpr auto kEveryRow = std::make_integer_sequence<int, kPairRows>{};
  static constexpr auto kHalf = row_kernels<1>(kEveryRow), kWhole = row_kernels<2>(kEveryRow);
  const auto& kernels = columns > Vec<float>::kLanes ? kWhole : kHalf;
  kernels[static_cast<size_t>(rows - 1)](panel, ld, weights, depth, sums, rounded);
}
