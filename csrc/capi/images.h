// From descriptions to the core's parameters.
#pragma once
#include "capi/checks.h"
#include "core/params.h"
#include "core/scratch.h"
#include "include/sepconv.h"

namespace sepconv::capi {

// Stands for a tensor that a description has, where no data is there yet: never read.
inline void* announced(bool present) {
  return present ? reinterpret_cast<void*>(kScratchAlignment) : nullptr;
}

inline Image image_of(sepconv_layout layout, const void* data, int64_t n, int64_t c, int64_t h, int64_t w) {
  void* at = const_cast<void*>(data);  // the core never writes to its inputs
  if (layout == SEPCONV_NHWC) return {at, n, c, h, w, h * w * c, 1, w * c, c};
  return {at, n, c, h, w, c * h * w, h * w, w, 1};
}

inline sepconv_window plain_window() {
  return {{1, 1}, {1, 1}, {0, 0}, {1, 1}};
}
inline Window window_of(const sepconv_window& from) {
  Window window;
  for (int axis = 0; axis < 2; ++axis) {
    window.kernel[axis] = from.kernel[axis], window.stride[axis] = from.stride[axis];
    window.padding[axis] = from.padding[axis], window.dilation[axis] = from.dilation[axis];
  }
  return window;
}

inline void set_stage(ChannelStage& to, const sepconv_stage& stage, const void* scale, const void* shift) {
  to.scale = scale, to.shift = shift;
  to.activation = static_cast<Activation>(stage.activation);
  to.wide = stage.wide != 0;
}

inline bool empty(const sepconv_stage& stage) {
  return stage.has_scale == 0 && stage.has_shift == 0 && stage.activation == SEPCONV_NO_ACTIVATION;
}

}  // namespace sepconv::capi
