#include "warp.h"

#include <bit>

namespace sepconv::cuda_host {
namespace {

using Row = float __attribute__((vector_size(32)));  // the 8 columns of b and d

struct Float16Pair {
  static constexpr int kPerRegister = 2;
  static float widen(uint32_t bits, int i) {
    return static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(bits >> 16 * i)));
  }
};
struct BFloat16Pair {
  static constexpr int kPerRegister = 2;
  static float widen(uint32_t bits, int i) {
    return std::bit_cast<float>(i == 0 ? bits << 16 : bits & 0xFFFF0000u);
  }
};
struct Tf32 {
  static constexpr int kPerRegister = 1;
  static float widen(uint32_t bits, int) { return std::bit_cast<float>(bits & 0xFFFFE000u); }
};

// Fragments of mma.m16n8k16 (k8 for TF32). Sums are of one float each, in the order of the depth: the tensor
// cores' own order and rounding are not documented.
template <class Element>
void multiply(const Arguments& lanes) {
  constexpr int kPer = Element::kPerRegister, kDepth = 8 * kPer;
  float a[16][kDepth];
  alignas(32) float b[kDepth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& product = *static_cast<const Product*>(lanes[lane]);
    const int group = lane / 4, within = lane % 4 * kPer;
    for (int i = 0; i < kPer; ++i) {
      for (int r = 0; r < 4; ++r)
        a[group + r % 2 * 8][within + i + r / 2 * 4 * kPer] = Element::widen(product.a[r], i);
      for (int r = 0; r < 2; ++r) b[within + i + r * 4 * kPer][group] = Element::widen(product.b[r], i);
    }
  }
  Row sums[16];
  for (int row = 0; row < 16; ++row) {
    Row sum{};
    for (int k = 0; k < kDepth; ++k) sum += a[row][k] * *reinterpret_cast<const Row*>(b[k]);
    sums[row] = sum;
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<const Product*>(lanes[lane])->d;
    for (int r = 0; r < 4; ++r) d[r] += sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
  }
}

}  // namespace

void exchange(const Arguments& lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Shuffle*>(lanes[lane]);
    std::memcpy(mine.result, static_cast<const Shuffle*>(lanes[mine.from])->value, mine.bytes);
  }
}

void multiply_float16(const Arguments& lanes) {
  multiply<Float16Pair>(lanes);
}
void multiply_bfloat16(const Arguments& lanes) {
  multiply<BFloat16Pair>(lanes);
}
void multiply_tf32(const Arguments& lanes) {
  multiply<Tf32>(lanes);
}

}  // namespace sepconv::cuda_host
