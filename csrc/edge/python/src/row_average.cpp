#include "operators.h"
#include "run.h"

namespace sepconv::edge {
namespace {

sepconv_row_average description_of(const Arguments& arguments, const Images& input, int64_t stride) {
  return {arguments.dtype(), arguments.layout(), input.batch, input.channels,
          input.height,      input.width,        stride};
}

py::array forward(const py::array& array, int64_t stride, bool nhwc, int threads) {
  const Arguments arguments("row_average", "input", array, nhwc);
  const Images input = arguments.images("input", array);
  const sepconv_row_average average = description_of(arguments, input, stride);
  sepconv_plan plan;
  arguments.must(sepconv_plan_row_average(&average, threads, &plan));
  py::array output =
      arguments.empty_images(input.batch, input.channels, plan.output_height, plan.output_width);
  const void* from = input.array.data();
  void* to = output.mutable_data();
  run(arguments, plan, [&](const sepconv_resources& resources) {
    return sepconv_run_row_average(&plan, from, to, &resources);
  });
  return output;
}

// Of the input only its height is asked for: it may be any that gives so many rows.
py::array backward(const py::array& array, int64_t height, int64_t stride, bool nhwc, int threads) {
  const Arguments arguments("row_average_backward", "grad_output", array, nhwc);
  Images input = arguments.images("grad_output", array);
  const py::array gradient = input.array;
  input.height = height;
  const sepconv_row_average average = description_of(arguments, input, stride);
  sepconv_plan plan;
  arguments.must(sepconv_plan_row_average_backward(&average, threads, &plan));
  arguments.images("grad_output", gradient, input.batch, input.channels, plan);
  py::array result = arguments.empty_images(input.batch, input.channels, height, input.width);
  const void* from = gradient.data();
  void* to = result.mutable_data();
  run(arguments, plan, [&](const sepconv_resources& resources) {
    return sepconv_run_row_average_backward(&plan, from, to, &resources);
  });
  return result;
}

}  // namespace

void define_row_average(py::module_& module) {
  module.def("row_average", forward);
  module.def("row_average_backward", backward);
}

}  // namespace sepconv::edge
