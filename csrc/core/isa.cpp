#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sepconv {
namespace {

constexpr Isa kAll[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512,  Isa::kAvx512Bf16,
                        Isa::kAmx,    Isa::kNeon, Isa::kNeonBf16};

// Three levels differ from the one below in their bfloat16 kernels alone.
#ifdef SEPCONV_WITHOUT_BFLOAT16
constexpr bool kHasBFloat16 = false;
#else
constexpr bool kHasBFloat16 = true;
#endif

#if defined(__x86_64__)
struct CpuId {
  unsigned a = 0, b = 0, c = 0, d = 0;
  CpuId(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

// The kernel lends the tile registers to processes that ask for them; all threads inherit the answer.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

#if defined(__aarch64__)
bool multiplies_bfloat16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which older headers do not name
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
#else
  return false;
#endif
}
#endif

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
    case Isa::kAvx512Bf16:
      return kHasBFloat16 && supported(Isa::kAvx512) && (CpuId(7, 1).a >> 5 & 1) != 0;
    case Isa::kAmx: {
      constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
      return supported(Isa::kAvx512Bf16) && (~CpuId(7, 0).d & (kAmxBf16 | kAmxTile)) == 0 && may_use_tiles();
    }
#endif
#if defined(__aarch64__)
    case Isa::kNeon:
      return true;
    case Isa::kNeonBf16:
      return kHasBFloat16 && multiplies_bfloat16();
#endif
    default:
      return false;
  }
}

Isa strongest() {
  const Isa isa = available_isas().back();
#if defined(__x86_64__)
  // Intel CPUs take four times as long for a product of pairs as for a multiply-add: without AMX no gain.
  if (isa == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512;
#endif
  return isa;
}

// SEPCONV_CPU_CAPABILITY is a cap, not a demand: a machine that lacks the named level uses its strongest one
// below it.
Isa initial_isa() {
  const char* cap = std::getenv("SEPCONV_CPU_CAPABILITY");
  Isa limit;
  if (cap == nullptr || *cap == '\0') return strongest();
  if (!parse_isa(cap, limit))
    throw std::runtime_error(
        "SEPCONV_CPU_CAPABILITY must be scalar, avx2, avx512, avx512_bf16, amx, neon or neon_bf16, got '" +
        std::string(cap) + "'");
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
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
    case Isa::kNeon:
      return "neon";
    case Isa::kNeonBf16:
      return "neon_bf16";
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
