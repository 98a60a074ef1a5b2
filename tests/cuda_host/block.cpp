#include "block.h"

#include <bit>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "accesses.h"
#include "fibers.h"
#include "runtime.h"
#include "schedule.h"

namespace sepconv::cuda_host {

ThreadIndex here;

namespace {

constexpr int kLanes = 32;

struct Thread {
  Fiber fiber;
  uint3 index{};
  int warp = 0, lane = 0;
  Position where = Position::current();  // where it waits
  // The copies of all groups in order, and how many there were when each group was closed.
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;
  size_t copies_done = 0, groups_done = 0;
};

struct Warp {
  uint32_t lanes = 0;  // that exist; the others say where these are
  uint32_t ready = 0, in_collective = 0, at_barrier = 0, left = 0;
  // The collective that some lanes have reached. What they brought is kept while the next one gathers.
  void (*combine)(const Arguments&) = nullptr;
  Position where = Position::current();
  Arguments arguments[2];
  unsigned collectives = 0;
};

// The grid that runs; there is one at a time.
struct Grid {
  void (*body)(const void*) = nullptr;
  const void* call = nullptr;
  Schedule schedule;
  Fiber launcher;
  std::deque<Thread> threads;  // of the block, kept for the next: a Fiber stays where it is
  std::vector<Warp> warps;
  Thread* current = nullptr;
  int size = 0, at_barrier = 0, left = 0;
  unsigned barriers = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  char* barrier_tokens = nullptr;
  char started = 0, finished = 0;
  std::string error;
};
Grid& grid = *new Grid;  // never destroyed: TSan would see the threads' copies race with that

bool same(const Position& a, const Position& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// The thread whose turn it is, or null where all wait for someone who cannot come.
Thread* next_thread() {
  if (grid.at_barrier == grid.size) {
    grid.at_barrier = 0;
    ++grid.barriers;
    for (Warp& warp : grid.warps) warp.ready = std::exchange(warp.at_barrier, 0);
  }
  uint32_t ready_warps = 0;
  for (size_t i = 0; i < grid.warps.size(); ++i) ready_warps |= uint32_t(grid.warps[i].ready != 0) << i;
  if (ready_warps == 0) return nullptr;
  const int warp = grid.schedule.pick_warp(ready_warps);
  const int lane = grid.schedule.pick_lane(grid.warps[warp].ready);
  grid.warps[warp].ready &= ~(1u << lane);
  return &grid.threads[warp * kLanes + lane];
}

void resume(Fiber& from, Thread& thread, bool for_good = false) {
  grid.current = &thread;
  here.thread = thread.index;
  here.lane = thread.lane;
  if (&from != &thread.fiber) switch_fibers(from, thread.fiber, for_good);
}

// Of all who wait and cannot go on, one says where: lanes of a warp first, for which others may wait at a
// barrier.
[[noreturn]] void fail_stuck() {
  const auto one_of = [](uint32_t Warp::* waiting, const char* what) {
    for (int i = 0; i < grid.size; ++i) {
      const Thread& thread = grid.threads[i];
      if (!(grid.warps[thread.warp].*waiting >> thread.lane & 1)) continue;
      here.thread = thread.index;
      fail(what, thread.where);
    }
  };
  one_of(&Warp::in_collective, "some lanes of a warp never come to where the others wait");
  one_of(&Warp::at_barrier, "some threads of the block never come to the barrier where the others wait");
  fail("no thread can run", Position::current());
}

void wait(const Position& where) {
  Thread& me = *grid.current;
  me.where = where;
  Thread* next = next_thread();
  if (!next) fail_stuck();
  resume(me.fiber, *next);
}

void run_thread() {
  acquire(&grid.started);
  grid.body(grid.call);
  release(&grid.finished);
  Thread& me = *grid.current;
  grid.warps[me.warp].left |= 1u << me.lane;
  if (++grid.left == grid.size) switch_fibers(me.fiber, grid.launcher, true);
  Thread* next = next_thread();
  if (!next) fail_stuck();
  resume(me.fiber, *next, true);
}

void run_block(const uint3& index) {
  here.block = index;
  grid.at_barrier = grid.left = 0;
  grid.warps.assign((grid.size + kLanes - 1) / kLanes, {});
  grid.shared = static_cast<unsigned char*>(operator new(grid.shared_bytes, std::align_val_t(128)));
  std::memset(grid.shared, 0xFF, grid.shared_bytes);
#if defined(SEPCONV_CUDA_HOST_THREAD)
  // Never the same address twice: the barriers of one block say nothing about another block. Two in turn: who
  // leaves a barrier late knows nothing of those who already wait at the next.
  grid.barrier_tokens = new char[16];
#endif
  const dim3 size = here.block_size;
  for (int i = 0; i < grid.size; ++i) {
    Thread& thread = grid.threads[i];
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    thread.warp = i / kLanes;
    thread.lane = i % kLanes;
    thread.copies.clear();
    thread.group_ends.clear();
    thread.copies_done = thread.groups_done = 0;
    Warp& warp = grid.warps[thread.warp];
    warp.lanes = warp.ready |= 1u << thread.lane;
    thread.fiber.start(&run_thread);
  }
  release(&grid.started);
  resume(grid.launcher, *next_thread());
  operator delete(grid.shared, std::align_val_t(128));
  count_block();
  if (!grid.error.empty()) throw std::runtime_error(std::exchange(grid.error, {}));
}

}  // namespace

void fail(const char* what, const Position& where) {
  const auto [x, y, z] = here.thread;
  const auto [block_x, block_y, block_z] = here.block;
  char place[160];
  std::snprintf(place, sizeof place, " (thread %u,%u,%u of block %u,%u,%u)", x, y, z, block_x, block_y,
                block_z);
  grid.error = std::string("cuda_host: ") + what + ", at " + where.file_name() + ":" +
               std::to_string(where.line()) + " in " + where.function_name() + place;
  switch_fibers(grid.current->fiber, grid.launcher, true);
  __builtin_unreachable();
}

unsigned char* shared_memory(size_t bytes, const Position& where) {
  if (bytes > grid.shared_bytes) fail("the launch has less shared memory than the kernel uses", where);
  return grid.shared;
}

void synchronize(const Position& where) {
  Thread& me = *grid.current;
  if (grid.left > 0) fail("a barrier that some threads of the block have left behind", where);
  for (const Warp& warp : grid.warps)
    if (grid.at_barrier > 0 && warp.at_barrier) {
      const int lane = std::countr_zero(warp.at_barrier);
      if (!same(grid.threads[(&warp - grid.warps.data()) * kLanes + lane].where, where))
        fail("a barrier, while other threads of the block wait at another one", where);
      break;
    }
  char* token = grid.barrier_tokens + (grid.barriers & 1) * 8;
  release(token);
  grid.warps[me.warp].at_barrier |= 1u << me.lane;
  ++grid.at_barrier;
  wait(where);
  acquire(token);
}

const Arguments& collective(void* mine, void (*combine)(const Arguments&), const Position& where) {
  Thread& me = *grid.current;
  Warp& warp = grid.warps[me.warp];
  if (warp.lanes != ~0u || warp.left) fail("a collective of a warp that lacks some of its lanes", where);
  if (warp.in_collective && (warp.combine != combine || !same(warp.where, where)))
    fail("a collective, while other lanes of the warp are in another one", where);
  Arguments& arguments = warp.arguments[warp.collectives & 1];
  arguments[me.lane] = mine;
  warp.combine = combine;
  warp.where = where;
  warp.in_collective |= 1u << me.lane;
  if (warp.in_collective == warp.lanes) {
    if (combine) {
      const Unwatched own;  // copies of the library's, which TSan would see
      combine(arguments);
    }
    ++warp.collectives;
    warp.ready = std::exchange(warp.in_collective, 0) & ~(1u << me.lane);
  } else {
    wait(where);
  }
  return arguments;
}

void start_copy(const Copy& copy, const Position& where) {
  if (copy.to < grid.shared || copy.to + 16 > grid.shared + grid.shared_bytes)
    fail("a copy to outside of the shared memory", where);
  if (reinterpret_cast<uintptr_t>(copy.to) % 16 || reinterpret_cast<uintptr_t>(copy.from) % 16)
    fail("a copy between addresses that are no multiples of 16", where);
  const Unwatched growth;
  grid.current->copies.push_back(copy);
}

void commit_copies() {
  const Unwatched growth;
  grid.current->group_ends.push_back(grid.current->copies.size());
}

Copies finished_copies(int pending) {
  Thread& me = *grid.current;
  const size_t groups = me.group_ends.size();
  const size_t done = groups > static_cast<size_t>(pending) ? groups - pending : 0;
  if (done <= me.groups_done) return {nullptr, 0};
  me.groups_done = done;
  const size_t first = std::exchange(me.copies_done, me.group_ends[done - 1]);
  return {me.copies.data() + first, me.copies_done - first};
}

void run_grid(const void* kernel, dim3 grid_size, dim3 block_size, size_t shared_bytes,
              void (*body)(const void*), const void* call) {
  if (!can_launch(kernel, grid_size, block_size, shared_bytes)) return;
  static std::mutex one_grid;
  const std::lock_guard lock(one_grid);
  const Unwatched own;
  grid.body = body;
  grid.call = call;
  grid.schedule = Schedule::from_environment();
  grid.launcher.adopt();
  grid.size = static_cast<int>(block_size.x * block_size.y * block_size.z);
  grid.shared_bytes = shared_bytes;
  while (grid.threads.size() < static_cast<size_t>(grid.size)) grid.threads.emplace_back();
  here.block_size = block_size;
  here.grid_size = grid_size;
  const int64_t plane = int64_t{grid_size.x} * grid_size.y, blocks = plane * grid_size.z;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t block = grid.schedule.block(i, blocks);
    run_block({static_cast<unsigned>(block % grid_size.x), static_cast<unsigned>(block % plane / grid_size.x),
               static_cast<unsigned>(block / plane)});
  }
  acquire(&grid.finished);
}

}  // namespace sepconv::cuda_host
