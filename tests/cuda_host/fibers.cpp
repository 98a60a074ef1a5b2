#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

// build.py defines one of these for the build that it names.
#if defined(SEPCONV_CUDA_HOST_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(SEPCONV_CUDA_HOST_THREAD)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#if !defined(__x86_64__)
#error "sepconv_switch_stacks is written for x86-64 only"
#endif

// Saves what the ABI lets a callee keep, and its stack pointer in *save; goes on where `to` was saved.
extern "C" void sepconv_switch_stacks(void** save, void* to);
asm(R"(
.text
.hidden sepconv_switch_stacks
.globl sepconv_switch_stacks
.type sepconv_switch_stacks,@function
sepconv_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sepconv_switch_stacks, .-sepconv_switch_stacks
)");

namespace sepconv::cuda_host {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // instrumented frames are large; untouched pages cost nothing
constexpr int kSavedRegisters = 6;

Fiber* left;     // the fiber of the latest switch's origin,
Fiber* arrived;  // and of its destination

#if defined(SEPCONV_CUDA_HOST_THREAD)
// TSan gives the number of a destroyed fiber to a new one and then sees no race between the two: the numbers
// of the latest blocks are kept, as many as its table has room for.
constexpr size_t kFollowedAtOnce = 6000;
std::vector<void*> finished;

void retire(void* followed) {
  if (followed) finished.push_back(followed);
  if (finished.size() < kFollowedAtOnce) return;
  for (void* each : finished) __tsan_destroy_fiber(each);
  finished.clear();
}
#endif

}  // namespace

Fiber::~Fiber() {
  if (!stack_) return;
#if defined(SEPCONV_CUDA_HOST_THREAD)
  retire(followed_);
#endif
  munmap(stack_, kStackBytes);
}

void Fiber::start(void (*entry)()) {
#if defined(SEPCONV_CUDA_HOST_THREAD)
  // A fiber of the block before would bring that block's order along, and its frames would race with the new.
  retire(followed_);
  followed_ = __tsan_create_fiber(0);
  if (stack_) munmap(std::exchange(stack_, nullptr), kStackBytes);
#endif
  if (!stack_) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<unsigned char*>(memory);
    mprotect(stack_, 4096, PROT_NONE);  // a stack that overflows shall not run into the next one
  }
  stack_bottom_ = stack_;
  stack_size_ = kStackBytes;
  entry_ = entry;
  fake_stack_ = nullptr;
#if defined(SEPCONV_CUDA_HOST_ADDRESS)
  // Of a call that was abandoned.
  if (stack_pointer_) __asan_unpoison_memory_region(stack_ + 4096, kStackBytes - 4096);
#endif
  // As sepconv_switch_stacks leaves a stack: registers, then where to return to. At its entry a function
  // finds the stack pointer 8 bytes below a multiple of 16.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 1;
  *--top = reinterpret_cast<void*>(&Fiber::enter);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
}

void Fiber::adopt() {
#if defined(SEPCONV_CUDA_HOST_THREAD)
  followed_ = __tsan_get_current_fiber();
#endif
}

void Fiber::enter() {
#if defined(SEPCONV_CUDA_HOST_ADDRESS)
  __sanitizer_finish_switch_fiber(nullptr, &left->stack_bottom_, &left->stack_size_);
#endif
  arrived->entry_();
  std::abort();
}

void switch_fibers(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
  left = &from;
  arrived = &to;
#if defined(SEPCONV_CUDA_HOST_ADDRESS)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack_, to.stack_bottom_, to.stack_size_);
#elif defined(SEPCONV_CUDA_HOST_THREAD)
  __tsan_switch_to_fiber(to.followed_, __tsan_switch_to_fiber_no_sync);
#endif
  sepconv_switch_stacks(&from.stack_pointer_, to.stack_pointer_);
#if defined(SEPCONV_CUDA_HOST_ADDRESS)
  __sanitizer_finish_switch_fiber(from.fake_stack_, &left->stack_bottom_, &left->stack_size_);
#endif
}

#if defined(SEPCONV_CUDA_HOST_THREAD)
void release(void* token) {
  __tsan_release(token);
}
void acquire(void* token) {
  __tsan_acquire(token);
}
Unwatched::Unwatched() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
Unwatched::~Unwatched() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
#else
void release(void*) {}
void acquire(void*) {}
Unwatched::Unwatched() {}
Unwatched::~Unwatched() {}
#endif

}  // namespace sepconv::cuda_host
