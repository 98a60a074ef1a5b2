// The arguments of conv_chain and its backward, checked, for the bindings of every device: a chain of units,
// [activation ->] convolution -> batch norm, with an activation after the last. What a unit's convolution
// produces is kept raw; its batch norm is applied when the next unit loads it.
#pragma once
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/batch_norm.h"
#include "core/separable_conv2d.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {

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
  size_t convolutions() const { return depthwise_weight.defined() + pointwise_weight.defined(); }
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

inline int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

inline Activation activation_of(const Checks& checks, const char* name, int64_t value) {
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
    checks.require((kind & kDepthwise) || (window[2] == 0 && window[3] == 0), "windows", number,
                   " must have no padding, with a pointwise convolution alone, got (", window[2], ", ",
                   window[3], ")");
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
inline Tensor empty_raw(const Checks& checks, const Unit& unit, const Tensor& like) {
  checks.countable("a result", unit.output, unit.dtype);
  return allocate(checks, "a result", unit.output, dense_strides(unit.output, true), like);
}

// What conv_chain takes beside the chain: batch norm's running statistics and numbers, of every unit.
struct RunningStatistics {
  Tensors tensors;  // mean, variance and number of batches of each unit, or without elements
  std::vector<double> eps, momentum;

  // Everything is checked before the first of them changes.
  RunningStatistics(const Checks& checks, const Chain& chain, const Tensor& input, Tensors running,
                    std::vector<double> eps_, std::vector<double> momentum_)
      : tensors(std::move(running)), eps(std::move(eps_)), momentum(std::move(momentum_)) {
    const size_t units = chain.units().size();
    checks.length("running", tensors, 3 * units);
    checks.length("eps", eps, units);
    checks.length("momentum", momentum, units);
    for (size_t i = 0; i < units; ++i) {
      checks.require(eps[i] > 0, "eps must be positive, got ", eps[i]);
      checks.require((tensors[3 * i].numel() == 0) == (tensors[3 * i + 1].numel() == 0),
                     "running_mean and running_var must be given together or not at all");
      chain.running(checks, tensors[3 * i], "running_mean", chain.units()[i], input);
      chain.running(checks, tensors[3 * i + 1], "running_var", chain.units()[i], input);
      batches(checks, i, input);
    }
  }

  // Null for none.
  int64_t* batches(const Checks& checks, size_t i, const Tensor& like) const {
    const Tensor& batches = tensors[3 * i + 2];
    if (batches.numel() == 0) return nullptr;
    checks.on_device_of(batches, "num_batches_tracked", like);
    checks.require(batches.numel() == 1 && dtype_of(batches) == aoti_torch_dtype_int64(),
                   "num_batches_tracked must be one int64, got shape ", Listed{batches.sizes()});
    return static_cast<int64_t*>(batches.mutable_data_ptr());
  }
};

inline Tensor empty_statistics(const Checks& checks, const Chain& chain, const Tensor& like) {
  const int64_t count = chain.statistics(), step = 1;
  return allocate(checks, "statistics", {&count, 1}, {&step, 1}, like, chain.compute_dtype());
}

// Of what unit i's convolution made; the results go to `statistics`.
inline BatchNormStatisticsParams statistics_of(const Checks& checks, const Chain& chain, size_t i,
                                               const Tensor& raw, const RunningStatistics& running,
                                               const Tensor& statistics) {
  const Unit& unit = chain.units()[i];
  BatchNormStatisticsParams params;
  params.dtype = unit.dtype;
  params.input = read_from(raw);
  params.weight = unit.weight.const_data_ptr(), params.bias = unit.bias.const_data_ptr();
  params.eps = running.eps[i], params.momentum = running.momentum[i];
  params.running_mean = chain.running(checks, running.tensors[3 * i], "running_mean", unit, raw);
  params.running_var = chain.running(checks, running.tensors[3 * i + 1], "running_var", unit, raw);
  params.mean = chain.statistic(statistics, unit, kMean);
  params.inverse_std = chain.statistic(statistics, unit, kInverseStd);
  params.scale = chain.statistic(statistics, unit, kScale);
  params.shift = chain.statistic(statistics, unit, kShift);
  return params;
}

// The last unit's batch norm and the activation after it; the output is still to be said.
inline BatchNormParams last_batch_norm(const Chain& chain, const Tensor& raw, const Tensor& statistics) {
  const Unit& last = chain.last();
  BatchNormParams params;
  params.dtype = last.dtype;
  params.input = read_from(raw);
  params.scale = chain.statistic(statistics, last, kScale);
  params.shift = chain.statistic(statistics, last, kShift);
  params.activation = chain.activation();
  return params;
}

// A call of the backward whose arguments fit together, and its results.
struct ConvChainBackward {
  Chain chain;
  Tensors raws{};  // what convolutions made, of units from the first on; the last one's only where it is kept
  Tensor statistics{};
  Tensors gradients{};  // only those that are wanted, in the order that the caller expects
  Tensor grad_input{};  // undefined where it is not wanted
  Tensors results{};    // of the parameters; undefined where not wanted
  size_t earliest = 0;  // the first unit that a gradient has to reach

  bool keeps_last() const { return chain.keeps(chain.units().size() - 1); }

  // The backward of unit i's batch norm; what it reads and writes is still to be said.
  BatchNormBackwardParams batch_norm(size_t i) const {
    const Unit& unit = chain.units()[i];
    const size_t parameter = unit.first_parameter + unit.convolutions();
    BatchNormBackwardParams params;
    params.dtype = unit.dtype;
    params.weight = unit.weight.const_data_ptr();
    params.mean = chain.statistic(statistics, unit, kMean);
    params.inverse_std = chain.statistic(statistics, unit, kInverseStd);
    params.scale = chain.statistic(statistics, unit, kScale);
    params.shift = chain.statistic(statistics, unit, kShift);
    params.grad_weight = data_if_wanted(results[parameter]);
    params.grad_bias = data_if_wanted(results[parameter + 1]);
    return params;
  }
  // Undefined where the unit has none or it is not wanted.
  Tensor grad_depthwise_weight(const Unit& unit) const {
    return unit.depthwise_weight.defined() ? results[unit.first_parameter] : Tensor();
  }
  Tensor grad_pointwise_weight(const Unit& unit) const {
    if (!unit.pointwise_weight.defined()) return Tensor();
    return results[unit.first_parameter + unit.convolutions() - 1];
  }
};

inline ConvChainBackward checked_conv_chain_backward(const Checks& checks, const Tensor& grad_output,
                                                     const Tensor& input, const Tensors& parameters,
                                                     Tensors raws, const Tensor& statistics,
                                                     const Ints& kinds, const Ints& activations,
                                                     const Ints& windows, int64_t activation,
                                                     const std::vector<bool>& output_mask) {
  ConvChainBackward call{{checks, input, parameters, kinds, activations, windows, activation}};
  const Chain& chain = call.chain;
  const auto& units = chain.units();
  checks.like_input(grad_output, "grad_output", input);
  checks.shape(grad_output, "grad_output", chain.last().output);
  checks.length("output_mask", output_mask, 1 + parameters.size());
  if (!units[0].convolves && units.size() > 1) raws.insert(raws.begin(), input);
  checks.length("raws", raws, units.size() - (call.keeps_last() ? 0 : 1));
  for (size_t i = 0; i < raws.size(); ++i) {
    checks.like_input(raws[i], "raws", input);
    checks.shape(raws[i], "raws", units[i].output);
  }
  call.raws = std::move(raws);
  call.statistics = dense(statistics);
  chain.wide(checks, statistics, "statistics");
  checks.on_device_of(statistics, "statistics", input);
  checks.require(statistics.numel() == chain.statistics(), "statistics must have ", chain.statistics(),
                 " elements, got ", statistics.numel());

  if (output_mask[0]) {
    call.grad_input = empty_image(checks, "grad_input", sizes_of(input), input);
    call.gradients.push_back(call.grad_input);
  }
  const auto wanted = [&](size_t parameter) {
    if (!output_mask[1 + parameter]) return Tensor();
    const Tensor& like = parameters[parameter];
    const Ints sizes(like.sizes().begin(), like.sizes().end());
    call.gradients.push_back(sizes.size() == 1 ? empty_vector(checks, "a gradient", sizes[0], like)
                                               : empty_weight(checks, "a gradient", sizes_of(like), like));
    return call.gradients.back();
  };
  call.results.resize(parameters.size());
  call.earliest = output_mask[0] ? 0 : units.size();
  for (size_t i = 0, next = 0; i < units.size(); ++i) {
    const size_t end = i + 1 < units.size() ? units[i + 1].first_parameter : parameters.size();
    for (; next < end; ++next) {
      call.results[next] = wanted(next);
      if (call.results[next].defined()) call.earliest = std::min(call.earliest, i);
    }
  }
  return call;
}

}  // namespace sepconv::binding
