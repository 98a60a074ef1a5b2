#include "core/separable_conv2d.h"

#include "capi/checks.h"
#include "capi/images.h"
#include "capi/plan.h"
#include "capi/workspace.h"
#include "core/packed_weights.h"
#include "core/shapes.h"

namespace sepconv::capi {
namespace {

using Layer = sepconv_separable_conv2d;
using Data = sepconv_separable_conv2d_data;
using Gradients = sepconv_separable_conv2d_gradients;

DType dtype_of(const Layer& layer) {
  return static_cast<DType>(layer.dtype);
}

// --- Checks ----------------------------------------------------------------------------------------------

// What decides about the weights: dtype, channels and kernel.
bool check_weights(Checks& checks, const Layer* layer) {
  if (!(checks.not_null("layer", layer) && checks.dtype(layer->dtype) &&
        checks.at_least("in_channels", layer->in_channels, 1) &&
        checks.at_least("out_channels", layer->out_channels, 1) &&
        checks.at_least("depth_multiplier", layer->depth_multiplier, 1) && checks.window(layer->window)))
    return false;
  const int64_t (&kernel)[2] = layer->window.kernel;
  int64_t middle = 0;
  return checks.require(
             !__builtin_mul_overflow(layer->in_channels, layer->depth_multiplier, &middle), SEPCONV_OVERFLOW,
             "in_channels * depth_multiplier must be below 2^63, got %lld * %lld",
             static_cast<long long>(layer->in_channels), static_cast<long long>(layer->depth_multiplier)) &&
         checks.countable("depthwise_weight", {middle, 1, kernel[0], kernel[1]}, dtype_of(*layer)) &&
         checks.countable("pointwise_weight", {layer->out_channels, middle, 1, 1}, dtype_of(*layer));
}

bool check_layer(Checks& checks, const Layer* layer, int threads, int64_t (&output)[2]) {
  if (!(check_weights(checks, layer) && checks.layout(layer->layout) &&
        checks.at_least("batch", layer->batch, 0) && checks.at_least("height", layer->height, 1) &&
        checks.at_least("width", layer->width, 1) &&
        checks.at_least("row_average_stride", layer->row_average_stride, 0) &&
        checks.stage("prologue", layer->prologue) && checks.stage("middle", layer->middle) &&
        checks.stage("epilogue", layer->epilogue) && checks.flag("has_residual", layer->has_residual) &&
        checks.flag("has_packed_weights", layer->has_packed_weights) && check_threads(checks, threads)))
    return false;
  const int64_t rows = layer->row_average_stride == 0
                           ? layer->height
                           : row_average_size(layer->height, layer->row_average_stride);
  return checks.images(
      {dtype_of(*layer), layer->batch, layer->in_channels, layer->in_channels * layer->depth_multiplier,
       layer->out_channels, layer->height, rows, layer->width},
      window_of(layer->window), output);
}

bool check_backward(Checks& checks, const Layer& layer) {
  return checks.backward() &&
         checks.require(layer.row_average_stride == 0, SEPCONV_INVALID_ARGUMENT,
                        "row_average_stride must be 0 in a backward, got %lld",
                        static_cast<long long>(layer.row_average_stride)) &&
         checks.require(layer.prologue.activation != SEPCONV_HARD_SWISH, SEPCONV_INVALID_ARGUMENT,
                        "prologue.activation must be none, ReLU or ReLU6 in a backward, got hard swish") &&
         checks.shift_only("middle", layer.middle) && checks.shift_only("epilogue", layer.epilogue) &&
         checks.require(layer.has_residual == 0, SEPCONV_INVALID_ARGUMENT,
                        "has_residual must be 0 in a backward, got 1") &&
         checks.require(layer.has_packed_weights == 0, SEPCONV_INVALID_ARGUMENT,
                        "has_packed_weights must be 0 in a backward, got 1");
}

bool check_weight_data(Checks& checks, const Layer& layer, const Data& data) {
  const bool packed = layer.has_packed_weights != 0;
  return checks.matches_plan("data->depthwise_weight", data.depthwise_weight, !packed) &&
         checks.matches_plan("data->pointwise_weight", data.pointwise_weight, !packed) &&
         checks.matches_plan("data->packed_weights", data.packed_weights, packed);
}

bool check_data(Checks& checks, const Layer& layer, const Data* data) {
  const bool images = layer.batch != 0;
  return checks.not_null("data", data) && (!images || checks.not_null("data->input", data->input)) &&
         (!images || checks.not_null("data->output", data->output)) &&
         check_weight_data(checks, layer, *data) &&
         checks.vectors("data->prologue", layer.prologue, data->prologue_scale, data->prologue_shift) &&
         checks.vectors("data->middle", layer.middle, data->middle_scale, data->middle_shift) &&
         checks.vectors("data->epilogue", layer.epilogue, data->epilogue_scale, data->epilogue_shift) &&
         (!images || checks.matches_plan("data->residual", data->residual, layer.has_residual));
}

// --- Parameters ------------------------------------------------------------------------------------------

void set_weights(SeparableConv2dParams& params, const Layer& layer) {
  params.dtype = dtype_of(layer);
  params.window = window_of(layer.window);
  params.depth_multiplier = layer.depth_multiplier;
  params.input.c = layer.in_channels;
  params.output.c = layer.out_channels;
}

// `data.packed_weights` may be null or packed by write_packed.
SeparableConv2dParams params_of(const Layer& layer, const int64_t (&output)[2], const Data& data) {
  SeparableConv2dParams p;
  set_weights(p, layer);
  p.input = image_of(layer.layout, data.input, layer.batch, layer.in_channels, layer.height, layer.width);
  p.output = image_of(layer.layout, data.output, layer.batch, layer.out_channels, output[0], output[1]);
  p.depthwise_weight = data.depthwise_weight;
  p.pointwise_weight = data.pointwise_weight;
  if (data.packed_weights != nullptr) p.packed_weights = packed_values(data.packed_weights);
  set_stage(p.prologue, layer.prologue, data.prologue_scale, data.prologue_shift);
  p.prologue.row_average_stride = layer.row_average_stride;
  set_stage(p.middle, layer.middle, data.middle_scale, data.middle_shift);
  set_stage(p.epilogue, layer.epilogue, data.epilogue_scale, data.epilogue_shift);
  if (layer.has_residual)
    p.epilogue.residual =
        image_of(layer.layout, data.residual, layer.batch, layer.out_channels, output[0], output[1]);
  return p;
}

// The data that the layer will come with.
Data announced_data(const Layer& layer) {
  const bool packed = layer.has_packed_weights != 0;
  Data data{};
  data.input = announced(true), data.output = announced(true);
  data.depthwise_weight = announced(!packed), data.pointwise_weight = announced(!packed);
  data.packed_weights = announced(packed);
  data.prologue_scale = announced(layer.prologue.has_scale);
  data.prologue_shift = announced(layer.prologue.has_shift);
  data.middle_scale = announced(layer.middle.has_scale);
  data.middle_shift = announced(layer.middle.has_shift);
  data.epilogue_scale = announced(layer.epilogue.has_scale);
  data.epilogue_shift = announced(layer.epilogue.has_shift);
  data.residual = announced(layer.has_residual);
  return data;
}

// Of `data`, what the backward reads.
SeparableConv2dBackwardParams backward_params_of(const Layer& layer, const int64_t (&output)[2],
                                                 const Data& data, const void* grad_output,
                                                 const Gradients& gradients) {
  Data read{};
  read.input = data.input, read.output = const_cast<void*>(grad_output);
  read.depthwise_weight = data.depthwise_weight, read.pointwise_weight = data.pointwise_weight;
  read.prologue_scale = data.prologue_scale, read.prologue_shift = data.prologue_shift;
  read.middle_shift = data.middle_shift;
  SeparableConv2dBackwardParams p;
  p.forward = params_of(layer, output, read);
  if (gradients.input != nullptr)
    p.grad_input =
        image_of(layer.layout, gradients.input, layer.batch, layer.in_channels, layer.height, layer.width);
  p.grad_depthwise_weight = gradients.depthwise_weight;
  p.grad_pointwise_weight = gradients.pointwise_weight;
  p.grad_depthwise_bias = gradients.depthwise_bias;
  p.grad_pointwise_bias = gradients.pointwise_bias;
  return p;
}

Gradients announced_gradients(unsigned wanted) {
  return {announced(wanted & SEPCONV_GRAD_INPUT), announced(wanted & SEPCONV_GRAD_DEPTHWISE_WEIGHT),
          announced(wanted & SEPCONV_GRAD_POINTWISE_WEIGHT), announced(wanted & SEPCONV_GRAD_DEPTHWISE_BIAS),
          announced(wanted & SEPCONV_GRAD_POINTWISE_BIAS)};
}

bool check_gradients(Checks& checks, unsigned wanted, const Gradients* gradients) {
  return checks.not_null("gradients", gradients) &&
         checks.matches_plan("gradients->input", gradients->input, wanted & SEPCONV_GRAD_INPUT) &&
         checks.matches_plan("gradients->depthwise_weight", gradients->depthwise_weight,
                             wanted & SEPCONV_GRAD_DEPTHWISE_WEIGHT) &&
         checks.matches_plan("gradients->pointwise_weight", gradients->pointwise_weight,
                             wanted & SEPCONV_GRAD_POINTWISE_WEIGHT) &&
         checks.matches_plan("gradients->depthwise_bias", gradients->depthwise_bias,
                             wanted & SEPCONV_GRAD_DEPTHWISE_BIAS) &&
         checks.matches_plan("gradients->pointwise_bias", gradients->pointwise_bias,
                             wanted & SEPCONV_GRAD_POINTWISE_BIAS);
}

// --- Packed weights --------------------------------------------------------------------------------------

PackedHeader header_of(const Layer& layer) {
  SeparableConv2dParams params;
  set_weights(params, layer);
  return packed_header_of(params);
}

bool check_aligned(Checks& checks, const char* name, const void* pointer) {
  return checks.require(reinterpret_cast<uintptr_t>(pointer) % kScratchAlignment == 0,
                        SEPCONV_INVALID_ARGUMENT, "%s must be aligned to %lld bytes, got %p", name,
                        static_cast<long long>(kScratchAlignment), pointer);
}

bool check_packed(Checks& checks, const Layer& layer, const Data& data) {
  const char* name = "data->packed_weights";
  if (!check_aligned(checks, name, data.packed_weights)) return false;
  const PackedHeader expected = header_of(layer);
  PackedHeader found;
  const bool whole = data.packed_bytes >= sizeof(found);
  if (whole) std::memcpy(&found, data.packed_weights, sizeof(found));
  return checks.require(whole && found.is_magic(), SEPCONV_PACKED_MISMATCH,
                        "%s must be what sepconv_pack_separable_conv2d made, got other bytes", name) &&
         checks.require(found.isa == expected.isa, SEPCONV_PACKED_MISMATCH,
                        "%s must be for the instruction set in use, %s, got %s: pack the weights again", name,
                        name_of(static_cast<Isa>(expected.isa)), name_of(static_cast<Isa>(found.isa))) &&
         checks.require(found.dtype == expected.dtype, SEPCONV_PACKED_MISMATCH,
                        "%s must hold weights of dtype %d, got %d", name, expected.dtype, found.dtype) &&
         checks.require(
             found.same_weights(expected), SEPCONV_PACKED_MISMATCH,
             "%s must hold weights for %lld channels between the convolutions, %lld after them and a "
             "%lldx%lld kernel, got %lld, %lld and %lldx%lld",
             name, static_cast<long long>(expected.middle_channels),
             static_cast<long long>(expected.out_channels), static_cast<long long>(expected.kernel[0]),
             static_cast<long long>(expected.kernel[1]), static_cast<long long>(found.middle_channels),
             static_cast<long long>(found.out_channels), static_cast<long long>(found.kernel[0]),
             static_cast<long long>(found.kernel[1])) &&
         checks.require(
             found.bytes == expected.bytes && data.packed_bytes >= static_cast<size_t>(expected.bytes),
             SEPCONV_PACKED_MISMATCH, "data->packed_bytes must be %lld, got %zu",
             static_cast<long long>(expected.bytes), data.packed_bytes);
}

}  // namespace
}  // namespace sepconv::capi

using namespace sepconv;
using namespace sepconv::capi;

void sepconv_init_separable_conv2d(sepconv_separable_conv2d* layer) {
  if (layer == nullptr) return;
  *layer = {};
  layer->window = plain_window();
  layer->depth_multiplier = 1;
}

sepconv_status sepconv_packed_bytes_of_separable_conv2d(const sepconv_separable_conv2d* layer,
                                                        size_t* bytes) {
  Checks checks("sepconv_packed_bytes_of_separable_conv2d");
  if (!(check_weights(checks, layer) && checks.not_null("bytes", bytes))) return checks.status();
  return guarded(checks, [&] { *bytes = static_cast<size_t>(header_of(*layer).bytes); });
}

sepconv_status sepconv_pack_separable_conv2d(const sepconv_separable_conv2d* layer,
                                             const void* depthwise_weight, const void* pointwise_weight,
                                             void* packed, size_t packed_bytes) {
  Checks checks("sepconv_pack_separable_conv2d");
  if (!(check_weights(checks, layer) && checks.not_null("depthwise_weight", depthwise_weight) &&
        checks.not_null("pointwise_weight", pointwise_weight) && checks.not_null("packed", packed) &&
        check_aligned(checks, "packed", packed)))
    return checks.status();
  return guarded(checks, [&] {
    const PackedHeader header = header_of(*layer);
    if (!checks.require(packed_bytes >= static_cast<size_t>(header.bytes), SEPCONV_WORKSPACE_TOO_SMALL,
                        "packed_bytes must be at least %lld, got %zu", static_cast<long long>(header.bytes),
                        packed_bytes))
      return;
    SeparableConv2dParams params;
    set_weights(params, *layer);
    params.depthwise_weight = depthwise_weight, params.pointwise_weight = pointwise_weight;
    write_packed(params, header, packed);
  });
}

sepconv_status sepconv_plan_separable_conv2d(const sepconv_separable_conv2d* layer, int threads,
                                             sepconv_plan* plan) {
  Checks checks("sepconv_plan_separable_conv2d");
  int64_t output[2];
  if (!(checks.not_null("plan", plan) && check_layer(checks, layer, threads, output))) return checks.status();
  const SeparableConv2dParams params = params_of(*layer, output, announced_data(*layer));
  return write_plan(checks, Operation::kSeparableConv2d, *layer, 0, threads, output, plan,
                    [&](const Parallel& parallel) { separable_conv2d(params, parallel); });
}

sepconv_status sepconv_run_separable_conv2d(const sepconv_plan* plan,
                                            const sepconv_separable_conv2d_data* data,
                                            const sepconv_resources* resources) {
  Checks checks("sepconv_run_separable_conv2d");
  Planned<Layer> planned;
  if (!read_plan(checks, Operation::kSeparableConv2d, plan, resources, planned)) return checks.status();
  const Layer& layer = planned.description;
  if (!check_data(checks, layer, data)) return checks.status();
  if (layer.has_packed_weights && guarded(checks, [&] { check_packed(checks, layer, *data); }) != SEPCONV_OK)
    return checks.status();
  const SeparableConv2dParams params = params_of(layer, planned.output, *data);
  return run_plan(checks, planned, *resources,
                  [&](const Parallel& parallel) { separable_conv2d(params, parallel); });
}

sepconv_status sepconv_plan_separable_conv2d_backward(const sepconv_separable_conv2d* layer,
                                                      unsigned gradients, int threads, sepconv_plan* plan) {
  Checks checks("sepconv_plan_separable_conv2d_backward");
  int64_t output[2];
  if (!(checks.not_null("plan", plan) && check_layer(checks, layer, threads, output) &&
        check_backward(checks, *layer) && checks.between("gradients", gradients, 1, 31)))
    return checks.status();
  const SeparableConv2dBackwardParams params = backward_params_of(
      *layer, output, announced_data(*layer), announced(true), announced_gradients(gradients));
  return write_plan(checks, Operation::kSeparableConv2dBackward, *layer, gradients, threads, output, plan,
                    [&](const Parallel& parallel) { separable_conv2d_backward(params, parallel); });
}

sepconv_status sepconv_run_separable_conv2d_backward(const sepconv_plan* plan,
                                                     const sepconv_separable_conv2d_data* data,
                                                     const void* grad_output,
                                                     const sepconv_separable_conv2d_gradients* gradients,
                                                     const sepconv_resources* resources) {
  Checks checks("sepconv_run_separable_conv2d_backward");
  Planned<Layer> planned;
  if (!read_plan(checks, Operation::kSeparableConv2dBackward, plan, resources, planned))
    return checks.status();
  const Layer& layer = planned.description;
  const bool images = layer.batch != 0;
  if (!(checks.not_null("data", data) && (!images || checks.not_null("data->input", data->input)) &&
        (!images || checks.not_null("grad_output", grad_output)) && check_weight_data(checks, layer, *data) &&
        checks.vectors("data->prologue", layer.prologue, data->prologue_scale, data->prologue_shift) &&
        checks.matches_plan("data->middle_shift", data->middle_shift, layer.middle.has_shift) &&
        check_gradients(checks, planned.gradients, gradients)))
    return checks.status();
  const SeparableConv2dBackwardParams params =
      backward_params_of(layer, planned.output, *data, grad_output, *gradients);
  return run_plan(checks, planned, *resources,
                  [&](const Parallel& parallel) { separable_conv2d_backward(params, parallel); });
}
