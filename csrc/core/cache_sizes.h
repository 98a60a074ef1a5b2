// The caches of this machine, for planners and for those who write past them.
#pragma once
#include <cstdint>

namespace sepconv {

struct CacheSizes {
  int64_t l2 = 1 << 20;           // bytes a core
  int64_t last_level = 32 << 20;  // bytes of the largest, shared or not
};
const CacheSizes& cache_sizes();                    // read once
void pretend_cache_sizes(const CacheSizes& sizes);  // for tests, while no call runs

// An output that would only push other data out of the caches is written past them.
inline bool bypasses_caches(int64_t bytes, const CacheSizes& cache) {
  return bytes > cache.last_level / 2;
}

}  // namespace sepconv
