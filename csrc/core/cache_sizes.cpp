#include "core/cache_sizes.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <string_view>

namespace sepconv {

namespace {

// What the kernel says of cache `index` of the first core: an attribute's text, without its end of line.
// Through system calls alone, since no call of the library may allocate.
class Attribute {
 public:
  Attribute(int index, const char* name) {
    std::array<char, 80> path;
    std::snprintf(path.data(), path.size(), "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
    const int file = open(path.data(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    const ssize_t read_bytes = read(file, text_.data(), text_.size());
    close(file);
    if (read_bytes > 0) length_ = static_cast<size_t>(read_bytes);
    if (length_ > 0 && text_[length_ - 1] == '\n') --length_;
  }
  std::string_view text() const { return {text_.data(), length_}; }
  // "32768K" in bytes, "3" as it is; 0 where there is no number.
  int64_t number() const {
    int64_t value = 0;
    for (const char c : text()) {
      if (c == 'K') return value << 10;
      if (c == 'M') return value << 20;
      if (c < '0' || c > '9') return 0;
      value = value * 10 + (c - '0');
    }
    return value;
  }

 private:
  std::array<char, 32> text_;
  size_t length_ = 0;
};

CacheSizes found() {
  CacheSizes sizes;
#ifdef _SC_LEVEL2_CACHE_SIZE
  if (const long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE); l2 > 0) sizes.l2 = l2;
  if (const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE); l3 > 0) sizes.last_level = l3;
#endif
  // glibc may take the last level of a virtual machine for many times its size; Linux knows better.
  int64_t last = 0;
  for (int index = 0; index < 8; ++index) {
    const int64_t level = Attribute(index, "level").number(), bytes = Attribute(index, "size").number();
    if (level < 2 || bytes == 0 || Attribute(index, "type").text() == "Instruction") continue;
    if (level == 2) sizes.l2 = bytes;
    if (level > last) last = level, sizes.last_level = bytes;
  }
  return sizes;
}

CacheSizes& sizes() {
  static CacheSizes sizes = found();
  return sizes;
}

}  // namespace

const CacheSizes& cache_sizes() {
  return sizes();
}
void pretend_cache_sizes(const CacheSizes& pretended) {
  sizes() = pretended;
}

}  // namespace sepconv
