// Counts what a thread allocates while it is being watched: malloc and its relatives, and with them operator
// new. For one source file of a program. Sanitizers bring a malloc of their own: kCountsAllocations is false
// there.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
inline constexpr bool kCountsAllocations = true;
#else
inline constexpr bool kCountsAllocations = false;
#endif

inline thread_local bool watched = false;
inline thread_local bool out_of_memory = false;  // lets every malloc of this thread fail
inline std::atomic<int64_t> allocations{0};

// Watches this thread, or looks away, for as long as it lives.
class Watch {
 public:
  explicit Watch(bool on) : before_(watched) { watched = on; }
  ~Watch() { watched = before_; }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  bool before_;
};

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* data, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  allocations += watched;
  return out_of_memory ? nullptr : __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  allocations += watched;
  return __libc_calloc(count, size);
}
void* realloc(void* data, size_t size) {
  allocations += watched;
  return __libc_realloc(data, size);
}
void* memalign(size_t alignment, size_t size) {
  allocations += watched;
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  allocations += watched;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** data, size_t alignment, size_t size) {
  allocations += watched;
  *data = __libc_memalign(alignment, size);
  return *data == nullptr ? 12 : 0;  // ENOMEM
}
}
#endif
