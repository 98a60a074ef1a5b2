// What a caller may get wrong, said before any kernel runs: "function: argument must be ..., got ...".
// Nothing is thrown and nothing allocated: the first failure is kept, for sepconv_last_error().
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>

#include "core/params.h"
#include "include/sepconv.h"

namespace sepconv::capi {

// Of an enumerator that a C program may have set to anything: reading it as one is undefined in C++.
template <class Enumerator>
int number(const Enumerator& from) {
  static_assert(sizeof(from) == sizeof(int));
  int value;
  std::memcpy(&value, &from, sizeof(value));
  return value;
}

class Checks {
 public:
  explicit Checks(const char* function) : function_(function) {}

  sepconv_status status() const { return status_; }
  bool passed() const { return status_ == SEPCONV_OK; }

  // Whether `holds`; if not, and it is the first failure, the status and the message.
  [[gnu::format(printf, 4, 5)]] bool require(bool holds, sepconv_status otherwise, const char* format, ...);

  bool not_null(const char* name, const void* pointer) {
    return require(pointer != nullptr, SEPCONV_INVALID_ARGUMENT, "%s must not be null", name);
  }
  // A pointer that the plan says is, or is not, part of the call: silently dropping a bias would be worse.
  bool matches_plan(const char* name, const void* pointer, bool wanted) {
    return require((pointer != nullptr) == wanted, SEPCONV_INVALID_ARGUMENT,
                   wanted ? "%s must not be null: the plan has it" : "%s must be null: the plan has none",
                   name);
  }
  bool between(const char* name, int64_t value, int64_t least, int64_t most);
  bool at_least(const char* name, int64_t value, int64_t least);
  bool flag(const char* name, int value) { return between(name, value, 0, 1); }

  bool dtype(const sepconv_dtype& value);  // also that this build has it, as the next
  bool backward();
  bool layout(const sepconv_layout& value) { return between("layout", number(value), 0, SEPCONV_NCHW); }
  bool window(const sepconv_window& window);
  bool stage(const char* name, const sepconv_stage& stage);

  bool shift_only(const char* name, const sepconv_stage& stage);  // as a backward wants it
  bool vectors(const char* name, const sepconv_stage& stage, const void* scale, const void* shift);

  // Sizes of a convolution, and the (height, width) that it gives.
  struct Images {
    DType dtype;
    int64_t batch, channels, depth, out_channels;  // depth: of the product that gives an output pixel
    int64_t height, rows, width;                   // rows: of the input after its average
  };
  bool images(const Images& of, const Window& window, int64_t (&output)[2]);

  // That a dense tensor of these sizes can be. The limit leaves room for what kernels add to sizes.
  bool countable(const char* name, const int64_t (&sizes)[4], DType dtype);

 private:
  const char* function_;
  sepconv_status status_ = SEPCONV_OK;
};

// Runs `body`, which does what `checks` are about, and turns what it may throw into a status. The core throws
// std::runtime_error for what its caller, or the environment, got wrong.
template <class Body>
sepconv_status guarded(Checks& checks, Body&& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    checks.require(false, SEPCONV_OUT_OF_MEMORY, "there is not enough memory");
  } catch (const std::runtime_error& error) {
    checks.require(false, SEPCONV_INVALID_ARGUMENT, "%s", error.what());
  } catch (...) {
    checks.require(false, SEPCONV_INTERNAL_ERROR, "an unknown exception");
  }
  return checks.status();
}

const char* last_error();  // of this thread

}  // namespace sepconv::capi
