#include "operators.h"
#include "run.h"

namespace sepconv::edge {
namespace {

struct Layer {
  Arguments arguments;
  Images input;
  py::array weight;
  MaybeArray bias;
  sepconv_row_average_conv2d description;

  Layer(const char* function, const py::array& images, const py::array& weights, const MaybeArray& shift,
        const Pair& stride, const Pair& padding, const Pair& dilation, int64_t row_stride, bool nhwc)
      : arguments(function, "input", images, nhwc),
        input(arguments.images("input", images)),
        weight(arguments.dense("weight", weights)) {
    const Sizes w = sizes_of(weights);
    arguments.require(w.size() == 4 && w[1] == input.channels, "weight must have shape (C_out, ",
                      input.channels, ", kh, kw), got ", Written{w});
    if (shift) bias = arguments.vector("bias", *shift, w[0]);
    sepconv_init_row_average_conv2d(&description);
    description.dtype = arguments.dtype();
    description.layout = arguments.layout();
    description.batch = input.batch, description.in_channels = input.channels;
    description.height = input.height, description.width = input.width;
    description.out_channels = w[0];
    description.window = window_of({w[2], w[3]}, stride, padding, dilation);
    description.row_average_stride = row_stride;
    description.epilogue.has_shift = bias.has_value();
  }

  sepconv_row_average_conv2d_data data() const {
    sepconv_row_average_conv2d_data data{};
    data.input = input.array.data(), data.weight = weight.data();
    data.epilogue_shift = read(bias);
    return data;
  }
};

py::array forward(const py::array& input, const py::array& weight, const MaybeArray& bias, const Pair& stride,
                  const Pair& padding, const Pair& dilation, int64_t row_stride, bool nhwc, int threads) {
  const Layer layer("row_average_conv2d", input, weight, bias, stride, padding, dilation, row_stride, nhwc);
  sepconv_plan plan;
  layer.arguments.must(sepconv_plan_row_average_conv2d(&layer.description, threads, &plan));
  py::array output = layer.arguments.empty_images(layer.input.batch, layer.description.out_channels,
                                                  plan.output_height, plan.output_width);
  sepconv_row_average_conv2d_data data = layer.data();
  data.output = output.mutable_data();
  run(layer.arguments, plan, [&](const sepconv_resources& resources) {
    return sepconv_run_row_average_conv2d(&plan, &data, &resources);
  });
  return output;
}

py::tuple backward(const py::array& grad_output, const py::array& input, const py::array& weight,
                   const Pair& stride, const Pair& padding, const Pair& dilation, int64_t row_stride,
                   bool nhwc, unsigned wanted, int threads) {
  const Layer layer("row_average_conv2d_backward", input, weight, {}, stride, padding, dilation, row_stride,
                    nhwc);
  sepconv_plan plan;
  layer.arguments.must(sepconv_plan_row_average_conv2d_backward(&layer.description, wanted, threads, &plan));
  const int64_t out_channels = layer.description.out_channels;
  const py::array gradient =
      layer.arguments.images("grad_output", grad_output, layer.input.batch, out_channels, plan);
  const auto result = [&](unsigned gradient, const Sizes& shape) {
    return layer.arguments.empty_if((wanted & gradient) != 0, shape);
  };
  MaybeArray of_input = result(SEPCONV_GRAD_INPUT, sizes_of(layer.input.array)),
             of_weight = result(SEPCONV_GRAD_WEIGHT, sizes_of(layer.weight)),
             of_bias = result(SEPCONV_GRAD_BIAS, {out_channels});
  const sepconv_row_average_conv2d_data data = layer.data();
  const sepconv_row_average_conv2d_gradients gradients = {written(of_input), written(of_weight),
                                                          written(of_bias)};
  run(layer.arguments, plan, [&](const sepconv_resources& resources) {
    return sepconv_run_row_average_conv2d_backward(&plan, &data, gradient.data(), &gradients, &resources);
  });
  return py::make_tuple(of_input, of_weight, of_bias);
}

}  // namespace

void define_row_average_conv2d(py::module_& module) {
  module.def("row_average_conv2d", forward);
  module.def("row_average_conv2d_backward", backward);
}

}  // namespace sepconv::edge
