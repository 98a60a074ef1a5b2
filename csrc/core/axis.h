// One axis of a convolution: which kernel taps connect which output and input positions.
// The forward reads inputs for an output position; the input gradient reads outputs for an input position.
// Both come as segments of positions that share their taps, so that one depthwise kernel serves every size,
// stride, padding, dilation and both directions, and no border needs code of its own.
#pragma once
#include <cstdint>

#include "core/params.h"
#include "core/scratch.h"

namespace sepconv {

struct Tap {
  int64_t kernel_index;
  int64_t source;  // position read
};

struct Axis {
  int64_t input, output, kernel, stride, padding, dilation;
};

inline Axis axis_of(const Window& w, int axis, int64_t input, int64_t output) {
  return {input, output, w.kernel[axis], w.stride[axis], w.padding[axis], w.dilation[axis]};
}

enum class Direction { kForward, kBackward };

// The taps that reach position `at`, in ascending order of source. Appends to `taps`, which it clears first.
inline void taps_at(const Axis& a, Direction direction, int64_t at, ScratchVector<Tap>& taps) {
  taps.clear();
  if (direction == Direction::kForward) {
    for (int64_t k = 0; k < a.kernel; ++k) {
      const int64_t source = at * a.stride - a.padding + k * a.dilation;
      if (source >= 0 && source < a.input) taps.push_back({k, source});
    }
  } else {
    for (int64_t k = a.kernel - 1; k >= 0; --k) {
      const int64_t scaled = at + a.padding - k * a.dilation;
      if (scaled >= 0 && scaled % a.stride == 0 && scaled / a.stride < a.output)
        taps.push_back({k, scaled / a.stride});
    }
  }
}

// Positions begin, begin + step, ... (count of them); position number j reads tap.source + j * source_step.
struct Segment {
  int64_t begin, step, count, source_step;
  ScratchVector<Tap> taps;
};

inline ScratchVector<Segment> segments_of(const Axis& a, Direction direction) {
  // Backward, positions of the same residue modulo the stride see the same taps: one lane of segments for
  // each residue.
  const bool forward = direction == Direction::kForward;
  const int64_t positions = forward ? a.output : a.input;
  const int64_t step = forward ? 1 : a.stride;
  const int64_t source_step = forward ? a.stride : 1;
  ScratchVector<Segment> segments;
  ScratchVector<Tap> taps;
  for (int64_t lane = 0; lane < step && lane < positions; ++lane) {
    Segment* open = nullptr;
    for (int64_t at = lane; at < positions; at += step) {
      taps_at(a, direction, at, taps);
      bool continues = open != nullptr && taps.size() == open->taps.size();
      for (size_t t = 0; continues && t < taps.size(); ++t)
        continues = taps[t].kernel_index == open->taps[t].kernel_index &&
                    taps[t].source == open->taps[t].source + open->count * source_step;
      if (continues) {
        ++open->count;
      } else {
        segments.push_back({at, step, 1, source_step, taps});
        open = &segments.back();
      }
    }
  }
  return segments;
}

}  // namespace sepconv
