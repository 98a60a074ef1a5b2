// Random calls of the C API against float64 (see sweep.h). Each has a workspace of exactly the bytes that its
// plan asks for, at an odd address, and allocates nothing while it runs:
//   test_c_api_sweep [cases] [seed]
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "allocations.h"
#include "include/sepconv.h"
#include "sweep.h"

namespace {

void must(sepconv_status status) {
  require(status == SEPCONV_OK, "status", sepconv_last_error());
}

// A sweep's threads as a caller's. Starting a thread may allocate, a task may not.
void on_threads_of_sweep(void* parallel, int64_t count, sepconv_task task, void* task_context) {
  const Watch caller(false);
  static_cast<const Parallel*>(parallel)->run(count, [&](int64_t begin, int64_t end) {
    const Watch library(true);
    for (int64_t i = begin; i < end; ++i) task(task_context, i);
  });
}

// run(resources) on the workspace that `plan` wants.
template <class Run>
void run_planned(const sepconv_plan& plan, const Parallel& parallel, Run&& run) {
  const std::unique_ptr<char[]> memory(new char[plan.workspace_bytes + 1]);
  std::fill_n(memory.get(), plan.workspace_bytes + 1, static_cast<char>(0xff));
  const sepconv_resources resources{memory.get() + 1, plan.workspace_bytes, on_threads_of_sweep,
                                    const_cast<Parallel*>(&parallel)};
  const int64_t before = allocations;
  sepconv_status status;
  {
    const Watch library(true);
    status = run(&resources);
  }
  must(status);
  require(allocations == before, "a run", "allocated memory");
}

unsigned flag(const void* gradient, unsigned value) {
  return gradient != nullptr ? value : 0;
}

sepconv_window window_of(const Window& v) {
  return {{v.kernel[0], v.kernel[1]},
          {v.stride[0], v.stride[1]},
          {v.padding[0], v.padding[1]},
          {v.dilation[0], v.dilation[1]}};
}
sepconv_stage stage_of(const ChannelStage& stage) {
  return {static_cast<sepconv_activation>(stage.activation), stage.scale != nullptr, stage.shift != nullptr,
          stage.wide};
}
template <class Layer>
void set_common(Layer& layer, DType dtype, const Image& x, const Image& y, const Window& window) {
  layer.dtype = static_cast<sepconv_dtype>(dtype);
  layer.layout = channels_last ? SEPCONV_NHWC : SEPCONV_NCHW;
  layer.batch = x.n, layer.in_channels = x.c, layer.height = x.h, layer.width = x.w;
  layer.out_channels = y.c;
  layer.window = window_of(window);
}

sepconv_separable_conv2d layer_of(const SeparableConv2dParams& p) {
  sepconv_separable_conv2d layer;
  sepconv_init_separable_conv2d(&layer);
  set_common(layer, p.dtype, p.input, p.output, p.window);
  layer.depth_multiplier = p.depth_multiplier;
  layer.row_average_stride = p.prologue.row_average_stride;
  layer.prologue = stage_of(p.prologue), layer.middle = stage_of(p.middle),
  layer.epilogue = stage_of(p.epilogue);
  layer.has_residual = p.epilogue.residual.data != nullptr;
  layer.has_packed_weights = p.packed_weights != nullptr;
  return layer;
}
sepconv_separable_conv2d_data data_of(const SeparableConv2dParams& p) {
  sepconv_separable_conv2d_data data{};
  data.input = p.input.data, data.output = p.output.data;
  data.depthwise_weight = p.depthwise_weight, data.pointwise_weight = p.pointwise_weight;
  data.packed_weights = p.packed_weights;
  data.prologue_scale = p.prologue.scale, data.prologue_shift = p.prologue.shift;
  data.middle_scale = p.middle.scale, data.middle_shift = p.middle.shift;
  data.epilogue_scale = p.epilogue.scale, data.epilogue_shift = p.epilogue.shift;
  data.residual = p.epilogue.residual.data;
  return data;
}

int64_t packed_bytes(const SeparableConv2dParams& p) {
  const sepconv_separable_conv2d layer = layer_of(p);
  size_t bytes = 0;
  must(sepconv_packed_bytes_of_separable_conv2d(&layer, &bytes));
  return static_cast<int64_t>(bytes);
}
void pack(const SeparableConv2dParams& p, void* packed) {
  const sepconv_separable_conv2d layer = layer_of(p);
  must(sepconv_pack_separable_conv2d(&layer, p.depthwise_weight, p.pointwise_weight, packed,
                                     static_cast<size_t>(packed_bytes(p))));
}

void forward(const SeparableConv2dParams& p, const Parallel& parallel) {
  const sepconv_separable_conv2d layer = layer_of(p);
  sepconv_separable_conv2d_data data = data_of(p);
  if (p.packed_weights != nullptr) data.packed_bytes = static_cast<size_t>(packed_bytes(p));
  sepconv_plan plan;
  must(sepconv_plan_separable_conv2d(&layer, parallel.threads, &plan));
  require(plan.output_height == p.output.h && plan.output_width == p.output.w, "plan", "another output size");
  run_planned(plan, parallel, [&](const sepconv_resources* resources) {
    return sepconv_run_separable_conv2d(&plan, &data, resources);
  });
}

void backward(const SeparableConv2dBackwardParams& q, const Parallel& parallel) {
  const sepconv_separable_conv2d layer = layer_of(q.forward);
  const sepconv_separable_conv2d_data data = data_of(q.forward);
  const sepconv_separable_conv2d_gradients gradients{q.grad_input.data, q.grad_depthwise_weight,
                                                     q.grad_pointwise_weight, q.grad_depthwise_bias,
                                                     q.grad_pointwise_bias};
  const unsigned wanted = flag(gradients.input, SEPCONV_GRAD_INPUT) |
                          flag(gradients.depthwise_weight, SEPCONV_GRAD_DEPTHWISE_WEIGHT) |
                          flag(gradients.pointwise_weight, SEPCONV_GRAD_POINTWISE_WEIGHT) |
                          flag(gradients.depthwise_bias, SEPCONV_GRAD_DEPTHWISE_BIAS) |
                          flag(gradients.pointwise_bias, SEPCONV_GRAD_POINTWISE_BIAS);
  if (wanted == 0) return;  // the sweep may ask for nothing
  sepconv_plan plan;
  must(sepconv_plan_separable_conv2d_backward(&layer, wanted, parallel.threads, &plan));
  run_planned(plan, parallel, [&](const sepconv_resources* resources) {
    return sepconv_run_separable_conv2d_backward(&plan, &data, q.forward.output.data, &gradients, resources);
  });
}

sepconv_row_average average_of(const RowAverageParams& p, const Image& whole) {
  return {static_cast<sepconv_dtype>(p.dtype),
          channels_last ? SEPCONV_NHWC : SEPCONV_NCHW,
          whole.n,
          whole.c,
          whole.h,
          whole.w,
          p.row_stride};
}
void average(const RowAverageParams& p, const Parallel& parallel) {
  const sepconv_row_average of = average_of(p, p.input);
  sepconv_plan plan;
  must(sepconv_plan_row_average(&of, parallel.threads, &plan));
  require(plan.output_height == p.output.h && plan.output_width == p.output.w, "plan", "another output size");
  run_planned(plan, parallel, [&](const sepconv_resources* resources) {
    return sepconv_run_row_average(&plan, p.input.data, p.output.data, resources);
  });
}
void average_backward(const RowAverageParams& p, const Parallel& parallel) {
  const sepconv_row_average of = average_of(p, p.output);
  sepconv_plan plan;
  must(sepconv_plan_row_average_backward(&of, parallel.threads, &plan));
  run_planned(plan, parallel, [&](const sepconv_resources* resources) {
    return sepconv_run_row_average_backward(&plan, p.input.data, p.output.data, resources);
  });
}

sepconv_row_average_conv2d layer_of(const RowAverageConv2dParams& p) {
  sepconv_row_average_conv2d layer;
  sepconv_init_row_average_conv2d(&layer);
  set_common(layer, p.dtype, p.input, p.output, p.window);
  layer.row_average_stride = p.prologue.row_average_stride;
  layer.prologue = stage_of(p.prologue), layer.epilogue = stage_of(p.epilogue);
  layer.has_residual = p.epilogue.residual.data != nullptr;
  return layer;
}
sepconv_row_average_conv2d_data data_of(const RowAverageConv2dParams& p) {
  return {p.input.data,     p.weight,         p.prologue.scale,         p.prologue.shift,
          p.epilogue.scale, p.epilogue.shift, p.epilogue.residual.data, p.output.data};
}
void dense(const RowAverageConv2dParams& p, const Parallel& parallel) {
  const sepconv_row_average_conv2d layer = layer_of(p);
  const sepconv_row_average_conv2d_data data = data_of(p);
  sepconv_plan plan;
  must(sepconv_plan_row_average_conv2d(&layer, parallel.threads, &plan));
  run_planned(plan, parallel, [&](const sepconv_resources* resources) {
    return sepconv_run_row_average_conv2d(&plan, &data, resources);
  });
}
void dense_backward(const RowAverageConv2dBackwardParams& q, const Parallel& parallel) {
  const sepconv_row_average_conv2d layer = layer_of(q.forward);
  const sepconv_row_average_conv2d_data data = data_of(q.forward);
  const sepconv_row_average_conv2d_gradients gradients{q.grad_input.data, q.grad_weight, q.grad_bias};
  const unsigned wanted = flag(gradients.input, SEPCONV_GRAD_INPUT) |
                          flag(gradients.weight, SEPCONV_GRAD_WEIGHT) |
                          flag(gradients.bias, SEPCONV_GRAD_BIAS);
  if (wanted == 0) return;
  sepconv_plan plan;
  must(sepconv_plan_row_average_conv2d_backward(&layer, wanted, parallel.threads, &plan));
  run_planned(plan, parallel, [&](const sepconv_resources* resources) {
    return sepconv_run_row_average_conv2d_backward(&plan, &data, q.forward.output.data, &gradients,
                                                   resources);
  });
}

}  // namespace

int main(int argc, char** argv) {
  sweep({forward, backward, average, average_backward, dense, dense_backward, packed_bytes, pack, true},
        argc > 1 ? std::atoll(argv[1]) : 240, argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  std::printf(kCountsAllocations
                  ? "no run allocated memory\n"
                  : "allocations were not counted: a sanitizer or C library has its own malloc\n");
}
