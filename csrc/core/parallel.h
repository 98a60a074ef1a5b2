// The core owns no threads: whoever calls it (torch, the C API, a test) lends its own.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/scratch.h"

namespace sepconv {

// A non-owning reference to a callable: two pointers, no allocation. The callable must outlive it.
template <class Signature>
class FunctionRef;
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& f)  // NOLINT: implicit on purpose, as std::function_ref
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  Result operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  Result (*call_)(void*, Args...);
};

// Numbers that threads take from both ends, each number once. Whoever takes one sees what was written before
// open().
class alignas(64) SharedRange {  // a cache line of its own
 public:
  void open(int64_t begin, int64_t end) { ends_.store(packed(begin, end), std::memory_order_release); }
  int64_t left() const {
    const uint64_t ends = ends_.load(std::memory_order_relaxed);
    return end_of(ends) - begin_of(ends);
  }
  bool take_first(int64_t& number) {
    uint64_t ends = ends_.load(std::memory_order_relaxed);
    do {
      number = begin_of(ends);
      if (number == end_of(ends)) return false;
    } while (!taken(ends, packed(number + 1, end_of(ends))));
    return true;
  }
  bool take_last(int64_t& number) {
    uint64_t ends = ends_.load(std::memory_order_relaxed);
    do {
      number = end_of(ends) - 1;
      if (number < begin_of(ends)) return false;
    } while (!taken(ends, packed(begin_of(ends), number)));
    return true;
  }

 private:
  static uint64_t packed(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
  }
  static int64_t begin_of(uint64_t ends) { return static_cast<int64_t>(ends >> 32); }
  static int64_t end_of(uint64_t ends) { return static_cast<int64_t>(ends & 0xffffffff); }
  bool taken(uint64_t& expected, uint64_t ends) {
    return ends_.compare_exchange_weak(expected, ends, std::memory_order_acquire, std::memory_order_relaxed);
  }
  std::atomic<uint64_t> ends_{0};
};

// What one thread of a call takes its tasks from: first its own share, of adjacent ones, then what is left of
// the others' shares, from their far ends. No thread waits while there is work, however fast each one is.
class Tasks {
 public:
  Tasks(SharedRange* shares, int workers, int worker, int64_t count, int64_t unit)
      : shares_(shares), workers_(workers), worker_(worker), count_(count), unit_(unit) {}

  int worker() const { return worker_; }
  bool next(int64_t& task) {
    if (at_ == end_ && !take_unit<false>()) return false;
    task = at_++;
    return true;
  }
  // In opposite order; a thread calls one or the other.
  bool previous(int64_t& task) {
    if (at_ == end_ && !take_unit<true>()) return false;
    task = --end_;
    return true;
  }

 private:
  template <bool kBackward>
  bool take_unit() {
    int64_t unit = 0;
    const auto take = [&](SharedRange& share, bool first) {
      return first ? share.take_first(unit) : share.take_last(unit);
    };
    bool found = take(shares_[worker_], !kBackward);
    while (!found) {
      SharedRange* fullest = std::max_element(
          shares_, shares_ + workers_, [](const auto& a, const auto& b) { return a.left() < b.left(); });
      if (fullest->left() == 0) return false;
      found = take(*fullest, kBackward);
    }
    at_ = unit * unit_;
    end_ = std::min(at_ + unit_, count_);
    return true;
  }
  SharedRange* shares_;
  int workers_, worker_;
  int64_t count_, unit_, at_ = 0, end_ = 0;
};

// Runs body(begin, end) over disjoint ranges that cover [0, count), on any number of threads.
using RangeBody = FunctionRef<void(int64_t begin, int64_t end)>;

// What does that: a plain function, or one with a context of its own, which outlives the calls.
class Runner {
 public:
  using Plain = void (*)(int64_t count, RangeBody body);
  using WithContext = void (*)(void* context, int64_t count, RangeBody body);
  template <class F>
    requires std::is_convertible_v<F, Plain>
  Runner(F plain) : plain_(plain) {}  // NOLINT: implicit on purpose
  Runner(WithContext run, void* context) : run_(run), context_(context) {}
  void operator()(int64_t count, RangeBody body) const {
    plain_ != nullptr ? plain_(count, body) : run_(context_, count, body);
  }

 private:
  Plain plain_ = nullptr;
  WithContext run_ = nullptr;
  void* context_ = nullptr;
};

struct Parallel {
  int threads = 1;  // how many may run at once; plans may use it, results never depend on it
  Runner run = [](int64_t count, RangeBody body) {
    if (count > 0) body(0, count);
  };

  int workers(int64_t count) const { return static_cast<int>(std::clamp<int64_t>(count, 1, threads)); }
  // Runs body(tasks) on every worker; together they take each of [0, count) once. What joins neighbours, as
  // the row average does, calls run() for its long ranges.
  void share(int64_t count, FunctionRef<void(Tasks& tasks)> body) const {
    constexpr int64_t kUnits = 64;  // of tasks a thread takes at once, a share has about so many
    if (count <= 0) return;
    const int workers = this->workers(count);
    const int64_t unit = (count - 1) / (kUnits * workers) + 1, units = (count - 1) / unit + 1;
    ScratchVector<SharedRange> shares(static_cast<size_t>(workers));
    // Where memory is only counted, one worker finds out what it needs, and gets no task.
    const bool only_counts = lent_arena() != nullptr && lent_arena()->only_counts();
    for (int w = 0; w < workers && !only_counts; ++w)
      shares[static_cast<size_t>(w)].open(units * w / workers, units * (w + 1) / workers);
    run(workers, [&](int64_t begin, int64_t end) {
      for (int64_t w = begin; w < (only_counts ? begin + 1 : end); ++w) {
        Tasks tasks(shares.data(), workers, static_cast<int>(w), count, unit);
        body(tasks);
      }
    });
  }
};

}  // namespace sepconv
