#include <algorithm>

#include "operators.h"
#include "run.h"

namespace sepconv::edge {
namespace {

// The layer that the arrays make up. They are owned here while the C library reads them.
struct Layer {
  Arguments arguments;
  Images input;
  py::array depthwise_weight, pointwise_weight;
  MaybeArray depthwise_bias, pointwise_bias;
  sepconv_separable_conv2d description;

  Layer(const char* function, const py::array& images, const py::array& depthwise, const py::array& pointwise,
        const MaybeArray& between, const MaybeArray& after, const Pair& stride, const Pair& padding,
        const Pair& dilation, bool nhwc)
      : arguments(function, "input", images, nhwc),
        input(arguments.images("input", images)),
        depthwise_weight(arguments.dense("depthwise_weight", depthwise)),
        pointwise_weight(arguments.dense("pointwise_weight", pointwise)) {
    const Sizes dw = sizes_of(depthwise), pw = sizes_of(pointwise);
    const int64_t channels = std::max<int64_t>(1, input.channels);
    arguments.require(dw.size() == 4 && dw[0] > 0 && dw[0] % channels == 0 && dw[1] == 1,
                      "depthwise_weight must have shape (C_in * multiplier, 1, kh, kw) with C_in = ",
                      input.channels, ", got ", Written{dw});
    const bool matrix = pw.size() == 2 || (pw.size() == 4 && pw[2] == 1 && pw[3] == 1);
    arguments.require(matrix && pw[1] == dw[0], "pointwise_weight must have shape (C_out, ", dw[0],
                      ") or (C_out, ", dw[0], ", 1, 1), got ", Written{pw});
    if (between) depthwise_bias = arguments.vector("depthwise_bias", *between, dw[0]);
    if (after) pointwise_bias = arguments.vector("pointwise_bias", *after, pw[0]);
    sepconv_init_separable_conv2d(&description);
    description.dtype = arguments.dtype();
    description.layout = arguments.layout();
    description.batch = input.batch, description.in_channels = input.channels;
    description.height = input.height, description.width = input.width;
    description.out_channels = pw[0];
    description.depth_multiplier = dw[0] / channels;
    description.window = window_of({dw[2], dw[3]}, stride, padding, dilation);
    description.middle.has_shift = depthwise_bias.has_value();
    description.epilogue.has_shift = pointwise_bias.has_value();
  }

  sepconv_separable_conv2d_data data() const {
    sepconv_separable_conv2d_data data{};
    data.input = input.array.data();
    data.depthwise_weight = depthwise_weight.data(), data.pointwise_weight = pointwise_weight.data();
    data.middle_shift = read(depthwise_bias), data.epilogue_shift = read(pointwise_bias);
    return data;
  }
};

py::array forward(const py::array& input, const py::array& depthwise_weight,
                  const py::array& pointwise_weight, const MaybeArray& depthwise_bias,
                  const MaybeArray& pointwise_bias, const Pair& stride, const Pair& padding,
                  const Pair& dilation, bool nhwc, int threads) {
  const Layer layer("separable_conv2d", input, depthwise_weight, pointwise_weight, depthwise_bias,
                    pointwise_bias, stride, padding, dilation, nhwc);
  sepconv_plan plan;
  layer.arguments.must(sepconv_plan_separable_conv2d(&layer.description, threads, &plan));
  py::array output = layer.arguments.empty_images(layer.input.batch, layer.description.out_channels,
                                                  plan.output_height, plan.output_width);
  sepconv_separable_conv2d_data data = layer.data();
  data.output = output.mutable_data();
  run(layer.arguments, plan, [&](const sepconv_resources& resources) {
    return sepconv_run_separable_conv2d(&plan, &data, &resources);
  });
  return output;
}

py::tuple backward(const py::array& grad_output, const py::array& input, const py::array& depthwise_weight,
                   const py::array& pointwise_weight, const MaybeArray& depthwise_bias, const Pair& stride,
                   const Pair& padding, const Pair& dilation, bool nhwc, unsigned wanted, int threads) {
  const Layer layer("separable_conv2d_backward", input, depthwise_weight, pointwise_weight, depthwise_bias,
                    {}, stride, padding, dilation, nhwc);
  const int64_t out_channels = layer.description.out_channels, middle = layer.depthwise_weight.shape(0);
  sepconv_plan plan;
  layer.arguments.must(sepconv_plan_separable_conv2d_backward(&layer.description, wanted, threads, &plan));
  const py::array gradient =
      layer.arguments.images("grad_output", grad_output, layer.input.batch, out_channels, plan);
  const auto result = [&](unsigned gradient, const Sizes& shape) {
    return layer.arguments.empty_if((wanted & gradient) != 0, shape);
  };
  MaybeArray of_input = result(SEPCONV_GRAD_INPUT, sizes_of(layer.input.array)),
             of_depthwise = result(SEPCONV_GRAD_DEPTHWISE_WEIGHT, sizes_of(layer.depthwise_weight)),
             of_pointwise = result(SEPCONV_GRAD_POINTWISE_WEIGHT, sizes_of(layer.pointwise_weight)),
             of_depthwise_bias = result(SEPCONV_GRAD_DEPTHWISE_BIAS, {middle}),
             of_pointwise_bias = result(SEPCONV_GRAD_POINTWISE_BIAS, {out_channels});
  const sepconv_separable_conv2d_data data = layer.data();
  const sepconv_separable_conv2d_gradients gradients = {written(of_input), written(of_depthwise),
                                                        written(of_pointwise), written(of_depthwise_bias),
                                                        written(of_pointwise_bias)};
  run(layer.arguments, plan, [&](const sepconv_resources& resources) {
    return sepconv_run_separable_conv2d_backward(&plan, &data, gradient.data(), &gradients, &resources);
  });
  return py::make_tuple(of_input, of_depthwise, of_pointwise, of_depthwise_bias, of_pointwise_bias);
}

}  // namespace

void define_separable_conv2d(py::module_& module) {
  module.def("separable_conv2d", forward);
  module.def("separable_conv2d_backward", backward);
}

}  // namespace sepconv::edge
