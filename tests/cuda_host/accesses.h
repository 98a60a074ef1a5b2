// Counts what the memory of a GPU has to do for the loads and stores of translated PTX (ptx.h): wavefronts of
// shared memory, which are more than needed where lanes of a warp meet in a bank, and sectors of global
// memory.
//
// Written to the file that SEPCONV_CUDA_HOST_COUNTS names, when the process ends; nothing is counted without.
#pragma once
#include <cstdint>

#include "block.h"

namespace sepconv::cuda_host {

// One instruction of one kernel, in one iteration of the loops around it: what the lanes of a warp do at once
// has both in common.
struct Instruction {
  const char* kernel;
  int number;
  uint64_t iteration = 0;
};

// Of the loops around an instruction, from the outermost.
template <class... Trips>
uint64_t iteration(Trips... trips) {
  uint64_t all = 0;
  ((all = all * 0x9E3779B97F4A7C15u + trips + 1), ...);
  return all;
}

enum class Space { kShared, kGlobal };
enum class Access { kLoad, kStore };

// The running thread accesses `bytes` at an address, which counts from the beginning of its space.
void count_access(const Instruction& instruction, Space space, Access access, uint64_t address, int bytes,
                  const Position& where);

// A block has ended.
void count_block();

}  // namespace sepconv::cuda_host
