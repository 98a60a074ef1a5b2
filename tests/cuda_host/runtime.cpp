#include "runtime.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

namespace sepconv::cuda_host {
namespace {

// An H100.
constexpr int kSharedBytes = 48 << 10, kSharedBytesOptin = 227 << 10, kMultiprocessors = 132;

std::mutex mutex;
std::map<const void*, int> shared_bytes_allowed;  // by kernel
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t leave(cudaError_t error) {
  return last_error = error;
}

}  // namespace

bool can_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const bool is_grid =
      grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x < 1u << 31 && grid.y < 1u << 16 && grid.z < 1u << 16;
  const bool is_block = block.x > 0 && block.y > 0 && block.z > 0 && block.x <= 1024 && block.y <= 1024 &&
                        block.z <= 64 && block.x * block.y * block.z <= 1024;
  const std::lock_guard lock(mutex);
  const auto allowed = shared_bytes_allowed.find(kernel);
  const size_t most = allowed == shared_bytes_allowed.end() ? kSharedBytes : allowed->second;
  if (!is_grid || !is_block) leave(cudaErrorInvalidConfiguration);
  if (shared_bytes > most) leave(cudaErrorInvalidValue);
  return is_grid && is_block && shared_bytes <= most;
}

}  // namespace sepconv::cuda_host

using namespace sepconv::cuda_host;

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidValue:
      return "invalid argument";
    default:
      return "an error that cuda_host does not name";
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > kSharedBytesOptin) return leave(cudaErrorInvalidValue);
  const std::lock_guard lock(mutex);
  shared_bytes_allowed[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = kSharedBytes;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedBytesOptin;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kSharedBytesOptin + 1024;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return leave(cudaErrorInvalidValue);
  }
}
