// The one GEMM of the library: output[pixel][column] = sum over k of panel[pixel][k] * weights[k][column],
// the sum held in registers over the full depth, so that the order of additions never depends on tiling. The
// panel is filled by a depthwise, by a gather (dense convolution) or lies in memory already; the weight
// gradient reads it transposed.

template <class T>
inline constexpr int kTileColumns =
    Registers<T>::kTileVectors * Vec<T>::kLanes;  // width of a packed weight panel

template <class T>
constexpr TileShape tile_shape() {
  return {Registers<T>::kTileRows, kTileColumns<T>};
}

// Where a block of the result goes, and what happens to it before its only store.
template <class T>
struct TileOutput {
  T* data;
  int64_t ld;
  int64_t columns;      // valid ones, at most kTileColumns
  Stage<T> stage = {};  // from the block's first column
  const T* residual = nullptr;
  int64_t residual_ld = 0;
  bool accumulate = false;  // add to what `data` holds
};

// Element (r, k) of the left factor is data[r * row_step + k * depth_step], one of the steps being 1.
template <class T>
struct Panel {
  const T* data;
  int64_t row_step, depth_step;
};

template <class T>
inline void finish(Vec<T> sum, const TileOutput<T>& out, int64_t row, int64_t column) {
  T* at = out.data + row * out.ld + column;
  const int lanes = static_cast<int>(std::min<int64_t>(Vec<T>::kLanes, out.columns - column));
  const bool full = lanes == Vec<T>::kLanes;
  if (out.accumulate) sum = add(full ? load(at) : load(at, lanes), sum);
  if (!out.stage.empty() || out.residual != nullptr) {
    sum = affine(sum, out.stage, column);
    if (out.residual != nullptr) sum = add(sum, load(out.residual + row * out.residual_ld + column, lanes));
    sum = activate(sum, out.stage.activation);
  }
  full ? store(at, sum) : store(at, sum, lanes);
}

// kRows pixels x kTileColumns columns. `kTransposed` says which step of the panel is 1.
template <int kRows, bool kTransposed, class T>
inline void multiply_tile(const Panel<T>& panel, const T* weights, int64_t weights_ld, int64_t depth,
                          const TileOutput<T>& out, int64_t row) {
  constexpr int kVectors = Registers<T>::kTileVectors, kLanes = Vec<T>::kLanes;
  const int64_t row_step = kTransposed ? 1 : panel.row_step, depth_step = kTransposed ? panel.depth_step : 1;
  const T* left = panel.data + row * row_step;
  Vec<T> sums[kRows][kVectors];
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = zero<T>();
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = load(weights + k * weights_ld + v * kLanes);
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> x = broadcast(left[r * row_step + k * depth_step]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(x, w[v], sums[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    if (v * kLanes >= out.columns) break;
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) finish(sums[r][v], out, row + r, v * kLanes);
  }
}

template <class T>
using TileKernel = void (*)(const Panel<T>&, const T*, int64_t, int64_t, const TileOutput<T>&, int64_t);

template <bool kTransposed, class T, int... kRows>
constexpr std::array<TileKernel<T>, sizeof...(kRows)> tile_kernels(std::integer_sequence<int, kRows...>) {
  return {multiply_tile<kRows + 1, kTransposed, T>...};
}

// `rows` rows of the panel against one packed weight panel. Rows are cut evenly: 16 as 8 + 8, not 14 + 2.
template <bool kTransposed, class T>
inline void multiply(const Panel<T>& panel, int64_t rows, const T* weights, int64_t weights_ld, int64_t depth,
                     const TileOutput<T>& out) {
  static constexpr auto kKernels =
      tile_kernels<kTransposed, T>(std::make_integer_sequence<int, Registers<T>::kTileRows>{});
  if (rows == 0) return;
  const int64_t tiles = divide_up(rows, Registers<T>::kTileRows);
  for (int64_t i = 0, row = 0; i < tiles; ++i) {
    const int64_t next = rows * (i + 1) / tiles;
    kKernels[static_cast<size_t>(next - row - 1)](panel, weights, weights_ld, depth, out, row);
    row = next;
  }
}

// Packed weights: panels of kTileColumns columns, each [depth][kTileColumns], columns past the end zero.
template <class T>
struct PackedWeights {
  const T* data;
  int64_t depth;
  const T* panel(int64_t p) const { return data + p * depth * kTileColumns<T>; }
};
template <class T>
inline int64_t packed_size(int64_t depth, int64_t columns) {
  return divide_up(columns, kTileColumns<T>) * depth * kTileColumns<T>;
}

// Panel `p` from weights stored (columns, depth): the forward.
template <class S>
inline void pack_transposed(const S* weights, int64_t depth, int64_t columns, int64_t p, Compute<S>* packed) {
  using T = Compute<S>;
  constexpr int64_t kColumns = kTileColumns<T>;
  const int64_t first = p * kColumns, valid = std::min(kColumns, columns - first);
  T* to = packed + p * depth * kColumns;
  if (valid < kColumns) std::fill(to, to + depth * kColumns, T(0));
  transpose_block(weights + first * depth, depth, to, kColumns, valid, depth);
}

// Panel `p` from weights stored (depth, columns): the gradient of the depthwise output.
template <class S>
inline void pack_rows(const S* weights, int64_t depth, int64_t columns, int64_t p, Compute<S>* packed) {
  using T = Compute<S>;
  constexpr int64_t kColumns = kTileColumns<T>;
  const int64_t first = p * kColumns, valid = std::min(kColumns, columns - first);
  T* to = packed + p * depth * kColumns;
  for (int64_t k = 0; k < depth; ++k) {
    convert(weights + k * columns + first, to + k * kColumns, valid);
    std::fill(to + k * kColumns + valid, to + (k + 1) * kColumns, T(0));
  }
}
