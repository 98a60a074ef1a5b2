// Every task runs exactly once, whatever the threads do: all at once, one after the other, one much slower.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "core/parallel.h"

using namespace sepconv;

namespace {

void require(bool holds, const char* what, int64_t a, int64_t b) {
  if (holds) return;
  std::printf("%s (%ld, %ld)\n", what, static_cast<long>(a), static_cast<long>(b));
  std::exit(1);
}

void at_once(int64_t count, RangeBody body) {
  std::vector<std::thread> workers;
  for (int64_t w = 0; w < count; ++w) workers.emplace_back([=] { body(w, w + 1); });
  for (std::thread& worker : workers) worker.join();
}
void in_line(int64_t count, RangeBody body) {  // as a nested region
  body(0, count);
}
void last_first(int64_t count, RangeBody body) {
  for (int64_t w = count - 1; w >= 0; --w) body(w, w + 1);
}

void require_each_once(const Parallel& parallel, int64_t count, bool backward, int slow_worker) {
  std::vector<std::atomic<int>> times(static_cast<size_t>(count));
  std::atomic<int> bodies{0};
  parallel.share(count, [&](Tasks& tasks) {
    ++bodies;
    for (int64_t task; backward ? tasks.previous(task) : tasks.next(task);) {
      require(task >= 0 && task < count, "no such task", task, count);
      ++times[static_cast<size_t>(task)];
      if (tasks.worker() == slow_worker) std::this_thread::yield();
    }
  });
  for (const std::atomic<int>& time : times) require(time == 1, "a task ran not once but", time, count);
  require(bodies == (count == 0 ? 0 : parallel.workers(count)), "so many workers", bodies, count);
}

// Tasks of a share come in order, those taken from others from their far end.
void require_order() {
  std::vector<int64_t> order;
  const Parallel two{2, in_line};
  two.share(6, [&](Tasks& tasks) {
    for (int64_t task; tasks.next(task);) order.push_back(task);
  });
  require(order == std::vector<int64_t>{0, 1, 2, 5, 4, 3}, "tasks in another order", order[3], order[5]);
  order.clear();
  two.share(6, [&](Tasks& tasks) {
    for (int64_t task; tasks.previous(task);) order.push_back(task);
  });
  require(order == std::vector<int64_t>{2, 1, 0, 3, 4, 5}, "tasks in another order backward", order[3],
          order[5]);
}

// What is written before open() is there for whoever takes a number.
void require_published() {
  constexpr int64_t kRounds = 2000, kNumbers = 8;
  SharedRange range;
  int64_t written = 0;
  std::atomic<int64_t> taken{0};
  std::atomic<bool> done{false};
  std::thread guest([&] {
    while (!done) {
      int64_t number;
      if (!range.take_last(number)) continue;
      require(written > 0 && number < kNumbers, "taken before it was written", written, number);
      ++taken;
    }
  });
  for (int64_t round = 0; round < kRounds; ++round) {
    written = round + 1;
    range.open(0, kNumbers);
    for (int64_t number; range.take_first(number);) ++taken;
    while (taken < (round + 1) * kNumbers) std::this_thread::yield();
  }
  done = true;
  guest.join();
  require(taken == kRounds * kNumbers, "numbers taken", taken, kRounds * kNumbers);
}

}  // namespace

int main() {
  for (auto run : {at_once, in_line, last_first})
    for (int threads : {1, 2, 3, 7})
      for (int64_t count : {0, 1, 2, 3, 7, 64, 1000, 100003})
        for (bool backward : {false, true})
          for (int slow_worker : {-1, 0, threads - 1})
            require_each_once({threads, run}, count, backward, slow_worker);
  require_each_once({}, 5, false, -1);
  require(Parallel{4}.workers(0) == 1, "workers where there is no task", 0, 1);
  require_order();
  require_published();
}
