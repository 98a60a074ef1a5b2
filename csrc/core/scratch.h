// Memory of a call that is no tensor. Without further ado it is thread-local and outlives calls, so that a
// call costs no page faults: it grows to the largest use and stays. A caller that owns all memory lends each
// thread an Arena instead, and then nothing is allocated.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace sepconv {

inline constexpr int64_t kScratchAlignment = 64;  // a cache line and the widest vector

inline size_t scratch_bytes(size_t bytes) {
  return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

// Lent memory, taken from front to back; once all of it came back it starts again at the front. One without
// memory only counts: a call under it finds out how much it takes (see Lending).
class Arena {
 public:
  Arena() = default;
  Arena(char* data, size_t size) : data_(data), size_(size) {}  // aligned to kScratchAlignment

  bool only_counts() const { return data_ == nullptr; }
  size_t most_used() const { return most_used_; }
  // Aligned to kScratchAlignment. Of an arena that only counts: an address that nobody may read or write.
  void* take(size_t bytes) {
    if (scratch_bytes(bytes) > size_ - used_) throw std::bad_alloc();
    char* taken = only_counts() ? reinterpret_cast<char*>(kScratchAlignment) : data_ + used_;
    used_ += scratch_bytes(bytes);
    most_used_ = std::max(most_used_, used_);
    ++parts_;
    return taken;
  }
  void give_back() {
    if (--parts_ == 0) used_ = 0;
  }

 private:
  char* data_ = nullptr;
  size_t size_ = SIZE_MAX;
  size_t used_ = 0, most_used_ = 0, parts_ = 0;
};

// What this thread was lent, or null.
inline Arena*& lent_arena() {
  static thread_local Arena* arena = nullptr;
  return arena;
}

// Lends `arena` to this thread, for as long as the object lives. Under an arena that only counts, a call does
// what it does before its first task, on memory that is not there: what writes to scratch then asks
// only_counts() first.
class Lending {
 public:
  explicit Lending(Arena& arena) : before_(std::exchange(lent_arena(), &arena)) {}
  ~Lending() { lent_arena() = before_; }
  Lending(const Lending&) = delete;
  Lending& operator=(const Lending&) = delete;

 private:
  Arena* before_;
};

// kCall: what all threads of a call share, owned by the calling thread. kTask: what one thread uses inside a
// task. The calling thread uses both at once, hence two.
enum class ScratchUse { kCall, kTask };

// Sizes first (add), pointers afterwards (get): one block for each use, never moved while it is in use.
class Scratch {
 public:
  explicit Scratch(ScratchUse use) : use_(use), lent_(lent_arena()) {}
  ~Scratch() {
    for (; taken_ > 0; --taken_) lent_->give_back();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool only_counts() const { return lent_ != nullptr && lent_->only_counts(); }

  // An index to ask get() for, once all sizes are known.
  template <class T>
  size_t add(int64_t count) {
    const size_t offset = size_, bytes = scratch_bytes(static_cast<size_t>(count) * sizeof(T));
    size_ += bytes;
    if (only_counts()) take(bytes);
    return offset;
  }
  template <class T>
  T* get(size_t offset) {
    if (base_ == nullptr) base_ = reserve();
    return reinterpret_cast<T*>(base_ + offset);
  }

 private:
  struct Block {
    char* data = nullptr;
    size_t size = 0;
    ~Block() { std::free(data); }
  };
  char* take(size_t bytes) {
    char* taken = static_cast<char*>(lent_->take(bytes));
    ++taken_;
    return taken;
  }
  char* reserve() {
    if (only_counts()) return reinterpret_cast<char*>(kScratchAlignment);  // counted by add()
    if (lent_ != nullptr) return take(size_);
    static thread_local Block blocks[2];
    Block& block = blocks[static_cast<int>(use_)];
    if (block.size < size_ || block.data == nullptr) {
      std::free(block.data);
      block.size = 0;
      block.data = static_cast<char*>(std::aligned_alloc(kScratchAlignment, size_ + kScratchAlignment));
      if (block.data == nullptr) throw std::bad_alloc();
      block.size = size_;
    }
    return block.data;
  }
  ScratchUse use_;
  Arena* lent_;
  size_t taken_ = 0;  // parts of the lent arena
  size_t size_ = 0;
  char* base_ = nullptr;
};

// For vectors of a call, which are small: from the lent arena, or else from the heap. What they hold is read
// and written under every arena; one that only counts counts them too.
template <class T>
class ScratchAllocator {
 public:
  using value_type = T;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;

  ScratchAllocator() : lent_(lent_arena()) {}
  template <class Other>
  ScratchAllocator(const ScratchAllocator<Other>& other) : lent_(other.lent_) {}  // NOLINT: as allocators do
  ScratchAllocator select_on_container_copy_construction() const { return {}; }

  T* allocate(size_t count) {
    if (lent_ == nullptr) return std::allocator<T>().allocate(count);
    void* taken = lent_->take(count * sizeof(T));
    return lent_->only_counts() ? std::allocator<T>().allocate(count) : static_cast<T*>(taken);
  }
  void deallocate(T* data, size_t count) {
    if (lent_ != nullptr) lent_->give_back();
    if (lent_ == nullptr || lent_->only_counts()) std::allocator<T>().deallocate(data, count);
  }
  template <class Other>
  bool operator==(const ScratchAllocator<Other>& other) const {
    return lent_ == other.lent_;
  }

 private:
  template <class Other>
  friend class ScratchAllocator;
  Arena* lent_;
};

// Lent memory does not come back before the call ends: what grows while tasks run reserves its size first.
template <class T>
using ScratchVector = std::vector<T, ScratchAllocator<T>>;

template <class T>
ScratchVector<T> reserved(int64_t count) {
  ScratchVector<T> vector;
  vector.reserve(static_cast<size_t>(count));
  return vector;
}

}  // namespace sepconv
