// The instruction set of the CPU kernels, seen and set from Python, and how the library was built.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <string>

#include "core/isa.h"
#include "torch/checks.h"

#define SEPCONV_STRING_(x) #x
#define SEPCONV_STRING(x) SEPCONV_STRING_(x)

namespace sepconv::binding {
namespace {

std::string available_cpu_capabilities() {
  std::string names;
  for (const Isa isa : available_isas()) {
    if (!names.empty()) names += ',';
    names += name_of(isa);
  }
  return names;
}

std::string cpu_capability() {
  return name_of(current_isa());
}

void set_cpu_capability(std::string name) {
  Isa isa = Isa::kScalar;
  bool available = parse_isa(name, isa);
  if (available) {
    const auto all = available_isas();
    available = std::find(all.begin(), all.end(), isa) != all.end();
  }
  Checks("set_cpu_capability")
      .require(available, "name must be one of ", available_cpu_capabilities(), " on this machine, got '",
               name, "'");
  set_isa(isa);
}

std::string build_configuration() {
  return "compiler="
#if defined(__clang__)
         "Clang " __clang_version__
#elif defined(__GNUC__)
         "GCC " __VERSION__
#else
         "unknown"
#endif
         ";torch=" SEPCONV_STRING(TORCH_VERSION_MAJOR) "." SEPCONV_STRING(
             TORCH_VERSION_MINOR) "." SEPCONV_STRING(TORCH_VERSION_PATCH) ";cuda="
#ifdef USE_CUDA
      SEPCONV_STRING(SEPCONV_CUDA_VERSION)
#else
         "none"
#endif
          ;
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, CompositeExplicitAutograd, m) {
  m.impl("available_cpu_capabilities", TORCH_BOX(&sepconv::binding::available_cpu_capabilities));
  m.impl("cpu_capability", TORCH_BOX(&sepconv::binding::cpu_capability));
  m.impl("set_cpu_capability", TORCH_BOX(&sepconv::binding::set_cpu_capability));
  m.impl("build_configuration", TORCH_BOX(&sepconv::binding::build_configuration));
}
