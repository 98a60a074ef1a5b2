// Packed weights of a separable convolution that outlive a call, and so say of themselves what they are: a
// call may get those of another instruction set, dtype or layer. What follows the first kPackedHeaderBytes is
// what pack_separable_conv2d wrote.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "core/isa.h"
#include "core/params.h"
#include "core/scratch.h"
#include "core/separable_conv2d.h"

namespace sepconv {

inline constexpr int64_t kPackedHeaderBytes = kScratchAlignment;  // so that what follows is aligned as well

struct PackedHeader {
  char magic[8] = {'s', 'e', 'p', 'c', 'o', 'n', 'v', '1'};
  int32_t isa = 0, dtype = 0;
  int64_t middle_channels = 0, out_channels = 0, kernel[2] = {0, 0};
  int64_t bytes = 0;  // of header and weights, a multiple of the alignment: packed weights may be stacked

  bool is_magic() const { return std::equal(std::begin(magic), std::end(magic), PackedHeader{}.magic); }
  bool same_weights(const PackedHeader& other) const {
    return middle_channels == other.middle_channels && out_channels == other.out_channels &&
           kernel[0] == other.kernel[0] && kernel[1] == other.kernel[1];
  }
};
static_assert(sizeof(PackedHeader) <= kPackedHeaderBytes);

// Of weights that are packed now; of `params`, dtype, window and channels are read.
inline PackedHeader packed_header_of(const SeparableConv2dParams& params) {
  PackedHeader header;
  header.isa = static_cast<int32_t>(current_isa());
  header.dtype = static_cast<int32_t>(params.dtype);
  header.middle_channels = params.input.c * params.depth_multiplier;
  header.out_channels = params.output.c;
  std::copy(std::begin(params.window.kernel), std::end(params.window.kernel), header.kernel);
  header.bytes =
      kPackedHeaderBytes +
      static_cast<int64_t>(scratch_bytes(static_cast<size_t>(packed_bytes_of_separable_conv2d(params))));
  return header;
}

// Into header.bytes bytes, aligned as scratch is.
inline void write_packed(const SeparableConv2dParams& params, const PackedHeader& header, void* packed) {
  char* to = static_cast<char*>(packed);
  std::memset(to, 0, static_cast<size_t>(header.bytes));  // what nothing fills is the same in every copy
  std::memcpy(to, &header, sizeof(header));
  pack_separable_conv2d(params, to + kPackedHeaderBytes);
}

inline const void* packed_values(const void* packed) {
  return static_cast<const char*>(packed) + kPackedHeaderBytes;
}

}  // namespace sepconv
