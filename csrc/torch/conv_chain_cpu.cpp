// A chain of units, [activation ->] convolution -> batch norm, with an activation after the last: one
// operator in training. What a unit produces is kept raw; its batch norm is applied when the next unit loads
// it.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <utility>

#include "core/batch_norm.h"
#include "core/separable_conv2d.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

using Tensors = std::vector<Tensor>;

enum Kind : int64_t { kDepthwise = 1, kPointwise = 2 };  // bits; none of them: batch norm alone
enum Statistic { kMean, kInverseStd, kScale, kShift, kStatistics };

// The weights are owned here while the core points into them.
struct Unit {
  Activation activation;  // before the convolution
  bool convolves;
  DType dtype;
  Window window;
  Sizes input, output;
  Tensor depthwise_weight, pointwise_weight, weight, bias;  // the last two: batch norm's
  size_t first_parameter;                                   // of the list that the caller gave
  int64_t statistics;                                       // where this unit's begin

  int64_t channels() const { return output[1]; }
  // Whether the result takes no more memory than training has for the weights, their gradient and an
  // optimizer's two moments: on small maps it costs little to keep, and a product with all the weights to
  // compute again.
  bool is_small() const {
    constexpr int64_t kCopiesOfWeights = 4;
    const auto [n, c, h, w] = output;
    return pointwise_weight.defined() && n * h * w <= kCopiesOfWeights * pointwise_weight.size(1);
  }
  // With neither image.
  SeparableConv2dParams convolution() const {
    SeparableConv2dParams params;
    params.dtype = dtype;
    params.window = window;
    if (depthwise_weight.defined()) {
      params.depth_multiplier = depthwise_weight.size(0) / input[1];
      params.depthwise_weight = depthwise_weight.const_data_ptr();
    }
    if (pointwise_weight.defined()) params.pointwise_weight = pointwise_weight.const_data_ptr();
    return params;
  }
};

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

Activation activation_of(const Checks& checks, const char* name, int64_t value) {
  checks.require(value >= 0 && value <= 2, name, " must be 0 (none), 1 (ReLU) or 2 (ReLU6), got ", value);
  return static_cast<Activation>(value);
}

class Chain {
 public:
  Chain(const Checks& checks, const Tensor& input, const Tensors& parameters, const Ints& kinds,
        const Ints& activations, const Ints& windows, int64_t activation)
      : activation_(activation_of(checks, "activation", activation)) {
    checks.image(input, "input");
    checks.require(!kinds.empty(), "kinds must have at least one element");
    checks.length("activations", activations, kinds.size());
    checks.length("windows", windows, 6 * kinds.size());
    checks.require(input.size(0) > 0, "input must not be empty, got shape ", Listed{input.sizes()});
    dtype_ = checks.dtype(input.scalar_type(), "input");
    Sizes sizes = sizes_of(input);
    size_t next = 0;
    for (size_t i = 0; i < kinds.size(); ++i) {
      units_.push_back(unit(checks, i, sizes, input, parameters, kinds[i], activations[i],
                            Ints(windows.begin() + 6 * i, windows.begin() + 6 * (i + 1)), next));
      sizes = units_.back().output;
      const auto [n, c, h, w] = sizes;
      checks.require(n * h * w > 1, "more than one value a channel is needed for batch norm, got shape ",
                     Listed{sizes});
    }
    checks.length("parameters", parameters, next);
  }

  const std::vector<Unit>& units() const { return units_; }
  const Unit& last() const { return units_.back(); }
  // Whether the backward gets what the convolution of unit i made; of the last one, only where it is small.
  bool keeps(size_t i) const {
    return units_[i].convolves && (i + 1 < units_.size() || units_[i].is_small());
  }
  Activation activation() const { return activation_; }
  int64_t statistics() const { return last().statistics + kStatistics * last().channels(); }
  int64_t compute_bytes() const { return dtype_ == DType::kFloat64 ? 8 : 4; }
  int32_t compute_dtype() const {
    return dtype_ == DType::kFloat64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }

  void wide(const Checks& checks, const Tensor& tensor, const char* name) const {
    checks.require(dtype_of(tensor) == compute_dtype(), name,
                   " must be float32, or float64 with an input of float64");
  }
  // Written in place: null for none.
  void* running(const Checks& checks, const Tensor& tensor, const char* name, const Unit& unit,
                const Tensor& like) const {
    if (tensor.numel() == 0) return nullptr;
    checks.vector(tensor, name, unit.channels());
    checks.on_device_of(tensor, name, like);
    wide(checks, tensor, name);
    checks.require(tensor.is_contiguous(), name, " must be contiguous");
    return tensor.mutable_data_ptr();
  }

  // One vector of a unit's statistics.
  char* statistic(const Tensor& statistics, const Unit& unit, Statistic which) const {
    return static_cast<char*>(const_cast<void*>(statistics.const_data_ptr())) +
           (unit.statistics + which * unit.channels()) * compute_bytes();
  }

  // Unit i with what it reads: the batch norm before it, and its activation, on load.
  SeparableConv2dParams convolution(size_t i, const Image& input, const Tensor& statistics) const {
    SeparableConv2dParams params = units_[i].convolution();
    params.input = input;
    params.prologue.activation = units_[i].activation;
    params.prologue.wide = true;
    if (i > 0) {
      params.prologue.scale = statistic(statistics, units_[i - 1], kScale);
      params.prologue.shift = statistic(statistics, units_[i - 1], kShift);
    }
    return params;
  }

 private:
  Unit unit(const Checks& checks, size_t index, const Sizes& input, const Tensor& like,
            const Tensors& parameters, int64_t kind, int64_t activation, const Ints& window, size_t& next) {
    std::string number = "[";  // GCC 12 warns of operator+ here, falsely
    number.append(std::to_string(index)).append("]");
    checks.require(kind >= 0 && kind <= 3, "kinds", number,
                   " must be 1 (depthwise), 2 (pointwise), 3 (both) or 0 (neither), got ", kind);
    Unit unit;
    unit.activation = activation_of(checks, ("activations" + number).c_str(), activation);
    unit.convolves = kind != 0;
    unit.dtype = dtype_;
    unit.input = unit.output = input;
    unit.first_parameter = next;
    unit.statistics = units_.empty() ? 0 : statistics();
    checks.require(kind != 0 || (index == 0 && activation == 0), "kinds", number,
                   " must name a convolution behind another unit or an activation, got 0");
    const auto take = [&](const char* name) -> const Tensor& {
      checks.require(next < parameters.size(), "parameters must have an element for ", name, " of unit ",
                     index, ", got ", parameters.size(), " elements");
      return parameters[next++];
    };
    int64_t channels = input[1];
    std::array<int64_t, 2> kernel = {1, 1};
    if (kind & kDepthwise) {
      const std::string name = "depthwise weight " + number;
      unit.depthwise_weight = dense(take("a depthwise weight"));
      const Tensor& weight = unit.depthwise_weight;
      checks.like_input(weight, name.c_str(), like);
      checks.dimensions(weight, name.c_str(), 4, "(C_in * multiplier, 1, kh, kw)");
      checks.require(weight.size(0) > 0 && weight.size(0) % channels == 0 && weight.size(1) == 1, name,
                     " must have shape (C_in * multiplier, 1, kh, kw) with C_in = ", channels, ", got ",
                     Listed{weight.sizes()});
      kernel = {weight.size(2), weight.size(3)};
      channels = weight.size(0);
    }
    if (kind & kPointwise) {
      const std::string name = "pointwise weight " + number;
      unit.pointwise_weight = dense(take("a pointwise weight"));
      const Tensor& weight = unit.pointwise_weight;
      checks.like_input(weight, name.c_str(), like);
      checks.dimensions(weight, name.c_str(), 4, "(C_out, C_in, 1, 1)");
      checks.require(weight.size(0) > 0, name, " must have at least one output channel, got shape ",
                     Listed{weight.sizes()});
      checks.shape(weight, name.c_str(), {weight.size(0), channels, 1, 1});
      channels = weight.size(0);
    }
    unit.window =
        checks.window(kernel, {window[0], window[1]}, {window[2], window[3]}, {window[4], window[5]});
    const auto [height, width] = checks.output_size(input[2], input[3], unit.window);
    unit.output = {input[0], channels, height, width};
    unit.weight = vector(checks, take("a batch norm weight"), "batch norm weight " + number, channels, like);
    unit.bias = vector(checks, take("a batch norm bias"), "batch norm bias " + number, channels, like);
    return unit;
  }

  Tensor vector(const Checks& checks, const Tensor& tensor, const std::string& name, int64_t channels,
                const Tensor& like) const {
    checks.vector(tensor, name.c_str(), channels);
    checks.on_device_of(tensor, name.c_str(), like);
    wide(checks, tensor, name.c_str());
    return dense(tensor);
  }

  DType dtype_;
  Activation activation_;
  std::vector<Unit> units_;
};

// Results of units are channels_last, whatever the input is: the kernels' own layout.
Tensor empty_raw(const Checks& checks, const Unit& unit, const Tensor& like) {
  checks.countable("a result", unit.output, unit.dtype);
  return allocate(checks, "a result", unit.output, dense_strides(unit.output, true), like);
}

void convolve(const Chain& chain, size_t i, const Tensor& input, const Tensor& statistics,
              const Image& output) {
  SeparableConv2dParams params = chain.convolution(i, read_from(input), statistics);
  params.output = output;
  separable_conv2d(params, torch_threads());
}

void count_batch(const Checks& checks, const Tensor& batches, const Tensor& like) {
  if (batches.numel() == 0) return;
  checks.on_device_of(batches, "num_batches_tracked", like);
  checks.require(batches.numel() == 1 && dtype_of(batches) == aoti_torch_dtype_int64(),
                 "num_batches_tracked must be one int64, got shape ", Listed{batches.sizes()});
  ++*static_cast<int64_t*>(batches.mutable_data_ptr());
}

std::tuple<Tensor, Tensors, Tensor> forward(const Tensor& input, Tensors parameters, Tensors running,
                                            Ints kinds, Ints activations, Ints windows,
                                            std::vector<double> eps, std::vector<double> momentum,
                                            int64_t activation, bool keep) {
  const Checks checks("conv_chain");
  const Chain chain(checks, input, parameters, kinds, activations, windows, activation);
  const auto& units = chain.units();
  checks.length("running", running, 3 * units.size());
  checks.length("eps", eps, units.size());
  checks.length("momentum", momentum, units.size());
  for (size_t i = 0; i < units.size(); ++i) {
    checks.require(eps[i] > 0, "eps must be positive, got ", eps[i]);
    checks.require((running[3 * i].numel() == 0) == (running[3 * i + 1].numel() == 0),
                   "running_mean and running_var must be given together or not at all");
  }

  const int64_t count = chain.statistics(), step = 1;
  const Tensor statistics =
      allocate(checks, "statistics", {&count, 1}, {&step, 1}, input, chain.compute_dtype());
  Tensors raws;
  Tensor raw = input;
  for (size_t i = 0; i < units.size(); ++i) {
    const Unit& unit = units[i];
    if (unit.convolves) {
      const Tensor source = std::exchange(raw, empty_raw(checks, unit, input));
      convolve(chain, i, source, statistics, write_to(raw));
    }
    BatchNormStatisticsParams params;
    params.dtype = unit.dtype;
    params.input = read_from(raw);
    params.weight = unit.weight.const_data_ptr(), params.bias = unit.bias.const_data_ptr();
    params.eps = eps[i], params.momentum = momentum[i];
    params.running_mean = chain.running(checks, running[3 * i], "running_mean", unit, input);
    params.running_var = chain.running(checks, running[3 * i + 1], "running_var", unit, input);
    params.mean = chain.statistic(statistics, unit, kMean);
    params.inverse_std = chain.statistic(statistics, unit, kInverseStd);
    params.scale = chain.statistic(statistics, unit, kScale);
    params.shift = chain.statistic(statistics, unit, kShift);
    batch_norm_statistics(params, torch_threads());
    count_batch(checks, running[3 * i + 2], input);
    if (keep && chain.keeps(i)) raws.push_back(raw);
  }

  const Unit& last = chain.last();
  const bool kept = keep && chain.keeps(units.size() - 1);
  const bool in_place = last.convolves && !kept && is_channels_last(input);
  const Tensor output = in_place ? raw : empty_image(checks, "output", last.output, input);
  BatchNormParams params;
  params.dtype = last.dtype;
  params.input = read_from(raw);
  params.scale = chain.statistic(statistics, last, kScale);
  params.shift = chain.statistic(statistics, last, kShift);
  params.activation = chain.activation();
  params.output = write_to(output);
  batch_norm(params, torch_threads());
  return {output, raws, statistics};
}

// Gradients on their way through the chain, in two buffers by turns. grad_input, which is written last, lends
// its memory until then.
class Gradients {
 public:
  Gradients(const Checks& checks, const Chain& chain, const Tensor& like, const Tensor& grad_input)
      : checks_(checks), like_(like) {
    const auto& units = chain.units();
    for (size_t i = 0; i < units.size(); ++i) {
      const auto [n, c, h, w] = units[i].output;
      int64_t& bytes = bytes_[turn(chain, i)];
      bytes = std::max(bytes, n * c * h * w * static_cast<int64_t>(bytes_of(units[i].dtype)));
    }
    const size_t last = units.size() % 2;
    if (grad_input.defined() &&
        bytes_[last] <= grad_input.numel() * static_cast<int64_t>(grad_input.element_size()))
      buffers_[last] = grad_input;
  }
  // As channels_last image of the unit's output, for writing.
  Image of(const Chain& chain, size_t i) {
    const Unit& unit = chain.units()[i];
    Tensor& buffer = buffers_[turn(chain, i)];
    if (!buffer.defined()) buffer = empty_bytes(checks_, "a gradient", bytes_[turn(chain, i)], like_);
    const auto [n, c, h, w] = unit.output;
    const auto [stride_n, stride_c, stride_h, stride_w] = dense_strides(unit.output, true);
    return {buffer.mutable_data_ptr(), n, c, h, w, stride_n, stride_c, stride_h, stride_w};
  }

 private:
  static size_t turn(const Chain& chain, size_t i) { return (chain.units().size() - 1 - i) % 2; }
  const Checks& checks_;
  const Tensor& like_;
  int64_t bytes_[2] = {0, 0};
  Tensor buffers_[2];
};

Tensors backward(const Tensor& grad_output, const Tensor& input, Tensors parameters, Tensors raws,
                 const Tensor& given_statistics, Ints kinds, Ints activations, Ints windows,
                 int64_t activation, std::vector<bool> output_mask) {
  const Checks checks("conv_chain_backward");
  const Chain chain(checks, input, parameters, kinds, activations, windows, activation);
  const auto& units = chain.units();
  checks.like_input(grad_output, "grad_output", input);
  checks.shape(grad_output, "grad_output", chain.last().output);
  checks.length("output_mask", output_mask, 1 + parameters.size());
  // What a unit's convolution made; the last one's is computed again where it was not kept.
  if (!units[0].convolves && units.size() > 1) raws.insert(raws.begin(), input);
  const bool kept = chain.keeps(units.size() - 1);
  checks.length("raws", raws, units.size() - (kept ? 0 : 1));
  for (size_t i = 0; i < raws.size(); ++i) {
    checks.like_input(raws[i], "raws", input);
    checks.shape(raws[i], "raws", units[i].output);
  }
  const Tensor statistics = dense(given_statistics);
  chain.wide(checks, statistics, "statistics");
  checks.on_device_of(statistics, "statistics", input);
  checks.require(statistics.numel() == chain.statistics(), "statistics must have ", chain.statistics(),
                 " elements, got ", statistics.numel());

  Tensors gradients;
  Tensor grad_input;
  if (output_mask[0]) {
    grad_input = empty_image(checks, "grad_input", sizes_of(input), input);
    gradients.push_back(grad_input);
  }
  const auto wanted = [&](size_t parameter) -> void* {
    if (!output_mask[1 + parameter]) return nullptr;
    const Tensor& like = parameters[parameter];
    const Ints sizes(like.sizes().begin(), like.sizes().end());
    gradients.push_back(sizes.size() == 1 ? empty_vector(checks, "a gradient", sizes[0], like)
                                          : empty_weight(checks, "a gradient", sizes_of(like), like));
    return gradients.back().mutable_data_ptr();
  };
  // In the order of the parameters, which the caller expects.
  std::vector<void*> results(parameters.size());
  size_t earliest = output_mask[0] ? 0 : units.size();  // the first unit that a gradient has to reach
  for (size_t i = 0, next = 0; i < units.size(); ++i) {
    const size_t end = i + 1 < units.size() ? units[i + 1].first_parameter : parameters.size();
    for (; next < end; ++next) {
      results[next] = wanted(next);
      if (results[next] != nullptr) earliest = std::min(earliest, i);
    }
  }

  Gradients between(checks, chain, input, grad_input);
  Image gradient;
  std::vector<double> gradient_sums;  // of the unit before, where the convolution's backward adds them up
  for (size_t i = units.size(); i-- > earliest;) {
    const Unit& unit = units[i];
    const bool last = i + 1 == units.size();
    size_t parameter = unit.first_parameter;
    void* grad_depthwise = unit.depthwise_weight.defined() ? results[parameter++] : nullptr;
    void* grad_pointwise = unit.pointwise_weight.defined() ? results[parameter++] : nullptr;

    const Tensor& source = i == 0 ? input : raws[i - 1];
    if (last && unit.convolves) gradient = between.of(chain, i);
    const bool again = last && !kept;
    if (again && unit.convolves) convolve(chain, i, source, statistics, gradient);
    BatchNormBackwardParams norm;
    norm.dtype = unit.dtype;
    norm.input = !again ? read_from(raws[i]) : unit.convolves ? gradient : read_from(source);
    norm.grad_output = last ? read_from(grad_output) : gradient;
    norm.weight = unit.weight.const_data_ptr();
    norm.mean = chain.statistic(statistics, unit, kMean);
    norm.inverse_std = chain.statistic(statistics, unit, kInverseStd);
    norm.scale = chain.statistic(statistics, unit, kScale);
    norm.shift = chain.statistic(statistics, unit, kShift);
    norm.activation = last ? chain.activation() : Activation::kNone;  // the next unit masked its own
    norm.grad_input = unit.convolves ? gradient : write_if_wanted(grad_input);  // in place of one it reads
    norm.gradient_sums = gradient_sums.empty() ? nullptr : gradient_sums.data();
    norm.grad_weight = results[parameter], norm.grad_bias = results[parameter + 1];
    batch_norm_backward(norm, torch_threads());
    if (!unit.convolves) break;

    SeparableConv2dBackwardParams params;
    params.forward = chain.convolution(i, read_from(source), statistics);
    params.forward.output = norm.grad_input;
    gradient = i == 0 ? write_if_wanted(grad_input) : i > earliest ? between.of(chain, i - 1) : Image{};
    if (gradient.data == nullptr && grad_depthwise == nullptr && grad_pointwise == nullptr) break;
    params.grad_input = gradient;
    // Short rows, each to be added to the sums, cost more than a pass of its own: such maps are in a cache.
    constexpr int64_t kLongRow = 16;
    gradient_sums.clear();
    if (i > earliest && unit.input[3] >= kLongRow) {
      gradient_sums.resize(static_cast<size_t>(2 * units[i - 1].channels()));
      params.prologue_mean = chain.statistic(statistics, units[i - 1], kMean);
      params.gradient_sums = gradient_sums.data();
    }
    params.grad_depthwise_weight = grad_depthwise;
    params.grad_pointwise_weight = grad_pointwise;
    separable_conv2d_backward(params, torch_threads());
  }
  return gradients;
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, CPU, m) {
  m.impl("conv_chain", TORCH_BOX(&sepconv::binding::forward));
  m.impl("conv_chain_backward", TORCH_BOX(&sepconv::binding::backward));
}
