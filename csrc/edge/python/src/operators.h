// The functions of the module, a file each.
#pragma once
#include <pybind11/pybind11.h>

namespace sepconv::edge {

void define_separable_conv2d(pybind11::module_& module);
void define_row_average(pybind11::module_& module);
void define_row_average_conv2d(pybind11::module_& module);

}  // namespace sepconv::edge
