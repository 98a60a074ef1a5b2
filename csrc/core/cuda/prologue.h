// A stage before a kernel's input, as launchers hand it over: core/params.h's ChannelStage in the kernels'
// terms.
#pragma once
#include <limits>
#include <stdexcept>

#include "core/params.h"

namespace sepconv::cuda {

// What an activation leaves of its input; NaN where there is no bound.
template <class C>
struct Bounds {
  C least, most;
};

template <class C>
struct PrologueArguments {
  const C *scale, *shift;  // null: 1 and 0
  Bounds<C> bounds;
};

template <class C>
Bounds<C> bounds_of(Activation activation) {
  constexpr C kNone = std::numeric_limits<C>::quiet_NaN();
  switch (activation) {
    case Activation::kNone:
      return {kNone, kNone};
    case Activation::kRelu:
      return {0, kNone};
    case Activation::kRelu6:
      return {0, 6};
    default:
      throw std::runtime_error("sepconv: CUDA kernels know the activations none, ReLU and ReLU6");
  }
}

// Vectors of the compute type.
template <class C>
PrologueArguments<C> prologue_arguments(const ChannelStage& stage) {
  return {static_cast<const C*>(stage.scale), static_cast<const C*>(stage.shift),
          bounds_of<C>(stage.activation)};
}

inline bool is_identity(const ChannelStage& stage) {
  return stage.scale == nullptr && stage.shift == nullptr && stage.activation == Activation::kNone;
}

}  // namespace sepconv::cuda
