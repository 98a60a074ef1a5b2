#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace sepconv {
namespace {

constexpr Isa kAll[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kNeon};

bool supported(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return true;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
#endif
    default:
      return false;
  }
}

Isa strongest() {
  return available_isas().back();
}

// SEPCONV_CPU_CAPABILITY is a cap, not a demand: a machine that lacks the named level uses its strongest one
// below it.
Isa initial_isa() {
  const char* cap = std::getenv("SEPCONV_CPU_CAPABILITY");
  Isa limit;
  if (cap == nullptr || *cap == '\0') return strongest();
  if (!parse_isa(cap, limit))
    throw std::runtime_error(
        std::string("SEPCONV_CPU_CAPABILITY must be scalar, avx2, avx512 or neon, got '") + cap + "'");
  Isa chosen = Isa::kScalar;
  for (Isa isa : available_isas())
    if (isa <= limit) chosen = isa;
  return chosen;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
    default:
      return "scalar";
  }
}

bool parse_isa(const std::string& name, Isa& isa) {
  for (Isa candidate : kAll)
    if (name == name_of(candidate)) {
      isa = candidate;
      return true;
    }
  return false;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAll)
    if (supported(isa)) isas.push_back(isa);
  return isas;
}

Isa current_isa() {
  return current().load(std::memory_order_relaxed);
}

void set_isa(Isa isa) {
  if (!supported(isa))
    throw std::runtime_error(std::string("set_cpu_capability: this CPU or build has no ") + name_of(isa) +
                             " kernels");
  current().store(isa, std::memory_order_relaxed);
}

}  // namespace sepconv
