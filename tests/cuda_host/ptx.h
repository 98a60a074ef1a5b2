// What translated PTX (ptx.py) is made of, beside what device_host.h does for kernels compiled as C++.
#pragma once
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "accesses.h"
#include "core/cuda/device.cuh"

namespace sepconv::cuda_host::ptx {

using cuda_host::iteration;

// --- Registers ---

// What is in a register, as a type that an instruction takes it for: the same bits, or the low ones.
template <class To, class From>
To as(From from) {
  if constexpr (sizeof(To) == sizeof(From))
    return std::bit_cast<To>(from);
  else
    return static_cast<To>(from);
}

// A narrower result fills a register by its sign or with zeros.
template <class T, class Register>
void set(Register& to, T value) {
  to = as<Register>(value);
}

// Shifts by as many bits as there are, or more, leave zeros or the sign.
template <class T>
T shift_left(T value, uint32_t by) {
  using Bits = std::make_unsigned_t<T>;
  return by < 8 * sizeof(T) ? static_cast<T>(static_cast<Bits>(value) << by) : T{0};
}
template <class T>
T shift_right(T value, uint32_t by) {
  if (by < 8 * sizeof(T)) return static_cast<T>(value >> by);
  return value < 0 ? static_cast<T>(-1) : T{0};
}

// PTX leaves the quotient by zero open; here it ends the launch.
template <class T>
T divide(T dividend, T divisor, Position where = Position::current()) {
  if (divisor == 0) fail("a division by zero", where);
  return static_cast<T>(dividend / divisor);
}

// --- Memory ---

// The block's shared memory from `address` on, of which `bytes` are accessed.
inline unsigned char* shared_bytes(uint32_t address, int bytes, const Position& where) {
  if (address % static_cast<unsigned>(bytes)) fail("shared memory at no multiple of the access", where);
  return shared_memory(size_t{address} + static_cast<size_t>(bytes), where) + address;
}

template <class T, int kCount>
const T* load_shared(uint32_t address, Instruction instruction, Position where = Position::current()) {
  constexpr int kBytes = kCount * sizeof(T);
  count_access(instruction, Space::kShared, Access::kLoad, address, kBytes, where);
  return reinterpret_cast<const T*>(shared_bytes(address, kBytes, where));
}
template <class T, int kCount>
T* store_shared(uint32_t address, Instruction instruction, Position where = Position::current()) {
  constexpr int kBytes = kCount * sizeof(T);
  count_access(instruction, Space::kShared, Access::kStore, address, kBytes, where);
  return reinterpret_cast<T*>(shared_bytes(address, kBytes, where));
}

template <class T, int kCount>
T* global_bytes(uint64_t address, Access access, const Instruction& instruction, const Position& where) {
  constexpr int kBytes = kCount * sizeof(T);
  if (address % kBytes) fail("global memory at no multiple of the access", where);
  count_access(instruction, Space::kGlobal, access, address, kBytes, where);
  return reinterpret_cast<T*>(address);
}
template <class T, int kCount>
const T* load_global(uint64_t address, Instruction instruction, Position where = Position::current()) {
  return global_bytes<T, kCount>(address, Access::kLoad, instruction, where);
}
template <class T, int kCount>
T* store_global(uint64_t address, Instruction instruction, Position where = Position::current()) {
  return global_bytes<T, kCount>(address, Access::kStore, instruction, where);
}

// cp.async of 16 bytes, of which 16 or none are read.
inline void copy(uint32_t to, uint64_t from, uint32_t bytes_read, Instruction load, Instruction store,
                 Position where = Position::current()) {
  if (bytes_read != 0 && bytes_read != 16) fail("a copy of a part of 16 bytes", where);
  if (bytes_read != 0) count_access(load, Space::kGlobal, Access::kLoad, from, 16, where);
  count_access(store, Space::kShared, Access::kStore, to, 16, where);
  cuda::device::copy_async(shared_bytes(to, 16, where), reinterpret_cast<const void*>(from), bytes_read != 0,
                           where);
}

template <bool kTransposed>
void matrices(uint32_t (&r)[4], uint32_t address, Instruction instruction,
              Position where = Position::current()) {
  count_access(instruction, Space::kShared, Access::kLoad, address, 16, where);
  const void* row = shared_bytes(address, 16, where);
  if constexpr (kTransposed)
    cuda::device::load_matrices_transposed(r, row, where);
  else
    cuda::device::load_matrices(r, row, where);
}

// shfl.sync.down: the value of a lane further on, or the lane's own where that is not `within` the warp.
inline uint32_t shuffle_down(uint32_t value, uint32_t lanes, uint32_t clamp, uint32_t mask, bool& within,
                             Position where = Position::current()) {
  if (clamp != 31 || mask != ~uint32_t{0}) fail("a shuffle of a part of the warp", where);
  within = static_cast<uint32_t>(here.lane) + lanes < 32;
  return cuda::device::shuffle_down(value, static_cast<int>(lanes), where);
}

}  // namespace sepconv::cuda_host::ptx
