// What this machine can do at best, for benchmarks to be measured against: fused multiply-adds a second from
// registers, and copy bandwidth. Compiled on demand by probe.py, once for each instruction set, with that
// set's flags and VECTOR_BYTES; GNU vectors keep one body for all of them.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));

constexpr int kLanes = VECTOR_BYTES / sizeof(float);
// Latency times ports is 8 to 16 on current cores; AVX2 has only 16 registers to hold accumulators in.
constexpr int kAccumulators = VECTOR_BYTES == 32 ? 12 : 24;
constexpr int kIterations =
    20000;  // a burst of about 0.1 ms: long against the clock, short against a time slice

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

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
  return 2.0 * kLanes * kAccumulators * kIterations / seconds;
}

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
    mean[index] = 2.0 * kLanes * kAccumulators * kIterations * bursts / seconds_since(begin);
  });
  *best = *sustained = 0;
  for (int index = 0; index < threads; ++index) {
    *best += fastest[index] * 1e-9;
    *sustained += mean[index] * 1e-9;
  }
}

// GB/s (read plus written) of the fastest of `rounds` copies of `bytes` bytes, split evenly over the threads.
double copy_gbps(int threads, int64_t bytes, int rounds) {
  std::vector<char> source(bytes, 1), target(bytes, 2);  // written here: no page fault is timed
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    const auto begin = Clock::now();
    on_threads(threads, [&](int index) {
      const int64_t first = bytes * index / threads, last = bytes * (index + 1) / threads;
      std::memcpy(target.data() + first, source.data() + first, last - first);
    });
    best = std::max(best, 2.0 * bytes / seconds_since(begin) * 1e-9);
  }
  return best;
}

}  // extern "C"
