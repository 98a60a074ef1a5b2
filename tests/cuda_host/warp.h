// What the lanes of a warp do together: shuffles, loads of matrices, products on the tensor cores.
#pragma once
#include <cstdint>
#include <cstring>

#include "block.h"

namespace sepconv::cuda_host {

struct Shuffle {
  const void* value;
  void* result;
  int from;  // the lane whose value it takes
  size_t bytes;
};
void exchange(const Arguments& lanes);

// The value of lane `from`.
template <class T>
T shuffle(T value, int from, const Position& where) {
  T result = value;
  Shuffle mine{&value, &result, from, sizeof(T)};
  collective(&mine, &exchange, where);
  return result;
}

// Reads through the kernel's own, instrumented, code: each lane what its registers get.
template <bool kTransposed>
void load_matrices(uint32_t (&registers)[4], const void* row, const Position& where) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("a row of a matrix at no multiple of 16 bytes", where);
  const Arguments& rows = collective(const_cast<void*>(row), nullptr, where);
  const int group = here.lane / 4, pair = here.lane % 4 * 2;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](int r, int c) -> uint32_t {
      return static_cast<const uint16_t*>(rows[matrix * 8 + r])[c];
    };
    registers[matrix] = kTransposed ? element(pair, group) | element(pair + 1, group) << 16
                                    : element(group, pair) | element(group, pair + 1) << 16;
  }
}

// One lane's part of d += a * b, in the registers where the PTX ISA wants it.
struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};
void multiply_float16(const Arguments& lanes);
void multiply_bfloat16(const Arguments& lanes);
void multiply_tf32(const Arguments& lanes);

}  // namespace sepconv::cuda_host
