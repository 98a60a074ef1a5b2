// The core owns no threads: whoever calls it (torch, the edge runtime, a test) lends its own.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

namespace sepconv {

// A non-owning reference to a callable: two pointers, no allocation. The callable must outlive it.
template <class Signature>
class FunctionRef;
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& f)  // NOLINT: implicit on purpose, as std::function_ref
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  Result operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  Result (*call_)(void*, Args...);
};

// Runs body(begin, end) over disjoint ranges that cover [0, count), on any number of threads.
using RangeBody = FunctionRef<void(int64_t begin, int64_t end)>;

struct Parallel {
  int threads = 1;  // how many may run at once; plans may use it, results never depend on it
  void (*run)(int64_t count, RangeBody body) = [](int64_t count, RangeBody body) {
    if (count > 0) body(0, count);
  };
};

}  // namespace sepconv
