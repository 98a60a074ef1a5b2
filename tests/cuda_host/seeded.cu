// Kernels with one bug each, which the emulator must find in one build or another: `seeded BUG` prints what
// it finds and fails. Without a bug, the kernel and the emulator's intrinsics agree with plain loops. `seeded
// counts` makes accesses whose costs are known.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <type_traits>

#include "core/cuda/device.cuh"

namespace sepconv::cuda::seeded {  // not unnamed: a kernel has one symbol for every compiler

enum class Bug {
  kNone,
  kWrongWaitGroup,
  kMissingBarrier,
  kMissingBarrierAtLoopEnd,
  kNoBoundCheck,
  kIndexPastTheEnd,
  kDivergentBarrier,
  kBarrierLeftBehind,
  kDivergentCollective,
  kMisalignedCopy,
  kSwappedRegisters,
  kTooLittleSharedMemory,
  kTooLargeBlock,
};

constexpr const char* kNames[] = {
    "none",
    "wrong_wait_group",
    "missing_barrier",
    "missing_barrier_at_loop_end",
    "no_bound_check",
    "index_past_the_end",
    "divergent_barrier",
    "barrier_left_behind",
    "divergent_collective",
    "misaligned_copy",
    "swapped_registers",
    "too_little_shared_memory",
    "too_large_block",
};

constexpr int kThreads = 64, kRows = 32, kColumns = 16;
template <class S>
constexpr int kDepth = 32 / sizeof(S);  // of one product on the tensor cores
template <class S>
constexpr int kPitch = kDepth<S> + 16 / sizeof(S);

template <class S>
struct Shared {
  S a[2][kRows][kPitch<S>];
  float scaled[kRows][kDepth<S>];
  S b[2][kColumns][kPitch<S>];
};

// A product whose assembly has two registers of `a` in the wrong order, which its translation alone can show.
__device__ __forceinline__ void mma_of_swapped_registers([[maybe_unused]] float (&d)[4],
                                                         [[maybe_unused]] const uint32_t (&a)[4],
                                                         [[maybe_unused]] uint32_t b0,
                                                         [[maybe_unused]] uint32_t b1) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// y[rows][columns] = (2 * a[rows][depth]) * b[columns][depth]^T, a tile a block. The next step's tiles are
// copied while this one's are multiplied.
template <class S, Bug kBug>
__global__ void __launch_bounds__(kThreads)
    product(const S* a, const S* b, float* y, int rows, int columns, int depth) {
  SEPCONV_SHARED(Shared<S>, shared);
  constexpr int kVector = 16 / sizeof(S), kStep = kDepth<S>;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int row0 = static_cast<int>(blockIdx.x) * kRows, column0 = static_cast<int>(blockIdx.y) * kColumns;
  if (kBug == Bug::kBarrierLeftBehind && row0 + thread >= rows) return;

  const auto copy = [&](int buffer, int from) {
    for (int i = thread; i < (kRows + kColumns) * 2; i += kThreads) {
      const int line = i / 2, k = i % 2 * kVector;
      const bool of_a = line < kRows;
      const int index = of_a ? row0 + line : column0 + line - kRows;
      const bool valid = index < (of_a ? rows : columns);
      const S* source = (of_a ? a : b) + (valid ? int64_t{index} * depth + from + k : 0);
      S* to = of_a ? &shared->a[buffer][line][k] : &shared->b[buffer][line - kRows][k];
      device::copy_async(to, source + (kBug == Bug::kMisalignedCopy ? 1 : 0), valid);
    }
    device::commit_copies();
  };

  float sums[2][4] = {};
  copy(0, 0);
  for (int k0 = 0, buffer = 0; k0 < depth; k0 += kStep, buffer ^= 1) {
    if (k0 + kStep < depth) {
      copy(buffer ^ 1, k0 + kStep);
      device::wait_for_copies<kBug == Bug::kWrongWaitGroup ? 2 : 1>();
    } else {
      device::wait_for_copies<0>();
    }
    if constexpr (kBug != Bug::kMissingBarrier) device::synchronize();
    // Each thread doubles what other threads copied, across the warps.
    for (int i = thread; i < kRows * kStep; i += kThreads) {
      const int row = kRows - 1 - i / kStep, k = i % kStep;
      shared->scaled[row + (kBug == Bug::kIndexPastTheEnd && row == kRows - 1 ? 1000 : 0)][k] =
          2 * widen(shared->a[buffer][row][k]);
    }
    if (kBug == Bug::kDivergentBarrier && warp == 1)
      device::synchronize();
    else
      device::synchronize();
    uint32_t left[4], right[4];
    for (int r = 0; r < 4; ++r) {
      // Row group + 8 * (r % 2), half r / 2 of the depth.
      const float* scaled = &shared->scaled[warp * 16 + lane / 4 + r % 2 * 8][r / 2 * kStep / 2];
      if constexpr (std::is_same_v<S, float>) {
        std::memcpy(&left[r], scaled + lane % 4, 4);
      } else {
        const S low = narrow<S>(scaled[lane % 4 * 2]), high = narrow<S>(scaled[lane % 4 * 2 + 1]);
        left[r] = low.bits | static_cast<uint32_t>(high.bits) << 16;
      }
    }
    if (kBug != Bug::kDivergentCollective || lane != 5)
      device::load_matrices(right, &shared->b[buffer][lane / 16 * 8 + lane % 8][lane / 8 % 2 * kVector]);
    if constexpr (kBug == Bug::kSwappedRegisters)
      mma_of_swapped_registers(sums[0], left, right[0], right[1]);
    else
      device::mma(S{}, sums[0], left, right[0], right[1]);
    device::mma(S{}, sums[1], left, right[2], right[3]);
    if constexpr (kBug != Bug::kMissingBarrierAtLoopEnd) device::synchronize();
  }
  for (int half = 0; half < 2; ++half)
    for (int r = 0; r < 4; ++r) {
      const int row = row0 + warp * 16 + lane / 4 + r / 2 * 8;
      const int column = column0 + half * 8 + lane % 4 * 2 + r % 2;
      if (kBug == Bug::kNoBoundCheck || (row < rows && column < columns))
        y[int64_t{row} * columns + column] = sums[half][r];
    }
}

// y[i][j] = x[j][i] of 16-bit elements by a transposed load, and the sum of each row by shuffles.
__global__ void transpose(const uint16_t* x, uint16_t* y, float* sums) {
  SEPCONV_SHARED(uint16_t, tile);
  const int lane = static_cast<int>(threadIdx.x);
  device::copy_async(tile + lane * 8, x + lane * 8, true);
  device::commit_copies();
  device::wait_for_copies<0>();
  device::synchronize();
  uint32_t registers[4];
  device::load_matrices_transposed(registers, tile + lane * 8);
  for (int matrix = 0; matrix < 4; ++matrix)
    for (int i = 0; i < 2; ++i)
      y[matrix * 64 + lane / 4 * 8 + lane % 4 * 2 + i] = static_cast<uint16_t>(registers[matrix] >> 16 * i);
  float sum = static_cast<float>(x[lane]);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += device::shuffle_down(sum, lanes);
  if (lane == 0) *sums = sum;
}

bool transposes() {
  uint16_t x[256], y[256];
  alignas(16) uint16_t aligned[256];
  float sum = 0, expected = 0;
  for (int i = 0; i < 256; ++i) aligned[i] = x[i] = static_cast<uint16_t>(i * 7 + 1);
  SEPCONV_LAUNCH(transpose, 1, 32, sizeof aligned, nullptr, aligned, y, &sum);
  bool right = true;
  for (int i = 0; i < 256; ++i) right = right && y[i] == x[i / 64 * 64 + i % 8 * 8 + i % 64 / 8];
  for (int i = 0; i < 32; ++i) expected += x[i];
  return right && sum == expected;
}

template <class S, Bug kBug>
bool multiplies() {
  constexpr int kRowsOfAll = 40, kColumnsOfAll = 29, kSteps = 3;
  const int depth = kDepth<S> * kSteps;
  // Arrays of their own, so that ASan knows where each ends.
  const std::unique_ptr<S[]> a(new S[kRowsOfAll * depth]), b(new S[kColumnsOfAll * depth]);
  const std::unique_ptr<float[]> y(new float[kRowsOfAll * kColumnsOfAll]);
  std::mt19937 random(1);
  const auto small = [&] { return static_cast<float>(static_cast<int>(random() % 9)) - 4; };
  for (int i = 0; i < kRowsOfAll * depth; ++i) a[i] = narrow<S>(small());
  for (int i = 0; i < kColumnsOfAll * depth; ++i) b[i] = narrow<S>(small());
  for (int i = 0; i < kRowsOfAll * kColumnsOfAll; ++i) y[i] = NAN;
  const dim3 grid((kRowsOfAll + kRows - 1) / kRows, (kColumnsOfAll + kColumns - 1) / kColumns);
  SEPCONV_LAUNCH((product<S, kBug>), grid, kBug == Bug::kTooLargeBlock ? 1056 : kThreads,
                 sizeof(Shared<S>) - (kBug == Bug::kTooLittleSharedMemory ? 16 : 0), nullptr, a.get(),
                 b.get(), y.get(), kRowsOfAll, kColumnsOfAll, depth);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    std::printf("not launched: %s\n", cudaGetErrorString(error));
    return false;
  }
  for (int i = 0; i < kRowsOfAll; ++i)
    for (int j = 0; j < kColumnsOfAll; ++j) {
      float sum = 0;  // of integers: exact
      for (int k = 0; k < depth; ++k) sum += 2 * widen(a[i * depth + k]) * widen(b[j * depth + k]);
      if (y[i * kColumnsOfAll + j] == sum) continue;
      std::printf("wrong: element %d, %d is %g, not %g\n", i, j, y[i * kColumnsOfAll + j], sum);
      return false;
    }
  return true;
}

// One warp: a word each of every kStep-th, to and from shared memory and from global memory.
template <int kStep>
__global__ void strided(const float* x, float* y) {
  SEPCONV_SHARED(float, shared);
  const int lane = static_cast<int>(threadIdx.x);
  shared[lane * kStep] = x[lane * kStep];
  device::synchronize();
  y[lane] = shared[(31 - lane) * kStep];
}

// One warp, whose odd lanes leave out every second iteration: words side by side all the same.
__global__ void divergent(const float* x, float* y, int rounds) {
  SEPCONV_SHARED(float, shared);
  const int lane = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int i = 0; i < rounds; ++i) {
    if (lane % 2 == 1 && i % 2 == 1) continue;
    shared[i * 32 + lane] = x[i * 32 + lane];
  }
  device::synchronize();
  y[lane] = shared[lane];
}

bool diverges() {
  constexpr int kRounds = 6;
  alignas(32) float x[32 * kRounds], y[32];
  for (int i = 0; i < 32 * kRounds; ++i) x[i] = static_cast<float>(i);
  SEPCONV_LAUNCH(divergent, 1, 32, sizeof x, nullptr, x, y, kRounds);
  return y[31] == 31;
}

template <int kStep>
bool counts() {
  alignas(32) float x[32 * kStep] = {}, y[32];
  for (int i = 0; i < 32; ++i) x[i * kStep] = static_cast<float>(i);
  SEPCONV_LAUNCH(strided<kStep>, 1, 32, sizeof x, nullptr, x, y);
  for (int i = 0; i < 32; ++i)
    if (y[i] != static_cast<float>(31 - i)) return false;
  return true;
}

template <Bug kBug>
bool run() {
  if (kBug != Bug::kNone) return multiplies<Float16, kBug>();
  return multiplies<float, Bug::kNone>() && multiplies<Float16, Bug::kNone>() &&
         multiplies<BFloat16, Bug::kNone>() && transposes();
}

template <int kBug = 0>
bool run_named(const char* name) {
  if constexpr (kBug < static_cast<int>(std::size(kNames))) {
    if (std::strcmp(name, kNames[kBug]) == 0) return run<static_cast<Bug>(kBug)>();
    return run_named<kBug + 1>(name);
  }
  if (std::strcmp(name, "counts") == 0) return counts<1>() && counts<8>() && counts<33>() && diverges();
  std::printf("there is no bug named %s\n", name);
  return false;
}

}  // namespace sepconv::cuda::seeded

int main(int count, char** arguments) {
  try {
    return sepconv::cuda::seeded::run_named(count == 2 ? arguments[1] : "") ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
