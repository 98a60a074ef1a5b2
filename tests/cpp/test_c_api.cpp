// The C API's manners: every error has its status and a message that names the argument; threads of any kind
// give the same bits; a workspace one byte too small is refused. What it computes is in test_c_api_sweep.cpp.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"
#include "include/sepconv.h"

namespace {

int failures = 0;

void expect(bool holds, const std::string& what, const std::string& got = "") {
  if (holds) return;
  std::printf("%s%s\n", what.c_str(), got.empty() ? "" : (": got " + got).c_str());
  ++failures;
}

void must(sepconv_status status) {
  if (status == SEPCONV_OK) return;
  std::printf("%s\n", sepconv_last_error());
  std::exit(1);
}

// A status and what the message has to contain.
void expect_error(sepconv_status got, sepconv_status wanted, const char* part) {
  const std::string message = sepconv_last_error();
  expect(got == wanted && message.find(part) != std::string::npos && message.rfind("sepconv_", 0) == 0,
         "wanted status " + std::to_string(wanted) + " and '" + part + "'",
         std::to_string(got) + " and '" + message + "'");
}

// --- Calls that are right until a test changes something -------------------------------------------------

std::vector<float> ramp(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 7 % 23) / 8 - 1;
  return values;
}

struct Aligned {
  explicit Aligned(size_t bytes) : data(std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free) {}
  std::unique_ptr<void, decltype(&std::free)> data;
};

struct Separable {
  static constexpr int64_t kN = 2, kC = 24, kH = 13, kW = 17, kM = 2, kOut = 70;
  sepconv_separable_conv2d layer;
  std::vector<float> x = ramp(kN * kC * kH * kW), dw = ramp(kC * kM * 9), pw = ramp(kOut * kC * kM),
                     db = ramp(kC * kM), pb = ramp(kOut), y = ramp(kN * kOut * kH * kW);
  std::vector<float> gx = x, gdw = dw, gpw = pw, gdb = db, gpb = pb;
  std::vector<char> workspace;
  sepconv_separable_conv2d_data data{};
  sepconv_separable_conv2d_gradients gradients{};
  sepconv_resources resources{};
  sepconv_plan plan{};
  int threads = 1;
  unsigned wanted = 31;

  Separable() {
    sepconv_init_separable_conv2d(&layer);
    layer.batch = kN, layer.in_channels = kC, layer.height = kH, layer.width = kW;
    layer.out_channels = kOut, layer.depth_multiplier = kM;
    layer.window = {{3, 3}, {1, 1}, {1, 1}, {1, 1}};
    layer.prologue.activation = SEPCONV_RELU;
    layer.middle.has_shift = layer.epilogue.has_shift = 1;
    data.input = x.data(), data.depthwise_weight = dw.data(), data.pointwise_weight = pw.data();
    data.middle_shift = db.data(), data.epilogue_shift = pb.data(), data.output = y.data();
    gradients = {gx.data(), gdw.data(), gpw.data(), gdb.data(), gpb.data()};
  }
  sepconv_status make_plan() { return sepconv_plan_separable_conv2d(&layer, threads, &plan); }
  sepconv_status make_backward_plan() {
    return sepconv_plan_separable_conv2d_backward(&layer, wanted, threads, &plan);
  }
  void lend() {
    workspace.assign(plan.workspace_bytes, 0);
    resources.workspace = workspace.data(), resources.workspace_bytes = workspace.size();
  }
  sepconv_status run() { return sepconv_run_separable_conv2d(&plan, &data, &resources); }
  sepconv_status run_backward() {
    return sepconv_run_separable_conv2d_backward(&plan, &data, y.data(), &gradients, &resources);
  }
};

struct Dense {
  static constexpr int64_t kN = 2, kC = 3, kH = 31, kW = 34, kOut = 65;
  sepconv_row_average_conv2d layer;
  std::vector<float> x = ramp(kN * kC * kH * kW), w = ramp(kOut * kC * 9), b = ramp(kOut),
                     y = ramp(kN * kOut * 15 * 16);
  std::vector<float> gx = x, gw = w, gb = b;
  std::vector<char> workspace;
  sepconv_row_average_conv2d_data data{};
  sepconv_row_average_conv2d_gradients gradients{gx.data(), gw.data(), gb.data()};
  sepconv_resources resources{};
  sepconv_plan plan{};
  int threads = 1;

  Dense() {
    sepconv_init_row_average_conv2d(&layer);
    layer.batch = kN, layer.in_channels = kC, layer.height = kH, layer.width = kW, layer.out_channels = kOut;
    layer.window = {{3, 3}, {2, 2}, {0, 0}, {1, 1}};
    layer.epilogue.has_shift = 1;
    data.input = x.data(), data.weight = w.data(), data.epilogue_shift = b.data(), data.output = y.data();
  }
  sepconv_status make_plan() { return sepconv_plan_row_average_conv2d(&layer, threads, &plan); }
  sepconv_status make_backward_plan() {
    return sepconv_plan_row_average_conv2d_backward(&layer, 7, threads, &plan);
  }
  void lend() {
    workspace.assign(plan.workspace_bytes, 0);
    resources.workspace = workspace.data(), resources.workspace_bytes = workspace.size();
  }
  sepconv_status run() { return sepconv_run_row_average_conv2d(&plan, &data, &resources); }
  sepconv_status run_backward() {
    return sepconv_run_row_average_conv2d_backward(&plan, &data, y.data(), &gradients, &resources);
  }
};

struct Average {
  sepconv_row_average average{SEPCONV_FLOAT32, SEPCONV_NCHW, 2, 5, 9, 11, 2};
  std::vector<float> x = ramp(2 * 5 * 9 * 11), y = ramp(2 * 5 * 5 * 11);
  std::vector<char> workspace;
  sepconv_resources resources{};
  sepconv_plan plan{};
  int threads = 1;

  sepconv_status make_plan() { return sepconv_plan_row_average(&average, threads, &plan); }
  sepconv_status make_backward_plan() { return sepconv_plan_row_average_backward(&average, threads, &plan); }
  void lend() {
    workspace.assign(plan.workspace_bytes, 0);
    resources.workspace = workspace.data(), resources.workspace_bytes = workspace.size();
  }
  sepconv_status run() { return sepconv_run_row_average(&plan, x.data(), y.data(), &resources); }
  sepconv_status run_backward() {
    return sepconv_run_row_average_backward(&plan, y.data(), x.data(), &resources);
  }
};

// --- Descriptions ----------------------------------------------------------------------------------------

template <class Call>
struct Wrong {
  std::function<void(Call&)> change;
  sepconv_status status;
  const char* message;
};
// As a C program may set an enumerator.
template <class Enumerator>
void set(Enumerator& to, int value) {
  std::memcpy(&to, &value, sizeof(value));
}

constexpr sepconv_status kInvalid = SEPCONV_INVALID_ARGUMENT;
constexpr int64_t kHuge = int64_t{1} << 40;

void wrong_separable_descriptions() {
  const std::vector<Wrong<Separable>> both = {
      {[](auto& c) { set(c.layer.dtype, 4); }, kInvalid, "dtype must be between 0 and 3, got 4"},
      {[](auto& c) { set(c.layer.layout, 2); }, kInvalid, "layout must be between 0 and 1, got 2"},
      {[](auto& c) { c.layer.batch = -1; }, kInvalid, "batch must be at least 0, got -1"},
      {[](auto& c) { c.layer.in_channels = 0; }, kInvalid, "in_channels must be at least 1, got 0"},
      {[](auto& c) { c.layer.height = -5; }, kInvalid, "height must be at least 1, got -5"},
      {[](auto& c) { c.layer.width = 0; }, kInvalid, "width must be at least 1, got 0"},
      {[](auto& c) { c.layer.out_channels = 0; }, kInvalid, "out_channels must be at least 1, got 0"},
      {[](auto& c) { c.layer.depth_multiplier = 0; }, kInvalid, "depth_multiplier must be at least 1, got 0"},
      {[](auto& c) { c.layer.window.kernel[1] = 0; }, kInvalid,
       "window.kernel must be between 1 and 2147483647, got (3, 0)"},
      {[](auto& c) { c.layer.window.stride[0] = 0; }, kInvalid, "window.stride must be"},
      {[](auto& c) { c.layer.window.padding[0] = -1; }, kInvalid,
       "window.padding must be between 0 and 2147483647, got (-1, 1)"},
      {[](auto& c) { c.layer.window.dilation[1] = int64_t{1} << 31; }, kInvalid, "window.dilation must be"},
      {[](auto& c) { c.layer.window.kernel[0] = 16; }, kInvalid,
       "the dilated kernel must not be larger than the padded input, got input (13, 17), kernel (16, 3)"},
      {[](auto& c) { c.layer.row_average_stride = -1; }, kInvalid, "row_average_stride must be"},
      {[](auto& c) { set(c.layer.prologue.activation, 9); }, kInvalid,
       "prologue.activation must be between 0 and 3, got 9"},
      {[](auto& c) { c.layer.middle.has_scale = 2; }, kInvalid,
       "middle.has_scale, has_shift and wide must be 0 or 1, got 2, 1 and 0"},
      {[](auto& c) { c.layer.epilogue.wide = -1; }, kInvalid, "epilogue.has_scale, has_shift and wide"},
      {[](auto& c) { c.layer.has_residual = 5; }, kInvalid, "has_residual must be between 0 and 1, got 5"},
      {[](auto& c) { c.layer.has_packed_weights = -1; }, kInvalid, "has_packed_weights must be"},
      {[](auto& c) { c.threads = 0; }, kInvalid, "threads must be between 1 and 1024, got 0"},
      {[](auto& c) { c.threads = 1025; }, kInvalid, "threads must be between 1 and 1024, got 1025"},
      {[](auto& c) { c.layer.depth_multiplier = INT64_MAX; }, SEPCONV_OVERFLOW,
       "in_channels * depth_multiplier must be below 2^63"},
      {[](auto& c) { c.layer.in_channels = kHuge, c.layer.depth_multiplier = 1 << 10; }, SEPCONV_OVERFLOW,
       "depthwise_weight of shape (1125899906842624, 1, 3, 3) must have at most"},
      {[](auto& c) { c.layer.out_channels = int64_t{1} << 62; }, SEPCONV_OVERFLOW,
       "pointwise_weight of shape"},
      {[](auto& c) { c.layer.batch = INT64_MAX; }, SEPCONV_OVERFLOW, "input of shape (9223372036854775807, "},
      {[](auto& c) { c.layer.height = c.layer.width = int64_t{1} << 62; }, SEPCONV_OVERFLOW,
       "input of shape"},
      {[](auto& c) { c.layer.window.padding[0] = c.layer.window.padding[1] = INT32_MAX; }, SEPCONV_OVERFLOW,
       "the padded input of shape"},
      {[](auto& c) {
         sepconv_init_separable_conv2d(&c.layer);
         c.layer.batch = 1, c.layer.height = 4096, c.layer.width = 2048;
         c.layer.in_channels = c.layer.out_channels = 1 << 23;
       },
       SEPCONV_OVERFLOW, "multiply-adds"},
      {[](auto& c) {
         sepconv_init_separable_conv2d(&c.layer);
         c.layer.batch = c.layer.height = c.layer.width = c.layer.in_channels = c.layer.out_channels = 1;
         c.layer.depth_multiplier = (1 << 24) - 16;
         c.layer.window = {{2, 2}, {1, 1}, {1 << 19, 1 << 17}, {(1 << 20) - 4, 1}};
       },
       SEPCONV_OVERFLOW, "the padded rows with all their depthwise channels must be"}};
  for (const auto& wrong : both) {
    for (const bool backward : {false, true}) {
      Separable call;
      wrong.change(call);
      const sepconv_plan before = call.plan;
      expect_error(backward ? call.make_backward_plan() : call.make_plan(), wrong.status, wrong.message);
      expect(std::memcmp(&before, &call.plan, sizeof before) == 0, "a plan was written", wrong.message);
    }
  }
  const std::vector<Wrong<Separable>> backward = {
      {[](auto& c) { c.layer.row_average_stride = 1; }, kInvalid,
       "row_average_stride must be 0 in a backward"},
      {[](auto& c) { c.layer.prologue.activation = SEPCONV_HARD_SWISH; }, kInvalid, "got hard swish"},
      {[](auto& c) { c.layer.middle.activation = SEPCONV_RELU; }, kInvalid,
       "middle must have neither scale nor activation in a backward, got has_scale 0 and activation 1"},
      {[](auto& c) { c.layer.epilogue.has_scale = 1; }, kInvalid, "epilogue must have neither"},
      {[](auto& c) { c.layer.has_residual = 1; }, kInvalid, "has_residual must be 0 in a backward"},
      {[](auto& c) { c.layer.has_packed_weights = 1; }, kInvalid, "has_packed_weights must be 0"},
      {[](auto& c) { c.wanted = 0; }, kInvalid, "gradients must be between 1 and 31, got 0"},
      {[](auto& c) { c.wanted = 32; }, kInvalid, "gradients must be between 1 and 31, got 32"}};
  for (const auto& wrong : backward) {
    Separable call;
    wrong.change(call);
    expect_error(call.make_backward_plan(), wrong.status, wrong.message);
  }
  Separable call;
  expect_error(sepconv_plan_separable_conv2d(nullptr, 1, &call.plan), kInvalid, "layer must not be null");
  expect_error(sepconv_plan_separable_conv2d(&call.layer, 1, nullptr), kInvalid, "plan must not be null");
  expect_error(sepconv_plan_separable_conv2d_backward(nullptr, 1, 1, &call.plan), kInvalid, "layer must");
  sepconv_init_separable_conv2d(nullptr);
}

void wrong_dense_descriptions() {
  const std::vector<Wrong<Dense>> both = {
      {[](auto& c) { set(c.layer.dtype, -1); }, kInvalid, "dtype must be"},
      {[](auto& c) { set(c.layer.layout, 7); }, kInvalid, "layout must be"},
      {[](auto& c) { c.layer.in_channels = 0; }, kInvalid, "in_channels must be at least 1, got 0"},
      {[](auto& c) { c.layer.out_channels = -2; }, kInvalid, "out_channels must be at least 1, got -2"},
      {[](auto& c) { c.layer.window.dilation[0] = 0; }, kInvalid, "window.dilation must be"},
      {[](auto& c) { c.layer.row_average_stride = -1; }, kInvalid, "row_average_stride must be"},
      {[](auto& c) { c.layer.row_average_stride = 16; }, kInvalid, "got input (2, 34), kernel (3, 3)"},
      {[](auto& c) { c.layer.epilogue.has_shift = 3; }, kInvalid, "epilogue.has_scale, has_shift"},
      {[](auto& c) { c.threads = -1; }, kInvalid, "threads must be"},
      {[](auto& c) { c.layer.out_channels = int64_t{1} << 62; }, SEPCONV_OVERFLOW, "weight of shape"},
      {[](auto& c) { c.layer.batch = kHuge; }, SEPCONV_OVERFLOW,
       "input of shape (1099511627776, 3, 31, 34)"}};
  for (const auto& wrong : both)
    for (const bool backward : {false, true}) {
      Dense call;
      wrong.change(call);
      expect_error(backward ? call.make_backward_plan() : call.make_plan(), wrong.status, wrong.message);
    }
  const std::vector<Wrong<Dense>> backward = {
      {[](auto& c) { c.layer.prologue.has_shift = 1; }, kInvalid, "prologue must be empty in a backward"},
      {[](auto& c) { c.layer.epilogue.activation = SEPCONV_RELU6; }, kInvalid, "epilogue must have neither"},
      {[](auto& c) { c.layer.has_residual = 1; }, kInvalid, "has_residual must be 0 in a backward"}};
  for (const auto& wrong : backward) {
    Dense call;
    wrong.change(call);
    expect_error(call.make_backward_plan(), wrong.status, wrong.message);
  }
  Dense call;
  expect_error(sepconv_plan_row_average_conv2d_backward(&call.layer, 8, 1, &call.plan), kInvalid,
               "gradients must be between 1 and 7, got 8");
  expect_error(sepconv_plan_row_average_conv2d(nullptr, 1, &call.plan), kInvalid, "layer must not be null");
  sepconv_init_row_average_conv2d(nullptr);
}

void wrong_average_descriptions() {
  const std::vector<Wrong<Average>> both = {
      {[](auto& c) { c.average.row_stride = 0; }, kInvalid, "row_stride must be at least 1, got 0"},
      {[](auto& c) { c.average.channels = 0; }, kInvalid, "channels must be at least 1, got 0"},
      {[](auto& c) { c.average.batch = -1; }, kInvalid, "batch must be at least 0, got -1"},
      {[](auto& c) { c.average.width = INT64_MAX; }, SEPCONV_OVERFLOW, "input of shape"},
      {[](auto& c) { c.threads = 0; }, kInvalid, "threads must be"}};
  for (const auto& wrong : both)
    for (const bool backward : {false, true}) {
      Average call;
      wrong.change(call);
      expect_error(backward ? call.make_backward_plan() : call.make_plan(), wrong.status, wrong.message);
    }
  Average call;
  expect_error(sepconv_plan_row_average(nullptr, 1, &call.plan), kInvalid, "average must not be null");
  expect_error(sepconv_plan_row_average_backward(&call.average, 1, nullptr), kInvalid,
               "plan must not be null");
}

// --- Data ------------------------------------------------------------------------------------------------

void wrong_data() {
  const std::vector<Wrong<Separable>> forward = {
      {[](auto& c) { c.data.input = nullptr; }, kInvalid, "data->input must not be null"},
      {[](auto& c) { c.data.output = nullptr; }, kInvalid, "data->output must not be null"},
      {[](auto& c) { c.data.depthwise_weight = nullptr; }, kInvalid,
       "data->depthwise_weight must not be null: the plan has it"},
      {[](auto& c) { c.data.pointwise_weight = nullptr; }, kInvalid,
       "data->pointwise_weight must not be null"},
      {[](auto& c) { c.data.packed_weights = c.x.data(); }, kInvalid,
       "data->packed_weights must be null: the plan has none"},
      {[](auto& c) { c.data.prologue_scale = c.x.data(); }, kInvalid,
       "data->prologue_scale must be null: the plan has none"},
      {[](auto& c) { c.data.middle_shift = nullptr; }, kInvalid, "data->middle_shift must not be null"},
      {[](auto& c) { c.data.epilogue_shift = nullptr; }, kInvalid, "data->epilogue_shift must not be null"},
      {[](auto& c) { c.data.residual = c.x.data(); }, kInvalid, "data->residual must be null"},
      {[](auto& c) { c.resources.workspace = nullptr; }, kInvalid, "resources->workspace must not be null"},
      {[](auto& c) { c.resources.workspace_bytes -= 1; }, SEPCONV_WORKSPACE_TOO_SMALL,
       "resources->workspace_bytes must be at least "}};
  for (const auto& wrong : forward) {
    Separable call;
    must(call.make_plan());
    call.lend();
    wrong.change(call);
    const std::vector<float> before = call.y;
    expect_error(call.run(), wrong.status, wrong.message);
    expect(call.y == before, "output was written", wrong.message);
  }
  const std::vector<Wrong<Separable>> backward = {
      {[](auto& c) { c.gradients.input = nullptr; }, kInvalid,
       "gradients->input must not be null: the plan has it"},
      {[](auto& c) { c.gradients.pointwise_bias = nullptr; }, kInvalid, "gradients->pointwise_bias must not"},
      {[](auto& c) { c.data.input = nullptr; }, kInvalid, "data->input must not be null"},
      {[](auto& c) { c.data.middle_shift = nullptr; }, kInvalid, "data->middle_shift must not be null"},
      {[](auto& c) { c.resources.workspace_bytes = 0; }, SEPCONV_WORKSPACE_TOO_SMALL, "got 0"}};
  for (const auto& wrong : backward) {
    Separable call;
    must(call.make_backward_plan());
    call.lend();
    wrong.change(call);
    expect_error(call.run_backward(), wrong.status, wrong.message);
  }
  Separable call;
  call.wanted = SEPCONV_GRAD_INPUT;
  must(call.make_backward_plan());
  call.lend();
  expect_error(call.run_backward(), kInvalid, "gradients->depthwise_weight must be null: the plan has none");
  expect_error(sepconv_run_separable_conv2d_backward(&call.plan, &call.data, nullptr, &call.gradients,
                                                     &call.resources),
               kInvalid, "grad_output must not be null");
  expect_error(
      sepconv_run_separable_conv2d_backward(&call.plan, &call.data, call.y.data(), nullptr, &call.resources),
      kInvalid, "gradients must not be null");
  must(call.make_plan());
  call.lend();
  expect_error(sepconv_run_separable_conv2d(nullptr, &call.data, &call.resources), kInvalid, "plan must not");
  expect_error(sepconv_run_separable_conv2d(&call.plan, nullptr, &call.resources), kInvalid, "data must not");
  expect_error(sepconv_run_separable_conv2d(&call.plan, &call.data, nullptr), kInvalid, "resources must not");

  Dense dense;
  must(dense.make_plan());
  dense.lend();
  dense.data.weight = nullptr;
  expect_error(dense.run(), kInvalid, "data->weight must not be null");
  dense.resources.workspace_bytes = 1;
  expect_error(dense.run(), SEPCONV_WORKSPACE_TOO_SMALL, "got 1");
  Average average;
  must(average.make_plan());
  average.lend();
  expect_error(sepconv_run_row_average(&average.plan, nullptr, average.y.data(), &average.resources),
               kInvalid, "input must not be null");
  expect_error(sepconv_run_row_average(&average.plan, average.x.data(), nullptr, &average.resources),
               kInvalid, "output must not be null");
}

void wrong_plans() {
  Separable call;
  must(call.make_plan());
  call.lend();
  expect_error(call.run_backward(), SEPCONV_PLAN_MISMATCH, "plan must be one that the function of the same");
  expect_error(sepconv_run_row_average(&call.plan, call.x.data(), call.y.data(), &call.resources),
               SEPCONV_PLAN_MISMATCH, "another one");
  const sepconv_plan empty{};
  expect_error(sepconv_run_separable_conv2d(&empty, &call.data, &call.resources), SEPCONV_PLAN_MISMATCH,
               "another one");
  const std::string best = sepconv_cpu_capability();
  must(sepconv_set_cpu_capability("scalar"));
  if (best != "scalar")
    expect_error(call.run(), SEPCONV_PLAN_MISMATCH,
                 "plan must be for the instruction set in use, scalar, got");
  must(sepconv_set_cpu_capability(best.c_str()));
  must(call.run());
  expect_error(sepconv_set_cpu_capability("mmx"), kInvalid, "got 'mmx'");
  expect_error(sepconv_set_cpu_capability(nullptr), kInvalid, "name must not be null");
  // Its fifth word is what a thread needs: no plan that the library writes lies about it.
  sepconv_plan lying = call.plan;
  lying.internal[4] = 0;
  expect_error(sepconv_run_separable_conv2d(&lying, &call.data, &call.resources), SEPCONV_INTERNAL_ERROR,
               "a task failed");
}

void packed_weights() {
  Separable call;
  must(call.make_plan());
  call.lend();
  must(call.run());
  const std::vector<float> plain = call.y;

  size_t bytes = 0;
  must(sepconv_packed_bytes_of_separable_conv2d(&call.layer, &bytes));
  const Aligned memory(bytes), other(bytes + 64);
  char* packed = static_cast<char*>(memory.data.get());
  const auto pack = [&](void* to, size_t size) {
    return sepconv_pack_separable_conv2d(&call.layer, call.dw.data(), call.pw.data(), to, size);
  };
  expect_error(pack(packed, bytes - 1), SEPCONV_WORKSPACE_TOO_SMALL, "packed_bytes must be at least");
  expect_error(pack(packed + 4, bytes), kInvalid, "packed must be aligned to 64 bytes, got 0x");
  expect_error(pack(nullptr, bytes), kInvalid, "packed must not be null");
  expect_error(sepconv_pack_separable_conv2d(&call.layer, nullptr, call.pw.data(), packed, bytes), kInvalid,
               "depthwise_weight must not be null");
  expect_error(sepconv_packed_bytes_of_separable_conv2d(&call.layer, nullptr), kInvalid, "bytes must not");
  must(pack(packed, bytes));

  call.layer.has_packed_weights = 1;
  call.data.depthwise_weight = call.data.pointwise_weight = nullptr;
  call.data.packed_weights = packed, call.data.packed_bytes = bytes;
  must(call.make_plan());
  call.lend();
  std::fill(call.y.begin(), call.y.end(), 0.f);
  must(call.run());
  expect(call.y == plain, "packed weights give other bits than plain ones");

  const auto expect_refused = [&](const char* message) {
    expect_error(call.run(), SEPCONV_PACKED_MISMATCH, message);
  };
  call.data.packed_bytes = 3;
  expect_refused("must be what sepconv_pack_separable_conv2d made");
  call.data.packed_bytes = bytes - 64;
  expect_refused("data->packed_bytes must be");
  call.data.packed_bytes = bytes;
  char* moved = static_cast<char*>(other.data.get()) + 4;
  std::memcpy(moved, packed, bytes);
  call.data.packed_weights = moved;
  expect_error(call.run(), kInvalid, "data->packed_weights must be aligned to 64 bytes");
  call.data.packed_weights = packed;
  packed[0] = 'S';
  expect_refused("must be what sepconv_pack_separable_conv2d made");
  packed[0] = 's';

  sepconv_separable_conv2d another = call.layer;
  another.out_channels -= 1;
  must(sepconv_pack_separable_conv2d(&another, call.dw.data(), call.pw.data(), packed, bytes));
  expect_refused("70 after them and a 3x3 kernel, got 48, 69 and 3x3");
  another = call.layer, another.dtype = SEPCONV_BFLOAT16;
  must(sepconv_pack_separable_conv2d(&another, call.dw.data(), call.pw.data(), packed, bytes));
  expect_refused("must hold weights of dtype 0, got 2");
  const std::string best = sepconv_cpu_capability();
  if (best == "scalar") return;
  must(sepconv_set_cpu_capability("scalar"));
  size_t scalar_bytes = 0;
  must(sepconv_packed_bytes_of_separable_conv2d(&call.layer, &scalar_bytes));
  const Aligned scalar(scalar_bytes);
  must(pack(scalar.data.get(), scalar_bytes));
  must(sepconv_set_cpu_capability(best.c_str()));
  call.data.packed_weights = scalar.data.get(), call.data.packed_bytes = scalar_bytes;
  expect_refused("got scalar: pack the weights again");
}

// --- Threads ---------------------------------------------------------------------------------------------

void last_first(void* calls, int64_t count, sepconv_task task, void* task_context) {
  ++*static_cast<int*>(calls);
  for (int64_t i = count - 1; i >= 0; --i) task(task_context, i);
}
void at_once(void* calls, int64_t count, sepconv_task task, void* task_context) {
  ++*static_cast<int*>(calls);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(task, task_context, i);
  for (std::thread& thread : threads) thread.join();
}
void all_but_last(void*, int64_t count, sepconv_task task, void* task_context) {
  for (int64_t i = 0; i + 1 < count; ++i) task(task_context, i);
}
void strangers(void*, int64_t count, sepconv_task task, void* task_context) {
  for (const int64_t i : {int64_t{-1}, count, INT64_MAX}) task(task_context, i);
}
void first_again(void*, int64_t count, sepconv_task task, void* task_context) {
  for (int64_t i = 0; i < count; ++i) task(task_context, 0);
}

// One result for the library's own threads and the caller's, and for one, two and three of them.
template <class Call, class Results>
void same_bits(const char* what, sepconv_status (Call::*plan)(), sepconv_status (Call::*run)(),
               Results results) {
  std::vector<std::vector<float>> first;
  int calls = 0;
  for (const int threads : {1, 2, 3})
    for (const sepconv_parallel_for parallel_for : {sepconv_parallel_for{}, last_first, at_once}) {
      Call call;
      call.threads = threads;
      must((call.*plan)());
      call.lend();
      call.resources.parallel_for = parallel_for, call.resources.context = &calls;
      for (auto* result : results(call)) std::fill(result->begin(), result->end(), 0.f);
      must((call.*run)());
      std::vector<std::vector<float>> got;
      for (auto* result : results(call)) got.push_back(*result);
      if (first.empty()) first = got;
      expect(got == first, std::string(what) + ": other bits with another number of threads",
             std::to_string(threads));
    }
  expect(calls > 0, std::string(what) + ": no parallel_for was called");
}

void threads() {
  using Vectors = std::vector<std::vector<float>*>;
  same_bits("separable_conv2d", &Separable::make_plan, &Separable::run,
            [](Separable& c) { return Vectors{&c.y}; });
  same_bits("row_average_conv2d", &Dense::make_plan, &Dense::run, [](Dense& c) { return Vectors{&c.y}; });
  same_bits("row_average", &Average::make_plan, &Average::run, [](Average& c) { return Vectors{&c.y}; });
  same_bits("separable_conv2d_backward", &Separable::make_backward_plan, &Separable::run_backward,
            [](Separable& c) { return Vectors{&c.gx, &c.gdw, &c.gpw, &c.gdb, &c.gpb}; });
  same_bits("row_average_conv2d_backward", &Dense::make_backward_plan, &Dense::run_backward,
            [](Dense& c) { return Vectors{&c.gx, &c.gw, &c.gb}; });
  same_bits("row_average_backward", &Average::make_backward_plan, &Average::run_backward,
            [](Average& c) { return Vectors{&c.x}; });

  for (const sepconv_parallel_for broken : {all_but_last, strangers, first_again}) {
    Separable call;
    call.threads = 3;
    must(call.make_plan());
    call.lend();
    call.resources.parallel_for = broken;
    expect_error(call.run(), SEPCONV_PARALLEL_FOR_FAILED,
                 "resources.parallel_for must run its task once for each index");
  }
}

// --- Memory ----------------------------------------------------------------------------------------------

void memory() {
  Separable call;
  sepconv_plan one = {};
  must(call.make_plan());
  one = call.plan;
  call.threads = 4;
  must(call.make_plan());
  expect(call.plan.workspace_bytes > one.workspace_bytes, "four threads need no more workspace than one");
  call.layer.batch = 0;
  call.threads = 1;
  must(call.make_plan());
  expect(call.plan.workspace_bytes == 0, "an empty batch needs workspace");
  call.data.input = call.data.output = nullptr;
  must(call.run());
  call.layer.batch = 0;
  must(call.make_backward_plan());
  must(call.run_backward());
  expect(call.gpw == std::vector<float>(call.gpw.size()), "weight gradients of an empty batch are not zero");
  Average average;  // rows of whole planes need none
  must(average.make_plan());
  expect(average.plan.workspace_bytes == 0, "a row average needs workspace");
  average.lend();
  must(average.run());
  const std::vector<float> lent = average.y;
  std::fill(average.y.begin(), average.y.end(), -1.f);
  average.resources = {};
  must(average.run());
  expect(average.y == lent, "a run without workspace gives something else");
  if (!kCountsAllocations) {
    std::printf("out of memory: not tested, the malloc here is not the test's\n");
    return;
  }
  Separable starved;
  out_of_memory = true;
  const sepconv_status status = starved.make_plan();
  out_of_memory = false;
  expect_error(status, SEPCONV_OUT_OF_MEMORY, "there is not enough memory");
}

void messages() {
  std::string other = "never asked";
  std::thread([&] { other = sepconv_last_error(); }).join();
  expect(other.empty(), "another thread's last error", other);
  Average call;
  call.average.row_stride = -3;
  expect_error(call.make_plan(), kInvalid, "sepconv_plan_row_average: row_stride must be at least 1, got -3");
  expect(std::string(sepconv_version()).find('.') != std::string::npos, "version", sepconv_version());
}

}  // namespace

int main() {
  wrong_separable_descriptions();
  wrong_dense_descriptions();
  wrong_average_descriptions();
  wrong_data();
  wrong_plans();
  packed_weights();
  threads();
  memory();
  messages();
  if (failures == 0) std::printf("errors are named, threads agree, memory is the caller's\n");
  return failures == 0 ? 0 : 1;
}
