// What the CUDA runtime answers in place of a driver and a device.
#pragma once
#include <vector_types.h>

#include <cstddef>

namespace sepconv::cuda_host {

// Whether a device would take the launch; if not, cudaGetLastError says why.
bool can_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes);

}  // namespace sepconv::cuda_host
