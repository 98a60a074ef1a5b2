// Large results in huge pages, where Linux leaves the choice to programs: memory that is fresh at every call,
// as malloc's is from 32 MiB on, then costs one page fault for 2 MiB instead of 512.
#pragma once
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sepconv::binding {

inline constexpr int64_t kHugePage = 2 << 20;
inline constexpr int64_t kLeastInHugePages = 2 * kHugePage;  // so that a whole page lies inside

inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kLeastInHugePages) return;
  constexpr auto kPage = static_cast<uintptr_t>(kHugePage);
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  // Advice only: where it is refused, small pages serve.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace sepconv::binding
