// What this machine can do at best, for benchmarks to be measured against: fused multiply-adds a second from
// registers (of float32, or with AMX's flags of bfloat16 in tiles), and copy bandwidth. Compiled on demand by
// probe.py, once for each instruction set, with that set's flags and VECTOR_BYTES; GNU vectors keep one body
// for all of them.
#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

#ifdef __AMX_BF16__

constexpr int kIterations = 2000;
constexpr double kBurstFlops = 4.0 * kIterations * 2 * 16 * 16 * 32;  // four products of 16x32 and 32x16

// FLOP/s of one burst, or 0 where the system gives no tiles. A tile of zeros takes as long as any other.
double burst(float, volatile float*) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0;
  _tile_loadconfig(&config);
  const auto begin = Clock::now();
  for (int k = 0; k < kIterations; ++k) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  const double seconds = seconds_since(begin);
  _tile_release();
  return kBurstFlops / seconds;
}

#else

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));

constexpr int kLanes = VECTOR_BYTES / sizeof(float);
// Latency times ports is 8 to 16 on current cores; AVX2 has only 16 registers to hold accumulators in.
constexpr int kAccumulators = VECTOR_BYTES == 32 ? 12 : 24;
constexpr int kIterations =
    20000;  // a burst of about 0.1 ms: long against the clock, short against a time slice
constexpr double kBurstFlops = 2.0 * kLanes * kAccumulators * kIterations;

// FLOP/s of one burst. The start value comes from the caller so that nothing folds at compile time.
double burst(float start, volatile float* sink) {
  Vector accumulators[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) accumulators[i] = Vector{} + start * static_cast<float>(i);
  const Vector factor = Vector{} + 0.999f, addend = Vector{} + start;
  const auto begin = Clock::now();
  for (int k = 0; k < kIterations; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i) accumulators[i] = accumulators[i] * factor + addend;
  }
  const double seconds = seconds_since(begin);
  Vector sum{};
  for (const Vector& accumulator : accumulators) sum += accumulator;
  for (int lane = 0; lane < kLanes; ++lane) *sink = sum[lane];
  return kBurstFlops / seconds;
}

#endif

template <class Body>
void on_threads(int threads, const Body& body) {
  std::vector<std::thread> pool;
  for (int index = 0; index < threads; ++index) pool.emplace_back(body, index);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace

extern "C" {

// GFLOP/s summed over threads that run at once: `best` from each thread's fastest burst (the ceiling),
// `sustained` from its mean rate (what a noisy machine leaves of it).
void fma_gflops(int threads, double seconds, double* best, double* sustained) {
  std::vector<double> fastest(threads), mean(threads);
  on_threads(threads, [&](int index) {
    volatile float sink = 0;
    int64_t bursts = 0;
    const auto begin = Clock::now();
    do {
      fastest[index] = std::max(fastest[index], burst(0.001f, &sink));
      ++bursts;
    } while (seconds_since(begin) < seconds);
    mean[index] = kBurstFlops * bursts / seconds_since(begin);
  });
  *best = *sustained = 0;
  for (int index = 0; index < threads; ++index) {
    *best += fastest[index] * 1e-9;
    *sustained += mean[index] * 1e-9;
  }
}

// Copies `bytes` bytes, split evenly over the threads.
void copy(int threads, void* target, const void* source, int64_t bytes) {
  on_threads(threads, [&](int index) {
    const int64_t first = bytes * index / threads, last = bytes * (index + 1) / threads;
    std::memcpy(static_cast<char*>(target) + first, static_cast<const char*>(source) + first, last - first);
  });
}

// GB/s (read plus written) of the fastest of `rounds` copies of `bytes` bytes.
double copy_gbps(int threads, int64_t bytes, int rounds) {
  std::vector<char> source(bytes, 1), target(bytes, 2);  // written here: no page fault is timed
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    const auto begin = Clock::now();
    copy(threads, target.data(), source.data(), bytes);
    best = std::max(best, 2.0 * bytes / seconds_since(begin) * 1e-9);
  }
  return best;
}

}  // extern "C"
