// AMX-BF16 for a CPU without it: the compiler's intrinsics, the CPU's answer and the kernel's permission, by
// functions in C++. Included by force (-include) where core/isa.cpp and core/cpu/kernels_amx.cpp are compiled
// for a test; the rest of these kernels' instructions are those of AVX512-BF16 and run as they are.
#pragma once
#include <cpuid.h>
#include <immintrin.h>
#include <unistd.h>

#include <cstdint>
#include <thread>  // calls syscall too, and keeps the real one

namespace amx_host {

// As __get_cpuid_count, of a CPU that has what this one has, and AMX.
int cpuid(unsigned leaf, unsigned subleaf, unsigned* a, unsigned* b, unsigned* c, unsigned* d);
// As Linux, which lends tile registers to processes that ask for them.
long syscall(long number, long code, long argument);

// The tile registers of the calling thread. What a CPU would refuse ends the process, and so do three things
// that it would let pass: registers configured while they are in use, registers that a thread leaves in use,
// and a tile read before it was written.
void load_configuration(const void* memory);
void release();
void zero(int tile);
void load(int tile, const void* memory, int64_t stride);
void store(int tile, void* memory, int64_t stride);
void multiply_bfloat16(int sums, int left, int right);

int64_t products();  // so far, of all threads

}  // namespace amx_host

#define __get_cpuid_count amx_host::cpuid
#define syscall amx_host::syscall
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_host::load_configuration
#define _tile_release amx_host::release
#define _tile_zero amx_host::zero
#define _tile_loadd amx_host::load
#define _tile_stored amx_host::store
#define _tile_dpbf16ps amx_host::multiply_bfloat16
