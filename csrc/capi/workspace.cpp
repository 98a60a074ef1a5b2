#include "capi/workspace.h"

#include <algorithm>

namespace sepconv::capi {
namespace {

// One call of the caller's parallel_for: [0, count) in as many ranges as there are tasks.
struct Region {
  char* memory;  // of the threads
  size_t thread_bytes;
  int64_t count, tasks;
  RangeBody body;
  std::atomic<uint64_t> taken[kMostThreads / 64] = {};
  std::atomic<int64_t> done{0};
  std::atomic<bool> failed{false};

  void run(int64_t index) {
    if (index < 0 || index >= tasks || is_taken(index)) return;  // done then misses a task
    Arena arena(memory + static_cast<size_t>(index) * thread_bytes, thread_bytes);
    const Lending lending(arena);
    try {
      body(count * index / tasks, count * (index + 1) / tasks);
    } catch (...) {
      failed = true;
    }
    ++done;
  }

  bool is_taken(int64_t index) {
    const uint64_t bit = uint64_t{1} << index % 64;
    return (taken[index / 64].fetch_or(bit) & bit) != 0;
  }
};

void run_task(void* region, int64_t index) {
  static_cast<Region*>(region)->run(index);
}

void own_parallel_for(void*, int64_t count, sepconv_task task, void* task_context) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(count)) schedule(static, 1)
#endif
  for (int64_t index = 0; index < count; ++index) task(task_context, index);
}

// An arena at null would only count: a call that needs no workspace gets none of some.
char* aligned(void* memory) {
  alignas(kScratchAlignment) static char nothing[kScratchAlignment];
  return memory == nullptr ? nothing
                           : reinterpret_cast<char*>(scratch_bytes(reinterpret_cast<uintptr_t>(memory)));
}

}  // namespace

Team::Team(const WorkspaceSize& size, int threads, const sepconv_resources& resources)
    : size_(size), threads_(threads), resources_(resources), memory_(aligned(resources.workspace)) {}

void Team::run_ranges(void* self, int64_t count, RangeBody body) {
  if (count <= 0) return;
  Team& team = *static_cast<Team*>(self);
  Region region{team.memory_ + team.size_.shared, team.size_.thread, count,
                std::min<int64_t>(count, team.threads_), body};
  if (region.tasks == 1) {
    region.run(0);
  } else {
    const sepconv_parallel_for lent = team.resources_.parallel_for;
    (lent != nullptr ? lent : own_parallel_for)(team.resources_.context, region.tasks, run_task, &region);
  }
  if (region.failed) team.task_failed_ = true;
  if (region.done != region.tasks) team.task_missed_ = true;
}

void Team::report(Checks& checks) const {
  checks.require(!task_failed_, SEPCONV_INTERNAL_ERROR, "a task failed");
  checks.require(!task_missed_, SEPCONV_PARALLEL_FOR_FAILED,
                 "resources.parallel_for must run its task once for each index");
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace sepconv::capi
