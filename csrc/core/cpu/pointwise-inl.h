// The one GEMM of the library: output[pixel][column] = sum over k of panel[pixel][k] * weights[k][column],
// the sum held in registers over the full depth, so that the order of additions never depends on tiling. The
// panel is filled by a depthwise or a gather, or lies in memory already, in one run or several; the weight
// gradient reads it transposed.

// A register tile is up to kTileVectors vectors of columns wide; the fewer, the more rows it has.
template <class T>
inline constexpr int kTileVectors = static_cast<int>(Registers<T>::kTileRows.size());
template <class T>
inline constexpr int kTileColumns = kTileVectors<T> * Vec<T>::kLanes;  // width of a packed weight panel

template <class T>
constexpr TileShape tile_shape() {
  return {Registers<T>::kTileRows[kTileVectors<T> - 1], kTileColumns<T>, Vec<T>::kLanes};
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

// Element (r, k) of the left factor is data[r * row_step + k * depth_step], one of the steps being 1. A
// factor of several runs of memory has as many times that depth, each run so far from `data`.
template <class T>
struct Panel {
  const T* data;
  int64_t row_step, depth_step;
  const int64_t* run_offsets = &kNoOffset;
  int64_t runs = 1;

  static constexpr int64_t kNoOffset = 0;
  Panel from_row(int64_t row) const {
    return {data + row * row_step, row_step, depth_step, run_offsets, runs};
  }
};

// Memory that will be read soon, rows of bytes: a register tile asks for a line of it every other step, into
// L2.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const void* data, int64_t bytes, int64_t rows = 1, int64_t row_stride = 0)
      : now_{static_cast<const char*>(data), bytes, bytes > 0 ? rows : 0, row_stride}, at_(now_.row) {}

  bool empty() const { return now_.rows == 0; }
  const char* at() const { return at_; }
  int64_t lines() const { return now_.rows * ((now_.bytes + kLine - 1) / kLine); }
  void advance(int64_t lines) {
    at_ += lines * kLine;
    if (empty() || at_ < now_.row + now_.bytes) return;
    --now_.rows;
    now_.row += now_.row_stride;
    if (empty()) now_ = std::exchange(later_, {});
    at_ = now_.row;
  }
  // What `later` asks for first, after this.
  void then(const Ahead& later) {
    if (empty()) {
      *this = later;
    } else {
      later_ = later.now_;
    }
  }

 private:
  struct Rows {
    const char* row = nullptr;
    int64_t bytes = 0, rows = 0, row_stride = 0;
  };
  Rows now_, later_;
  const char* at_ = nullptr;
};

// A tile whose store is more than a bias and a clamp: from a buffer in L1 (`tile`, kTileColumns wide) to its
// place.
template <class T>
inline void finish_tile(const T* tile, int64_t rows, const TileOutput<T>& out, int64_t row) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = tile + r * kTileColumns<T>;
    T* to = out.data + (row + r) * out.ld;
    const T* residual = out.residual == nullptr ? nullptr : out.residual + (row + r) * out.residual_ld;
    for_each_vector<T>(out.columns, [&](auto vector, int64_t c) {
      Vec<T> sum = affine(load(from + c), out.stage, c);
      if (residual != nullptr) sum = add(sum, vector.read(residual + c));
      vector.write(to + c, activate(sum, out.stage.activation));
    });
  }
}

// Depth steps whose left factors one load a row brings, and those between two requests of `ahead`.
template <bool kTransposed, class T>
inline constexpr int kStepsAtOnce = kTransposed ? 1 : LeftFactors<T>::kCount;
template <bool kTransposed, class T>
inline constexpr int kDepthUnroll = Registers<T>::kDepthUnroll * kStepsAtOnce<kTransposed, T>;

// What one register tile works on; `weights` has whole vectors of columns.
template <class T>
struct Tile {
  Panel<T> panel;  // from the tile's first row
  const T* weights;
  int64_t weights_ld, depth, row;  // depth: of a run
  const TileOutput<T>& out;
  const char* ahead;
  int64_t ahead_step;
};

// kRows pixels x kVectors vectors of columns. `kTransposed` says which step of the panel is 1.
template <int kRows, int kVectors, bool kTransposed, class T>
void multiply_tile(const Tile<T>& tile) {
  constexpr int kLanes = Vec<T>::kLanes;
  const TileOutput<T>& out = tile.out;
  const int tail = static_cast<int>(out.columns - (kVectors - 1) * kLanes);  // lanes of the last vector
  T* to = out.data + tile.row * out.ld;
  Vec<T> sums[kRows][kVectors];
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (!out.accumulate) {
        sums[r][v] = zero<T>();
      } else {
        const T* from = to + r * out.ld + v * kLanes;
        sums[r][v] = v < kVectors - 1 || tail == kLanes ? load(from) : load(from, tail);
      }
    }

  // The lines of the result are in no cache as a rule: asked for now, they are there when the sums are done.
  if (!out.accumulate) {
    constexpr int kVectorsOfLine = std::max<int>(1, kLine / (kLanes * sizeof(T)));
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v += kVectorsOfLine) __builtin_prefetch(to + r * out.ld + v * kLanes, 1);
  }

  const int64_t row_step = kTransposed ? 1 : tile.panel.row_step,
                depth_step = kTransposed ? tile.panel.depth_step : 1, weights_ld = tile.weights_ld;
  const T *left = nullptr, *weights = tile.weights;
  constexpr int kFactors = LeftFactors<T>::kCount, kSteps = kStepsAtOnce<kTransposed, T>,
                kUnroll = kDepthUnroll<kTransposed, T>;
  const auto advance = [&](int steps) __attribute__((always_inline)) {
    const int adjacent = kTransposed ? kRows : steps;
    LeftFactors<T> factors[kRows];
#pragma GCC unroll 4
    for (int step = 0; step < steps; ++step) {
      Vec<T> w[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * kLanes);
#pragma GCC unroll 14
      for (int r = 0; r < kRows; ++r) {
        const int at = kTransposed ? r : step, row = kTransposed ? r / kFactors : r;
        if (at % kFactors == 0)
          factors[row] = load_factors(left + r * row_step, std::min(kFactors, adjacent - at));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(factors[row], at % kFactors, w[v], sums[r][v]);
      }
      weights += weights_ld;
      // One pointer with constant offsets, so that vectors are loaded in pairs: else the compiler keeps as
      // many offsets as steps, and loads early what then has to leave the registers.
      if constexpr (kSteps > 1) asm("" : "+r"(weights));
    }
    left += steps * depth_step;
  };
  const char* ahead = tile.ahead;
  for (int64_t run = 0; run < tile.panel.runs; ++run) {
    left = tile.panel.data + tile.panel.run_offsets[run];
    int64_t k = 0;
    for (; k + kUnroll <= tile.depth; k += kUnroll) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += tile.ahead_step;
#pragma GCC unroll 4
      for (int step = 0; step < kUnroll; step += kSteps) advance(kSteps);
    }
    for (; k < tile.depth; ++k) advance(1);
  }

  const bool clamped =
      out.stage.activation == Activation::kRelu || out.stage.activation == Activation::kRelu6;
  if (out.residual != nullptr || out.stage.scale != nullptr ||
      (out.stage.activation != Activation::kNone && !clamped)) {
    alignas(kScratchAlignment) T buffer[kRows * kTileColumns<T>];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(buffer + r * kTileColumns<T> + v * kLanes, sums[r][v]);
    return finish_tile(static_cast<const T*>(buffer), kRows, out, tile.row);
  }
  if (out.stage.shift != nullptr) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vec<T> shift = load(out.stage.shift + v * kLanes);
#pragma GCC unroll 14
      for (int r = 0; r < kRows; ++r) sums[r][v] = add(sums[r][v], shift);
    }
  }
  if (clamped) {
    const Vec<T> high =
        broadcast(out.stage.activation == Activation::kRelu6 ? T(6) : std::numeric_limits<T>::infinity());
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = min(high, max(zero<T>(), sums[r][v]));
  }
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* at = to + r * out.ld + v * kLanes;
      v < kVectors - 1 || tail == kLanes ? store(at, sums[r][v]) : store(at, sums[r][v], tail);
    }
}

template <class T>
using TileKernel = void (*)(const Tile<T>&);

// multiply_tile for every number of rows and vectors that a register tile may have.
template <bool kTransposed, class T>
struct TileKernels {
  static constexpr int kMostRows = Registers<T>::kTileRows[0];
  TileKernel<T> of[kTileVectors<T>][kMostRows];

  template <int kVectors, int... kRows>
  constexpr void fill(std::integer_sequence<int, kRows...>) {
    ((of[kVectors - 1][kRows] = multiply_tile<kRows + 1, kVectors, kTransposed, T>), ...);
  }
  template <int... kVectors>
  constexpr explicit TileKernels(std::integer_sequence<int, kVectors...>) : of{} {
    (fill<kVectors + 1>(std::make_integer_sequence<int, Registers<T>::kTileRows[kVectors]>{}), ...);
  }
};

// `rows` rows of the panel, `depth` of each of its runs, against one packed weight panel. Rows are cut
// evenly: 8 as 4 + 4, not 6 + 2; or as many tiles as can be are the tallest, and the last two even.
template <bool kTransposed, class T>
inline void multiply(const Panel<T>& panel, int64_t rows, const T* weights, int64_t weights_ld, int64_t depth,
                     const TileOutput<T>& out, Ahead& ahead) {
  static constexpr TileKernels<kTransposed, T> kKernels{std::make_integer_sequence<int, kTileVectors<T>>{}};
  if (rows == 0) return;
  const auto v = static_cast<size_t>(divide_up(out.columns, Vec<T>::kLanes) - 1);
  const int64_t most = Registers<T>::kTileRows[v], tiles = divide_up(rows, most);
  for (int64_t i = 0, row = 0; i < tiles; ++i) {
    const int64_t next = !Registers<T>::kMostTallest ? rows * (i + 1) / tiles
                         : i + 2 < tiles             ? row + most
                                                     : row + divide_up(rows - row, tiles - i);
    const char* wanted = ahead.empty() ? reinterpret_cast<const char*>(weights) : ahead.at();
    kKernels.of[v][next - row - 1](
        {panel.from_row(row), weights, weights_ld, depth, row, out, wanted, ahead.empty() ? 0 : kLine});
    ahead.advance(panel.runs * (depth / kDepthUnroll<kTransposed, T>));
    row = next;
  }
}
template <bool kTransposed, class T>
inline void multiply(const Panel<T>& panel, int64_t rows, const T* weights, int64_t weights_ld, int64_t depth,
                     const TileOutput<T>& out) {
  Ahead nothing;
  multiply<kTransposed>(panel, rows, weights, weights_ld, depth, out, nothing);
}

// Packed weights: panels of kTileColumns columns, each [depth][columns], the last one as wide as it has whole
// vectors; columns past the end are zero.
template <class T>
struct PackedWeights {
  const T* data;
  int64_t depth, columns;

  int64_t panels() const { return divide_up(columns, kTileColumns<T>); }
  int64_t width(int64_t p) const {
    return std::min<int64_t>(kTileColumns<T>, round_up(columns - p * kTileColumns<T>, Vec<T>::kLanes));
  }
  int64_t offset(int64_t p) const { return p * depth * kTileColumns<T>; }
  const T* panel(int64_t p) const { return data + offset(p); }
  int64_t size() const { return depth * round_up(columns, Vec<T>::kLanes); }
};

// Panel `p` from weights stored (columns, depth): the forward.
template <class S>
inline void pack_transposed(const S* weights, const PackedWeights<Compute<S>>& shape, int64_t p,
                            Compute<S>* to) {
  using T = Compute<S>;
  const int64_t first = p * kTileColumns<T>, width = shape.width(p), depth = shape.depth;
  const int64_t valid = std::min(width, shape.columns - first);
  if (valid < width) std::fill(to, to + depth * width, T(0));
  transpose_block(weights + first * depth, depth, to, width, valid, depth);
}

// Panel `p` from weights stored (depth, columns): the gradient of the depthwise output.
template <class S>
inline void pack_rows(const S* weights, const PackedWeights<Compute<S>>& shape, int64_t p, Compute<S>* to) {
  using T = Compute<S>;
  const int64_t first = p * kTileColumns<T>, width = shape.width(p);
  const int64_t valid = std::min(width, shape.columns - first);
  for (int64_t k = 0; k < shape.depth; ++k) {
    convert(weights + k * shape.columns + first, to + k * width, valid);
    std::fill(to + k * width + valid, to + (k + 1) * width, T(0));
  }
}
