// sepconv_edge._core: the C library on NumPy arrays. The package around it gives arguments their names and
// defaults.
#include "operators.h"
#include "run.h"

namespace {

void set_cpu_capability(const std::string& name) {
  if (sepconv_set_cpu_capability(name.c_str()) != SEPCONV_OK)
    throw pybind11::value_error(sepconv_last_error());
}

std::string cpu_capability() {
  const std::string name = sepconv_cpu_capability();
  if (name.empty()) throw std::runtime_error(sepconv_last_error());
  return name;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  using namespace sepconv::edge;
  module.attr("GRAD_INPUT") = static_cast<unsigned>(SEPCONV_GRAD_INPUT);
  module.attr("GRAD_DEPTHWISE_WEIGHT") = static_cast<unsigned>(SEPCONV_GRAD_DEPTHWISE_WEIGHT);
  module.attr("GRAD_POINTWISE_WEIGHT") = static_cast<unsigned>(SEPCONV_GRAD_POINTWISE_WEIGHT);
  module.attr("GRAD_DEPTHWISE_BIAS") = static_cast<unsigned>(SEPCONV_GRAD_DEPTHWISE_BIAS);
  module.attr("GRAD_POINTWISE_BIAS") = static_cast<unsigned>(SEPCONV_GRAD_POINTWISE_BIAS);
  module.attr("GRAD_WEIGHT") = static_cast<unsigned>(SEPCONV_GRAD_WEIGHT);
  module.attr("GRAD_BIAS") = static_cast<unsigned>(SEPCONV_GRAD_BIAS);
  module.def("version", [] { return std::string(sepconv_version()); });
  module.def("has_openmp", [] { return sepconv_has_openmp() != 0; });
  module.def("cpu_capability", cpu_capability);
  module.def("set_cpu_capability", set_cpu_capability);
  define_separable_conv2d(module);
  define_row_average(module);
  define_row_average_conv2d(module);
}
