// Storage types of tensors and the type each is computed in.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sepconv {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Storage only: every kernel widens them to float on load and rounds once on store.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

namespace detail {
template <class Storage>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
}  // namespace detail

template <class Storage>
using Compute = typename detail::ComputeOf<Storage>::Type;

inline size_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

}  // namespace sepconv
