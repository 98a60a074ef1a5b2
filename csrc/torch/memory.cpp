// The memory of large results on the CPU, seen and released from Python.
#include <torch/csrc/stable/library.h>

#include "torch/result_memory.h"

STABLE_TORCH_LIBRARY_IMPL(sepconv, CompositeExplicitAutograd, m) {
  m.impl("empty_cache", TORCH_BOX(&sepconv::binding::empty_cache));
  m.impl("memory_reserved", TORCH_BOX(&sepconv::binding::memory_reserved));
  m.impl("caches_memory", TORCH_BOX(&sepconv::binding::caches_memory));
}
