// Segments of an axis against a brute-force walk over all (output, tap) pairs.
#include <cstdint>
#include <cstdio>
#include <set>
#include <tuple>

#include "core/axis.h"

using namespace sepconv;

namespace {

using Contact = std::tuple<int64_t, int64_t, int64_t>;  // position, kernel index, source

std::set<Contact> expected(const Axis& a, Direction direction) {
  std::set<Contact> contacts;
  for (int64_t o = 0; o < a.output; ++o)
    for (int64_t k = 0; k < a.kernel; ++k) {
      const int64_t i = o * a.stride - a.padding + k * a.dilation;
      if (i < 0 || i >= a.input) continue;
      contacts.insert(direction == Direction::kForward ? Contact{o, k, i} : Contact{i, k, o});
    }
  return contacts;
}

// Empty on success, else what is wrong.
const char* check(const Axis& a, Direction direction) {
  const int64_t positions = direction == Direction::kForward ? a.output : a.input;
  std::set<Contact> contacts;
  std::multiset<int64_t> covered;
  for (const Segment& s : segments_of(a, direction))
    for (int64_t j = 0; j < s.count; ++j) {
      const int64_t at = s.begin + j * s.step;
      covered.insert(at);
      int64_t previous = -1;
      for (const Tap& tap : s.taps) {
        const int64_t source = tap.source + j * s.source_step;
        if (source <= previous) return "taps are not in ascending order of source";
        previous = source;
        contacts.insert({at, tap.kernel_index, source});
      }
    }
  if (contacts != expected(a, direction)) return "taps differ from the definition";
  for (int64_t at = 0; at < positions; ++at)
    if (covered.count(at) != 1) return "a position is not covered exactly once";
  return static_cast<int64_t>(covered.size()) == positions ? nullptr : "positions outside the axis";
}

}  // namespace

int main() {
  int64_t cases = 0;
  for (int64_t input = 1; input <= 12; ++input)
    for (int64_t kernel = 1; kernel <= 7; ++kernel)
      for (int64_t stride = 1; stride <= 4; ++stride)
        for (int64_t padding = 0; padding <= 6; ++padding)
          for (int64_t dilation = 1; dilation <= 3; ++dilation) {
            const Window window{{kernel, 1}, {stride, 1}, {padding, 0}, {dilation, 1}};
            if (input + 2 * padding < dilation * (kernel - 1) + 1) continue;
            const Axis axis = axis_of(window, 0, input, output_size(input, window, 0));
            for (Direction direction : {Direction::kForward, Direction::kBackward}) {
              ++cases;
              if (const char* wrong = check(axis, direction)) {
                std::printf("%s: input %ld kernel %ld stride %ld padding %ld dilation %ld %s\n", wrong,
                            static_cast<long>(input), static_cast<long>(kernel), static_cast<long>(stride),
                            static_cast<long>(padding), static_cast<long>(dilation),
                            direction == Direction::kForward ? "forward" : "backward");
                return 1;
              }
            }
          }
  std::printf("%ld axes, each position covered once by the taps of the definition\n",
              static_cast<long>(cases));
  return 0;
}
