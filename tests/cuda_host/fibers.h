// Stacks of execution that take turns on one OS thread, annotated so that sanitizers can follow.
//
// What a kernel does to memory stands in headers and is instrumented with the kernel; what the emulator does
// for itself stands in .cpp files, which build.py compiles without instrumentation: TSan would take it for
// races.
#pragma once
#include <cstddef>

namespace sepconv::cuda_host {

// The calling stack of the OS thread, or one of its own after start().
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber();

  // The next switch to this fiber calls `entry`, which must not return.
  void start(void (*entry)());
  // The fiber is the stack that calls this.
  void adopt();

  friend void switch_fibers(Fiber& from, Fiber& to, bool for_good);

 private:
  static void enter();

  void* stack_pointer_ = nullptr;
  unsigned char* stack_ = nullptr;
  void (*entry_)() = nullptr;
  // For sanitizers.
  void* fake_stack_ = nullptr;
  const void* stack_bottom_ = nullptr;
  size_t stack_size_ = 0;
  void* followed_ = nullptr;
};

// Goes on in `to` where it last left off; returns when someone switches back. `for_good`: nobody will.
void switch_fibers(Fiber& from, Fiber& to, bool for_good = false);

// Order between fibers that TSan shall know: whatever precedes a release of `token` precedes what follows an
// acquire of it. Nothing else orders two fibers, least of all the order in which they happen to run.
void release(void* token);
void acquire(void* token);

// TSan takes no notice of what the current fiber does while this lives.
class Unwatched {
 public:
  Unwatched();
  ~Unwatched();
};

}  // namespace sepconv::cuda_host
