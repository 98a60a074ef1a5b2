// Thread-local memory that outlives calls, so that a call costs no page faults: it grows to the largest use
// and stays.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace sepconv {

inline constexpr int64_t kScratchAlignment = 64;  // a cache line and the widest vector

// kCall: what all threads of a call share, owned by the calling thread. kTask: what one thread uses inside a
// task. The calling thread uses both at once, hence two.
enum class ScratchUse { kCall, kTask };

// Sizes first (add), pointers afterwards (get): one block for each use, never moved while it is in use.
class Scratch {
 public:
  explicit Scratch(ScratchUse use) : use_(use) {}

  // An index to ask get() for, once all sizes are known.
  template <class T>
  size_t add(int64_t count) {
    const size_t offset = size_;
    size_ += (static_cast<size_t>(count) * sizeof(T) + kScratchAlignment - 1) / kScratchAlignment *
             kScratchAlignment;
    return offset;
  }
  template <class T>
  T* get(size_t offset) {
    if (base_ == nullptr) base_ = reserve();
    return reinterpret_cast<T*>(base_ + offset);
  }

 private:
  struct Arena {
    char* data = nullptr;
    size_t size = 0;
    ~Arena() { std::free(data); }
  };
  char* reserve() const {
    static thread_local Arena arenas[2];
    Arena& arena = arenas[static_cast<int>(use_)];
    if (arena.size < size_ || arena.data == nullptr) {
      std::free(arena.data);
      arena.size = 0;
      arena.data = static_cast<char*>(std::aligned_alloc(kScratchAlignment, size_ + kScratchAlignment));
      if (arena.data == nullptr) throw std::bad_alloc();
      arena.size = size_;
    }
    return arena.data;
  }
  ScratchUse use_;
  size_t size_ = 0;
  char* base_ = nullptr;
};

}  // namespace sepconv
