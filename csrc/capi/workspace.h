// How a call runs on memory and threads that its caller lends: the workspace is one block for what the
// threads share and one for each thread.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "capi/checks.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "include/sepconv.h"

namespace sepconv::capi {

inline constexpr int kMostThreads = 1024;

struct WorkspaceSize {
  size_t shared = 0, thread = 0;

  // With what aligning may cost. False where no address space holds it.
  bool total(int threads, size_t& bytes) const {
    bool fits = !__builtin_mul_overflow(thread, static_cast<size_t>(threads), &bytes) &&
                !__builtin_add_overflow(bytes, shared, &bytes);
    if (bytes != 0) fits &= !__builtin_add_overflow(bytes, size_t{kScratchAlignment - 1}, &bytes);
    return fits;
  }
};

// What call(parallel) takes, found out by letting it run without tasks and without data (see Lending).
template <class Call>
WorkspaceSize measure(int threads, Call&& call) {
  Arena shared, thread;
  const Lending lending(shared);
  const auto no_tasks = [](void* arena, int64_t, RangeBody body) {
    const Lending lending(*static_cast<Arena*>(arena));
    body(0, 0);
  };
  call(Parallel{threads, Runner(no_tasks, &thread)});
  return {shared.most_used(), thread.most_used()};
}

// The threads of a run, each with its part of the workspace.
class Team {
 public:
  Team(const WorkspaceSize& size, int threads, const sepconv_resources& resources);

  // Runs call(parallel) on the workspace; what went wrong in tasks is said by `checks`.
  template <class Call>
  void run(Checks& checks, Call&& call) {
    Arena shared(memory_, size_.shared);
    const Lending lending(shared);
    call(Parallel{threads_, Runner(run_ranges, this)});
    report(checks);
  }

 private:
  static void run_ranges(void* team, int64_t count, RangeBody body);
  void report(Checks& checks) const;

  WorkspaceSize size_;
  int threads_;
  const sepconv_resources& resources_;
  char* memory_;
  std::atomic<bool> task_failed_{false}, task_missed_{false};
};

bool has_openmp();

}  // namespace sepconv::capi
