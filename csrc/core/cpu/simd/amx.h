// AMX-BF16: tiles of 16 x 16 sums, each instruction a product over 32 values of depth.

inline constexpr int64_t kPairRows = 32, kPairRowsRead = 16;  // rows of whole tiles are read

// The tile registers of a thread, from construction to destruction: others on this thread find them unused.
class DotRegisters {
 public:
  DotRegisters() {
    struct alignas(64) Configuration {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    // Static: the compiler believes that the instruction reads 8 bytes, and would not write the others.
    static constexpr Configuration kConfiguration;
    _tile_loadconfig(&kConfiguration);
  }
  ~DotRegisters() { _tile_release(); }
  DotRegisters(const DotRegisters&) = delete;
  DotRegisters& operator=(const DotRegisters&) = delete;
};

// kRows x kColumns tiles of sums in tile registers 0 to 3, left factors in 4 and 5, right factors in 6 and 7.
template <int kRows, int kColumns>
inline void multiply_tiles(const BFloat16* panel, int64_t ld, const BFloat16* weights, int64_t depth,
                           float* sums) {
  constexpr int64_t kPairs = 16, kWeightsStep = 2 * kPairs * 32;  // pairs of a tile; weights of 32 of depth
  const int64_t panel_bytes = ld * 2, weights_bytes = 32 * 4, sums_bytes = 32 * 4;
  asm volatile("" ::: "memory");  // the compiler does not know that tile loads read memory
  _tile_zero(0);
  if constexpr (kColumns > 1) _tile_zero(1);
  if constexpr (kRows > 1) _tile_zero(2);
  if constexpr (kRows > 1 && kColumns > 1) _tile_zero(3);
  for (int64_t k = 0; k < depth; k += 32, weights += kWeightsStep) {
    _tile_loadd(4, panel + k, panel_bytes);
    _tile_loadd(6, weights, weights_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns > 1) {
      _tile_loadd(7, weights + 32, weights_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows > 1) {
      _tile_loadd(5, panel + 16 * ld + k, panel_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColumns > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, sums_bytes);
  if constexpr (kColumns > 1) _tile_stored(1, sums + 16, sums_bytes);
  if constexpr (kRows > 1) _tile_stored(2, sums + 16 * 32, sums_bytes);
  if constexpr (kRows > 1 && kColumns > 1) _tile_stored(3, sums + 16 * 32 + 16, sums_bytes);
}

// sums[r][c] = sum over k of panel[r][k] * weights[k][c], for `rows` rows and at least `columns` columns;
// where `rounded` is not null, rounded[r][c] too, of one vector of columns or of all.
inline void multiply_block(const DotRegisters& /* are set up */, const BFloat16* panel, int64_t ld,
                           int64_t rows, const BFloat16* weights, int64_t depth, int64_t columns, float* sums,
                           BFloat16* const* rounded) {
  if (rows > 16) {
    columns > 16 ? multiply_tiles<2, 2>(panel, ld, weights, depth, sums)
                 : multiply_tiles<2, 1>(panel, ld, weights, depth, sums);
  } else {
    columns > 16 ? multiply_tiles<1, 2>(panel, ld, weights, depth, sums)
                 : multiply_tiles<1, 1>(panel, ld, weights, depth, sums);
  }
  if (rounded == nullptr) return;
  for (int64_t r = 0; r < rows; ++r, sums += 32) {
    if (columns > 16)
      store_two(rounded[r], load(sums), load(sums + 16));
    else
      store(rounded[r], load(sums));
  }
}
