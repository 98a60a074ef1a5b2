// What launching a kernel takes and says, for plain C++: no CUDA header.
#pragma once

namespace sepconv::cuda {

using Stream = void*;  // a cudaStream_t of the current device

// The current device, as launchers plan for it.
struct Device {
  int multiprocessors;
  int shared_bytes;  // that one block may have
};
Device current_device();

// Throws std::runtime_error when the launch before it was refused. `kernel` is named in the message.
void check_launch(const char* kernel);

}  // namespace sepconv::cuda
