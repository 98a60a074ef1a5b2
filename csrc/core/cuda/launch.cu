#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "core/cuda/launch.h"

namespace sepconv::cuda {

Device current_device() {
  int device = 0;
  Device found{};
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
          cudaSuccess)
    throw std::runtime_error("sepconv: the CUDA runtime tells nothing of the current device");
  return found;
}

void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("sepconv: the CUDA kernel ") + kernel +
                             " was not launched: " + cudaGetErrorString(error));
}

}  // namespace sepconv::cuda
