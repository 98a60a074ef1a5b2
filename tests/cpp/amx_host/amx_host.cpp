#include "amx_host.h"

#include <sys/syscall.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// The functions behind these names.
#undef __get_cpuid_count
#undef syscall

namespace amx_host {
namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

[[noreturn]] void refuse(const char* problem) {
  std::fprintf(stderr, "amx_host: %s\n", problem);
  std::abort();
}

// What LDTILECFG reads.
struct Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Configuration) == 64);

struct Tile {
  int rows = 0, row_bytes = 0;
  bool written = false;
  unsigned char data[kRows][kRowBytes];

  void clear() {
    std::memset(data, 0, sizeof data);
    written = true;
  }
  float sum(int row, int column) const {
    float value;
    std::memcpy(&value, data[row] + 4 * column, sizeof value);
    return value;
  }
  void set_sum(int row, int column, float value) {
    std::memcpy(data[row] + 4 * column, &value, sizeof value);
  }
  // The first or second of a pair, subnormal numbers as zero.
  float factor(int row, int pair, int which) const {
    uint16_t bits;
    std::memcpy(&bits, data[row] + 4 * pair + 2 * which, sizeof bits);
    if ((bits & 0x7f80) == 0) bits &= 0x8000;
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};

class Registers {
 public:
  ~Registers() {
    if (configured_) refuse("a thread ended and left its tile registers in use");
  }
  void configure(const Configuration& wanted) {
    if (configured_) refuse("tile registers were configured while they were in use");
    if (wanted.palette != 1) refuse("a palette that is not 1");
    if (wanted.start_row != 0) refuse("a start row, which only an interrupted load has");
    for (const uint8_t byte : wanted.reserved)
      if (byte != 0) refuse("reserved bytes of the configuration that are not 0");
    for (int t = 0; t < 16; ++t) {
      const int rows = wanted.rows[t], row_bytes = wanted.row_bytes[t];
      if (rows > kRows || row_bytes > kRowBytes || (rows == 0) != (row_bytes == 0))
        refuse("a tile of a size that there is not");
      if (t >= kTiles && rows != 0) refuse("more tiles than there are");
      if (t < kTiles) tiles_[t] = {rows, row_bytes, false, {}};
    }
    configured_ = true;
  }
  void release() { configured_ = false; }
  Tile& tile(int t) {
    if (!configured_) refuse("tile registers were used without being configured");
    if (t < 0 || t >= kTiles || tiles_[t].rows == 0) refuse("a tile that was not configured");
    return tiles_[t];
  }
  Tile& written(int t) {
    Tile& found = tile(t);
    if (!found.written) refuse("a tile was read before it was written");
    return found;
  }

 private:
  bool configured_ = false;
  Tile tiles_[kTiles];
};

thread_local Registers registers;
std::atomic<bool> permitted{false};
std::atomic<int64_t> count{0};

float without_subnormals(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

}  // namespace

int cpuid(unsigned leaf, unsigned subleaf, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  const int known = __get_cpuid_count(leaf, subleaf, a, b, c, d);
  if (known != 0 && leaf == 7 && subleaf == 0) *d |= kAmxBf16 | kAmxTile;
  return known;
}

long syscall(long number, long code, long argument) {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (number != SYS_arch_prctl || code != kRequestPermission || argument != kTileData)
    refuse("a system call that does not ask for tile registers");
  permitted = true;
  return 0;
}

void load_configuration(const void* memory) {
  if (!permitted) refuse("tile registers were configured without the kernel's permission");
  Configuration wanted;
  std::memcpy(&wanted, memory, sizeof wanted);
  registers.configure(wanted);
}

void release() {
  registers.release();
}

void zero(int tile) {
  registers.tile(tile).clear();
}

void load(int tile, const void* memory, int64_t stride) {
  Tile& to = registers.tile(tile);
  to.clear();
  for (int r = 0; r < to.rows; ++r)
    std::memcpy(to.data[r], static_cast<const char*>(memory) + r * stride, static_cast<size_t>(to.row_bytes));
}

void store(int tile, void* memory, int64_t stride) {
  const Tile& from = registers.written(tile);
  for (int r = 0; r < from.rows; ++r)
    std::memcpy(static_cast<char*>(memory) + r * stride, from.data[r], static_cast<size_t>(from.row_bytes));
}

// The first factors of all pairs are summed, and the second ones, then both, then what was there.
[[gnu::target("fma")]] void multiply_bfloat16(int sums, int left, int right) {
  Tile& to = registers.written(sums);
  const Tile &a = registers.written(left), &b = registers.written(right);
  if (sums == left || sums == right || left == right) refuse("a product needs three tiles");
  const int pairs = a.row_bytes / 4, columns = to.row_bytes / 4;
  if (a.rows != to.rows || b.rows != pairs || b.row_bytes != to.row_bytes)
    refuse("a product of tiles that do not fit each other");
  for (int row = 0; row < to.rows; ++row)
    for (int column = 0; column < columns; ++column) {
      float sum[2] = {0, 0};
      for (int pair = 0; pair < pairs; ++pair)
        for (int which : {0, 1})
          sum[which] = without_subnormals(
              std::fma(a.factor(row, pair, which), b.factor(pair, column, which), sum[which]));
      to.set_sum(row, column, without_subnormals(to.sum(row, column) + without_subnormals(sum[0] + sum[1])));
    }
  ++count;
}

int64_t products() {
  return count;
}

}  // namespace amx_host
