// The library itself: version, messages, instruction sets.
#include <algorithm>

#include "capi/checks.h"
#include "capi/workspace.h"
#include "core/isa.h"

using namespace sepconv;
using namespace sepconv::capi;

const char* sepconv_version(void) {
  return SEPCONV_VERSION;
}

int sepconv_has_openmp(void) {
  return has_openmp();
}

const char* sepconv_last_error(void) {
  return last_error();
}

const char* sepconv_cpu_capability(void) {
  Checks checks("sepconv_cpu_capability");
  const char* name = "";
  guarded(checks, [&] { name = name_of(current_isa()); });
  return name;
}

sepconv_status sepconv_set_cpu_capability(const char* name) {
  Checks checks("sepconv_set_cpu_capability");
  if (!checks.not_null("name", name)) return checks.status();
  return guarded(checks, [&] {
    Isa isa = Isa::kScalar;
    bool available = parse_isa(name, isa);
    std::string names;
    for (const Isa candidate : available_isas())
      names += (names.empty() ? "" : ", ") + std::string(name_of(candidate));
    if (available) {
      const auto all = available_isas();
      available = std::find(all.begin(), all.end(), isa) != all.end();
    }
    if (checks.require(available, SEPCONV_INVALID_ARGUMENT,
                       "name must be one of %s on this machine, got '%s'", names.c_str(), name))
      set_isa(isa);
  });
}
