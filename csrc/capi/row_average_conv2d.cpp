#include "core/row_average_conv2d.h"

#include "capi/checks.h"
#include "capi/images.h"
#include "capi/plan.h"
#include "capi/workspace.h"

namespace sepconv::capi {
namespace {

using Layer = sepconv_row_average_conv2d;
using Data = sepconv_row_average_conv2d_data;
using Gradients = sepconv_row_average_conv2d_gradients;

bool check_layer(Checks& checks, const Layer* layer, int threads, int64_t (&output)[2]) {
  if (!(checks.not_null("layer", layer) && checks.dtype(layer->dtype) && checks.layout(layer->layout) &&
        checks.at_least("batch", layer->batch, 0) && checks.at_least("in_channels", layer->in_channels, 1) &&
        checks.at_least("height", layer->height, 1) && checks.at_least("width", layer->width, 1) &&
        checks.at_least("out_channels", layer->out_channels, 1) && checks.window(layer->window) &&
        checks.at_least("row_average_stride", layer->row_average_stride, 0) &&
        checks.stage("prologue", layer->prologue) && checks.stage("epilogue", layer->epilogue) &&
        checks.flag("has_residual", layer->has_residual) && check_threads(checks, threads)))
    return false;
  const DType dtype = static_cast<DType>(layer->dtype);
  const int64_t rows = layer->row_average_stride == 0
                           ? layer->height
                           : row_average_size(layer->height, layer->row_average_stride);
  const int64_t (&kernel)[2] = layer->window.kernel;
  if (!checks.countable("weight", {layer->out_channels, layer->in_channels, kernel[0], kernel[1]}, dtype))
    return false;
  return checks.images({dtype, layer->batch, layer->in_channels, layer->in_channels * kernel[0] * kernel[1],
                        layer->out_channels, layer->height, rows, layer->width},
                       window_of(layer->window), output);
}

bool check_backward(Checks& checks, const Layer& layer) {
  return checks.backward() &&
         checks.require(empty(layer.prologue), SEPCONV_INVALID_ARGUMENT,
                        "prologue must be empty in a backward") &&
         checks.shift_only("epilogue", layer.epilogue) &&
         checks.require(layer.has_residual == 0, SEPCONV_INVALID_ARGUMENT,
                        "has_residual must be 0 in a backward, got 1");
}

bool check_data(Checks& checks, const Layer& layer, const Data* data) {
  const bool images = layer.batch != 0;
  return checks.not_null("data", data) && (!images || checks.not_null("data->input", data->input)) &&
         checks.not_null("data->weight", data->weight) &&
         (!images || checks.not_null("data->output", data->output)) &&
         checks.vectors("data->prologue", layer.prologue, data->prologue_scale, data->prologue_shift) &&
         checks.vectors("data->epilogue", layer.epilogue, data->epilogue_scale, data->epilogue_shift) &&
         (!images || checks.matches_plan("data->residual", data->residual, layer.has_residual));
}

bool check_gradients(Checks& checks, unsigned wanted, const Gradients* gradients) {
  return checks.not_null("gradients", gradients) &&
         checks.matches_plan("gradients->input", gradients->input, wanted & SEPCONV_GRAD_INPUT) &&
         checks.matches_plan("gradients->weight", gradients->weight, wanted & SEPCONV_GRAD_WEIGHT) &&
         checks.matches_plan("gradients->bias", gradients->bias, wanted & SEPCONV_GRAD_BIAS);
}

RowAverageConv2dParams params_of(const Layer& layer, const int64_t (&output)[2], const Data& data) {
  RowAverageConv2dParams p;
  p.dtype = static_cast<DType>(layer.dtype);
  p.window = window_of(layer.window);
  p.input = image_of(layer.layout, data.input, layer.batch, layer.in_channels, layer.height, layer.width);
  p.output = image_of(layer.layout, data.output, layer.batch, layer.out_channels, output[0], output[1]);
  p.weight = data.weight;
  set_stage(p.prologue, layer.prologue, data.prologue_scale, data.prologue_shift);
  p.prologue.row_average_stride = layer.row_average_stride;
  set_stage(p.epilogue, layer.epilogue, data.epilogue_scale, data.epilogue_shift);
  if (layer.has_residual)
    p.epilogue.residual =
        image_of(layer.layout, data.residual, layer.batch, layer.out_channels, output[0], output[1]);
  return p;
}

Data announced_data(const Layer& layer) {
  return {announced(true),
          announced(true),
          announced(layer.prologue.has_scale),
          announced(layer.prologue.has_shift),
          announced(layer.epilogue.has_scale),
          announced(layer.epilogue.has_shift),
          announced(layer.has_residual),
          announced(true)};
}

RowAverageConv2dBackwardParams backward_params_of(const Layer& layer, const int64_t (&output)[2],
                                                  const Data& data, const void* grad_output,
                                                  const Gradients& gradients) {
  Data read{};
  read.input = data.input, read.weight = data.weight, read.output = const_cast<void*>(grad_output);
  RowAverageConv2dBackwardParams p;
  p.forward = params_of(layer, output, read);
  if (gradients.input != nullptr)
    p.grad_input =
        image_of(layer.layout, gradients.input, layer.batch, layer.in_channels, layer.height, layer.width);
  p.grad_weight = gradients.weight;
  p.grad_bias = gradients.bias;
  return p;
}

Gradients announced_gradients(unsigned wanted) {
  return {announced(wanted & SEPCONV_GRAD_INPUT), announced(wanted & SEPCONV_GRAD_WEIGHT),
          announced(wanted & SEPCONV_GRAD_BIAS)};
}

}  // namespace
}  // namespace sepconv::capi

using namespace sepconv;
using namespace sepconv::capi;

void sepconv_init_row_average_conv2d(sepconv_row_average_conv2d* layer) {
  if (layer == nullptr) return;
  *layer = {};
  layer->window = plain_window();
  layer->row_average_stride = 1;
}

sepconv_status sepconv_plan_row_average_conv2d(const sepconv_row_average_conv2d* layer, int threads,
                                               sepconv_plan* plan) {
  Checks checks("sepconv_plan_row_average_conv2d");
  int64_t output[2];
  if (!(checks.not_null("plan", plan) && check_layer(checks, layer, threads, output))) return checks.status();
  const RowAverageConv2dParams params = params_of(*layer, output, announced_data(*layer));
  return write_plan(checks, Operation::kRowAverageConv2d, *layer, 0, threads, output, plan,
                    [&](const Parallel& parallel) { row_average_conv2d(params, parallel); });
}

sepconv_status sepconv_run_row_average_conv2d(const sepconv_plan* plan,
                                              const sepconv_row_average_conv2d_data* data,
                                              const sepconv_resources* resources) {
  Checks checks("sepconv_run_row_average_conv2d");
  Planned<Layer> planned;
  if (!read_plan(checks, Operation::kRowAverageConv2d, plan, resources, planned) ||
      !check_data(checks, planned.description, data))
    return checks.status();
  const RowAverageConv2dParams params = params_of(planned.description, planned.output, *data);
  return run_plan(checks, planned, *resources,
                  [&](const Parallel& parallel) { row_average_conv2d(params, parallel); });
}

sepconv_status sepconv_plan_row_average_conv2d_backward(const sepconv_row_average_conv2d* layer,
                                                        unsigned gradients, int threads, sepconv_plan* plan) {
  Checks checks("sepconv_plan_row_average_conv2d_backward");
  int64_t output[2];
  if (!(checks.not_null("plan", plan) && check_layer(checks, layer, threads, output) &&
        check_backward(checks, *layer) && checks.between("gradients", gradients, 1, 7)))
    return checks.status();
  const RowAverageConv2dBackwardParams params = backward_params_of(
      *layer, output, announced_data(*layer), announced(true), announced_gradients(gradients));
  return write_plan(checks, Operation::kRowAverageConv2dBackward, *layer, gradients, threads, output, plan,
                    [&](const Parallel& parallel) { row_average_conv2d_backward(params, parallel); });
}

sepconv_status sepconv_run_row_average_conv2d_backward(const sepconv_plan* plan,
                                                       const sepconv_row_average_conv2d_data* data,
                                                       const void* grad_output,
                                                       const sepconv_row_average_conv2d_gradients* gradients,
                                                       const sepconv_resources* resources) {
  Checks checks("sepconv_run_row_average_conv2d_backward");
  Planned<Layer> planned;
  if (!read_plan(checks, Operation::kRowAverageConv2dBackward, plan, resources, planned))
    return checks.status();
  const Layer& layer = planned.description;
  const bool images = layer.batch != 0;
  if (!(checks.not_null("data", data) && (!images || checks.not_null("data->input", data->input)) &&
        checks.not_null("data->weight", data->weight) &&
        (!images || checks.not_null("grad_output", grad_output)) &&
        check_gradients(checks, planned.gradients, gradients)))
    return checks.status();
  const RowAverageConv2dBackwardParams params =
      backward_params_of(layer, planned.output, *data, grad_output, *gradients);
  return run_plan(checks, planned, *resources,
                  [&](const Parallel& parallel) { row_average_conv2d_backward(params, parallel); });
}
