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

// A register tile whose store is more than a store: from a buffer in L1 (`tile`, kTileColumns wide) to its
// place.
template <class T>
inline void finish_tile(const T* tile, int64_t rows, const TileOutput<T>& out, int64_t row) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = tile + r * kTileColumns<T>;
    T* to = out.data + (row + r) * out.ld;
    const T* residual = out.residual == nullptr ? nullptr : out.residual + (row + r) * out.residual_ld;
    for_each_vector<T>(out.columns, [&](auto vector, int64_t c) {
      Vec<T> sum = load(from + c);
      if (out.accumulate) sum = add(vector.read(to + c), sum);
      sum = affine(sum, out.stage, c);
      if (residual != nullptr) sum = add(sum, vector.read(residual + c));
      vector.write(to + c, activate(sum, out.stage.activation));
    });
  }
}

// kRows pixels x kVectors vectors of columns. `kTransposed` says which step of the panel is 1.
template <int kRows, int kVectors, bool kTransposed, class T>
void multiply_tile(const Panel<T>& panel, const T* weights, int64_t weights_ld, int64_t depth,
                   const TileOutput<T>& out, int64_t row) {
  constexpr int kLanes = Vec<T>::kLanes;
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
  // Most tiles of a plain call: the registers are the result. Others pass through L1, once a tile.
  const bool plain =
      out.columns == kVectors * kLanes && !out.accumulate && out.residual == nullptr && out.stage.empty();
  alignas(kScratchAlignment) T buffer[kRows * kTileColumns<T>];
  T* to = plain ? out.data + row * out.ld : buffer;
  const int64_t ld = plain ? out.ld : kTileColumns<T>;
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(to + r * ld + v * kLanes, sums[r][v]);
  if (!plain) finish_tile(static_cast<const T*>(buffer), kRows, out, row);
}

template <class T>
using TileKernel = void (*)(const Panel<T>&, const T*, int64_t, int64_t, const TileOutput<T>&, int64_t);
template <class T>
using TileKernels = std::array<TileKernel<T>, Registers<T>::kTileRows>;  // by rows - 1

template <int kVectors, bool kTransposed, class T, int... kRows>
constexpr TileKernels<T> tile_kernels(std::integer_sequence<int, kRows...>) {
  return {multiply_tile<kRows + 1, kVectors, kTransposed, T>...};
}

// `rows` rows of the panel against one packed weight panel. Rows are cut evenly: 16 as 8 + 8, not 14 + 2.
// Half a panel of columns (16 or fewer of 32) takes tiles of one vector.
template <bool kTransposed, class T>
inline void multiply(const Panel<T>& panel, int64_t rows, const T* weights, int64_t weights_ld, int64_t depth,
                     const TileOutput<T>& out) {
  static_assert(Registers<T>::kTileVectors == 2);
  constexpr auto kAllRows = std::make_integer_sequence<int, Registers<T>::kTileRows>{};
  static constexpr TileKernels<T> kKernels[2] = {tile_kernels<1, kTransposed, T>(kAllRows),
                                                 tile_kernels<2, kTransposed, T>(kAllRows)};
  if (rows == 0) return;
  const TileKernels<T>& kernels = kKernels[out.columns > Vec<T>::kLanes];
  const int64_t tiles = divide_up(rows, Registers<T>::kTileRows);
  for (int64_t i = 0, row = 0; i < tiles; ++i) {
    const int64_t next = rows * (i + 1) / tiles;
    kernels[static_cast<size_t>(next - row - 1)](panel, weights, weights_ld, depth, out, row);
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
