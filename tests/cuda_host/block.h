// A grid of CUDA threads, each of them a fiber, its blocks one after another: who runs next, barriers, shared
// memory, copies under way.
//
// SEPCONV_CUDA_HOST_SCHEDULE says whose turn it is: `forward` (the first thread that can run), `reverse` (the
// last) or `random:SEED`. All three let a warp run ahead of the others as far as it can, each another one.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sepconv::cuda_host {

using Position = std::source_location;

// 16 bytes under way to shared memory.
struct Copy {
  unsigned char* to;
  const unsigned char* from;  // null: zeros
};

// What the running thread may ask of itself and its block.
struct ThreadIndex {
  uint3 thread{}, block{};
  dim3 block_size, grid_size;
  int lane = 0;
};
extern ThreadIndex here;

// Ends the launch, which throws std::runtime_error with the position in the kernel's source.
[[noreturn]] void fail(const char* what, const Position& where);

// The block's shared memory, filled with NaN bytes when the block begins; at least `bytes` were launched
// with.
unsigned char* shared_memory(size_t bytes, const Position& where);

// All threads of the block wait here for each other.
void synchronize(const Position& where);

// All lanes of the warp meet here: the last to arrive runs `combine` on what the lanes brought. Returns these
// arguments, which stay until the lane's next collective.
using Arguments = void* [32];
const Arguments& collective(void* mine, void (*combine)(const Arguments& lanes), const Position& where);

// Copies of the running thread. Those of older groups than the latest `pending` are handed over to be done.
struct Copies {
  const Copy* first;
  size_t count;
};
void start_copy(const Copy& copy, const Position& where);
void commit_copies();
Copies finished_copies(int pending);

// Runs body(call) for every thread of the grid, or leaves an error for cudaGetLastError.
void run_grid(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*),
              const void* call);

#if defined(SEPCONV_CUDA_HOST_PTX)
// The kernel's symbol is that of its translation from PTX, which takes parameters as they lie in memory, each
// at a multiple of its alignment.
template <class... Parameters, class... Values>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Values&&... values) {
  struct Call {
    void (*translated)(const unsigned char*);
    alignas(16) unsigned char parameters[((sizeof(Parameters) + alignof(Parameters)) + ...)];
  } call;
  call.translated = reinterpret_cast<void (*)(const unsigned char*)>(kernel);
  size_t end = 0;
  const auto append = [&]<class T>(const T& value) {
    end = (end + alignof(T) - 1) / alignof(T) * alignof(T);
    std::memcpy(call.parameters + end, &value, sizeof(T));
    end += sizeof(T);
  };
  (append(static_cast<std::remove_cv_t<Parameters>>(std::forward<Values>(values))), ...);
  run_grid(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [](const void* erased) {
        const auto& own = *static_cast<const Call*>(erased);
        own.translated(own.parameters);
      },
      &call);
}
#else
template <class... Parameters, class... Values>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Values&&... values) {
  // Arguments are converted once, as a launch does, and copied for every thread.
  using Call = std::pair<void (*)(Parameters...), std::tuple<std::remove_cv_t<Parameters>...>>;
  const Call call(kernel, {std::forward<Values>(values)...});
  run_grid(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [](const void* erased) {
        const auto& [function, parameters] = *static_cast<const Call*>(erased);
        std::apply(function, parameters);
      },
      &call);
}
#endif

}  // namespace sepconv::cuda_host
