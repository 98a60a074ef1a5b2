// A caching allocator for large results on the CPU. Memory that malloc gives back to the system has to be
// zeroed by the system when it is taken again, which is a tenth of a training step and longer than a row
// average.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "torch/checks.h"

namespace sepconv::binding {

// An uninitialized tensor of `bytes` in kept memory. Undefined where torch's own allocator shall serve: small
// results, whose memory malloc keeps itself, and torch 2.10 or systems other than Linux.
Tensor kept_result(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                   torch::headeronly::IntHeaderOnlyArrayRef strides, int32_t dtype, int64_t bytes);

// Gives what no tensor uses back to the system.
void empty_cache();
// Bytes in use and kept.
int64_t memory_reserved();
// Whether large results are kept here at all.
bool caches_memory();

}  // namespace sepconv::binding
