#include "core/row_average.h"

#include "capi/checks.h"
#include "capi/images.h"
#include "capi/plan.h"
#include "capi/workspace.h"

namespace sepconv::capi {
namespace {

using Average = sepconv_row_average;

bool check_average(Checks& checks, const Average* average, int threads) {
  return checks.not_null("average", average) && checks.dtype(average->dtype) &&
         checks.layout(average->layout) && checks.at_least("batch", average->batch, 0) &&
         checks.at_least("channels", average->channels, 1) && checks.at_least("height", average->height, 1) &&
         checks.at_least("width", average->width, 1) &&
         checks.at_least("row_stride", average->row_stride, 1) && check_threads(checks, threads) &&
         checks.countable("input", {average->batch, average->channels, average->height, average->width},
                          static_cast<DType>(average->dtype));
}

// The whole image and the averaged one; the forward reads the first, the backward the second.
RowAverageParams params_of(const Average& a, bool backward, const void* from, void* to) {
  const auto image = [&](const void* data, int64_t rows) {
    return image_of(a.layout, data, a.batch, a.channels, rows, a.width);
  };
  const int64_t averaged = row_average_size(a.height, a.row_stride);
  RowAverageParams params;
  params.dtype = static_cast<DType>(a.dtype);
  params.row_stride = std::min(a.row_stride, a.height);  // a larger one leaves one row, too
  params.input = image(from, backward ? averaged : a.height);
  params.output = image(to, backward ? a.height : averaged);
  return params;
}

void call(bool backward, const RowAverageParams& params, const Parallel& parallel) {
  backward ? row_average_backward(params, parallel) : row_average(params, parallel);
}

sepconv_status plan_average(Checks& checks, bool backward, const Average* average, int threads,
                            sepconv_plan* plan) {
  if (!((!backward || checks.backward()) && checks.not_null("plan", plan) &&
        check_average(checks, average, threads)))
    return checks.status();
  const RowAverageParams params = params_of(*average, backward, announced(true), announced(true));
  return write_plan(checks, backward ? Operation::kRowAverageBackward : Operation::kRowAverage, *average, 0,
                    threads, {row_average_size(average->height, average->row_stride), average->width}, plan,
                    [&](const Parallel& parallel) { call(backward, params, parallel); });
}

sepconv_status run_average(Checks& checks, bool backward, const sepconv_plan* plan, const char* from_name,
                           const void* from, const char* to_name, void* to,
                           const sepconv_resources* resources) {
  Planned<Average> planned;
  if (!read_plan(checks, backward ? Operation::kRowAverageBackward : Operation::kRowAverage, plan, resources,
                 planned))
    return checks.status();
  const Average& average = planned.description;
  if (average.batch != 0 && !(checks.not_null(from_name, from) && checks.not_null(to_name, to)))
    return checks.status();
  const RowAverageParams params = params_of(average, backward, from, to);
  return run_plan(checks, planned, *resources,
                  [&](const Parallel& parallel) { call(backward, params, parallel); });
}

}  // namespace
}  // namespace sepconv::capi

using namespace sepconv::capi;

sepconv_status sepconv_plan_row_average(const sepconv_row_average* average, int threads, sepconv_plan* plan) {
  Checks checks("sepconv_plan_row_average");
  return plan_average(checks, false, average, threads, plan);
}

sepconv_status sepconv_run_row_average(const sepconv_plan* plan, const void* input, void* output,
                                       const sepconv_resources* resources) {
  Checks checks("sepconv_run_row_average");
  return run_average(checks, false, plan, "input", input, "output", output, resources);
}

sepconv_status sepconv_plan_row_average_backward(const sepconv_row_average* average, int threads,
                                                 sepconv_plan* plan) {
  Checks checks("sepconv_plan_row_average_backward");
  return plan_average(checks, true, average, threads, plan);
}

sepconv_status sepconv_run_row_average_backward(const sepconv_plan* plan, const void* grad_output,
                                                void* grad_input, const sepconv_resources* resources) {
  Checks checks("sepconv_run_row_average_backward");
  return run_average(checks, true, plan, "grad_output", grad_output, "grad_input", grad_input, resources);
}
