#include "torch/result_memory.h"

#include "torch/huge_pages.h"

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <list>
#include <mutex>
#include <new>
#include <string_view>

// torch has it from 2.11 on. Weak, so that the library loads beside 2.10 too, where the address is null.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                int64_t storage_offset, int32_t dtype, int32_t device_type, int32_t device_index,
                AtenTensorHandle* ret, int32_t layout, const uint8_t* opaque_metadata,
                int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace sepconv::binding {

#ifdef __linux__
namespace {

constexpr int64_t kLeast = 1 << 20;          // malloc keeps what is smaller
constexpr int64_t kMost = int64_t{1} << 47;  // no address space has more, and sums cannot overflow
constexpr int64_t kPage = 64 << 10;          // the largest small page of any architecture

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

struct Block {
  char* mapping;
  int64_t mapped;
  char* data;
  int64_t bytes;  // from `data` on
  std::list<Block>::iterator self;
};
using Blocks = std::list<Block>;

class ResultMemory {
 public:
  // Never destroyed: tensors may outlive every static object.
  static ResultMemory& shared() {
    static ResultMemory* const memory = [] {
      auto* made = new ResultMemory;
      // A child's tensors find the mutex free, whatever the other threads of its parent were doing.
      pthread_atfork([] { shared().lock_for_fork(); }, [] { shared().mutex_.unlock(); },
                     [] { shared().mutex_.unlock(); });
      return made;
    }();
    return *memory;
  }

  bool take(int64_t bytes, Blocks::iterator* taken) {
    const std::lock_guard lock(mutex_);
    bytes = round_up(bytes, kPage);
    auto block = best_fit(bytes);
    if (block == kept_.end()) {
      release_until(most(used_bytes_ + bytes) - used_bytes_ - bytes);
      if (!map(bytes) && (release_until(0), !map(bytes))) return false;
      block = std::prev(kept_.end());
    }
    used_.splice(used_.end(), kept_, block);
    kept_bytes_ -= block->bytes;
    used_bytes_ += block->bytes;
    peak_ = std::max(peak_, used_bytes_);
    *taken = block;
    return true;
  }

  void give_back(Blocks::iterator block) noexcept {
    const std::lock_guard lock(mutex_);
    kept_.splice(kept_.end(), used_, block);
    used_bytes_ -= block->bytes;
    kept_bytes_ += block->bytes;
  }

  void empty() {
    const std::lock_guard lock(mutex_);
    release_until(0);
    peak_ = used_bytes_;
  }

  int64_t reserved() {
    const std::lock_guard lock(mutex_);
    return used_bytes_ + kept_bytes_;
  }

 private:
  // What is kept would be copied page by page when parent or child writes to it, and stay with the child.
  void lock_for_fork() {
    mutex_.lock();
    release_until(0);
  }

  // In use and kept together. Half as much again as was ever in use at once: blocks fit results of about
  // their size only, and with less a training step takes fresh memory each time.
  int64_t most(int64_t used) const { return std::max(peak_, used) / 2 * 3; }

  Blocks::iterator best_fit(int64_t bytes) {
    auto best = kept_.end();
    for (auto i = kept_.begin(); i != kept_.end(); ++i)
      if (i->bytes >= bytes && i->bytes <= round_up(bytes + bytes / 4, kPage) &&
          (best == kept_.end() || i->bytes < best->bytes))
        best = i;
    return best;
  }

  // Those first that were given back first.
  void release_until(int64_t bytes) {
    while (!kept_.empty() && kept_bytes_ > bytes) {
      const Block& block = kept_.front();
      munmap(block.mapping, static_cast<size_t>(block.mapped));
      kept_bytes_ -= block.bytes;
      kept_.pop_front();
    }
  }

  // A new block, the last one of `kept_`.
  bool map(int64_t bytes) {
    const bool huge = bytes >= kLeastInHugePages;
    const int64_t mapped = huge ? bytes + kHugePage : bytes;
    void* mapping = mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return false;
    char* begin = static_cast<char*>(mapping);
    if (huge) {
      begin += round_up(reinterpret_cast<intptr_t>(begin), kHugePage) - reinterpret_cast<intptr_t>(begin);
      advise_huge_pages(begin, bytes);
    }
    try {
      kept_.push_back({static_cast<char*>(mapping), mapped, begin, bytes, {}});
      kept_.back().self = std::prev(kept_.end());
    } catch (const std::bad_alloc&) {
      munmap(mapping, static_cast<size_t>(mapped));
      return false;
    }
    kept_bytes_ += bytes;
    return true;
  }

  std::mutex mutex_;
  Blocks kept_, used_;
  int64_t kept_bytes_ = 0, used_bytes_ = 0;
  int64_t peak_ = 0;  // of used_bytes_, since empty()
};

}  // namespace

bool caches_memory() {
  static const bool caching = [] {
    const char* off = std::getenv("SEPCONV_NO_MEMORY_CACHING");
    return torch_from_blob != nullptr && (off == nullptr || std::string_view(off) != "1");
  }();
  return caching;
}

Tensor kept_result(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                   torch::headeronly::IntHeaderOnlyArrayRef strides, int32_t dtype, int64_t bytes) {
  if (bytes < kLeast || bytes > kMost || !caches_memory()) return {};
  auto& memory = ResultMemory::shared();
  Blocks::iterator block;
  if (!memory.take(bytes, &block)) return {};
  const auto give_back = [](void*, void* block) {
    ResultMemory::shared().give_back(static_cast<Block*>(block)->self);
  };
  constexpr int32_t kNoIndex = -1;
  AtenTensorHandle handle = nullptr;
  const auto status = torch_from_blob(block->data, static_cast<int64_t>(sizes.size()), sizes.data(),
                                      strides.data(), 0, dtype, aoti_torch_device_type_cpu(), kNoIndex,
                                      &handle, aoti_torch_layout_strided(), nullptr, 0, give_back, &*block);
  // Nothing says whether a call that failed gave the block back: one that it did not is lost.
  if (status != TORCH_SUCCESS) return {};
  return Tensor(handle);
}

void empty_cache() {
  ResultMemory::shared().empty();
}
int64_t memory_reserved() {
  return ResultMemory::shared().reserved();
}

#else

Tensor kept_result(torch::headeronly::IntHeaderOnlyArrayRef, torch::headeronly::IntHeaderOnlyArrayRef,
                   int32_t, int64_t) {
  return {};
}

void empty_cache() {}
int64_t memory_reserved() {
  return 0;
}
bool caches_memory() {
  return false;
}

#endif

}  // namespace sepconv::binding
