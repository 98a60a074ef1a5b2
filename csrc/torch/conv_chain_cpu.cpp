// conv_chain on the CPU: every unit is one call of the core's separable convolution, with the batch norm and
// activation before it on load.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <utility>

#include "core/batch_norm.h"
#include "core/separable_conv2d.h"
#include "torch/checks.h"
#include "torch/conv_chain.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

void convolve(const Chain& chain, size_t i, const Tensor& input, const Tensor& statistics,
              const Image& output) {
  SeparableConv2dParams params = chain.convolution(i, read_from(input), statistics);
  params.output = output;
  separable_conv2d(params, torch_threads());
}

std::tuple<Tensor, Tensors, Tensor> forward(const Tensor& input, Tensors parameters, Tensors running,
                                            Ints kinds, Ints activations, Ints windows,
                                            std::vector<double> eps, std::vector<double> momentum,
                                            int64_t activation, bool keep) {
  const Checks checks("conv_chain");
  const Chain chain(checks, input, parameters, kinds, activations, windows, activation);
  const auto& units = chain.units();
  const RunningStatistics of_units(checks, chain, input, std::move(running), std::move(eps),
                                   std::move(momentum));

  const Tensor statistics = empty_statistics(checks, chain, input);
  Tensors raws;
  Tensor raw = input;
  for (size_t i = 0; i < units.size(); ++i) {
    const Unit& unit = units[i];
    if (unit.convolves) {
      const Tensor source = std::exchange(raw, empty_raw(checks, unit, input));
      convolve(chain, i, source, statistics, write_to(raw));
    }
    batch_norm_statistics(statistics_of(checks, chain, i, raw, of_units, statistics), torch_threads());
    if (int64_t* batches = of_units.batches(checks, i, input)) ++*batches;
    if (keep && chain.keeps(i)) raws.push_back(raw);
  }

  const Unit& last = chain.last();
  const bool kept = keep && chain.keeps(units.size() - 1);
  const bool in_place = last.convolves && !kept && is_channels_last(input);
  const Tensor output = in_place ? raw : empty_image(checks, "output", last.output, input);
  BatchNormParams params = last_batch_norm(chain, raw, statistics);
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
                 const Tensor& statistics, Ints kinds, Ints activations, Ints windows, int64_t activation,
                 std::vector<bool> output_mask) {
  const Checks checks("conv_chain_backward");
  const ConvChainBackward call =
      checked_conv_chain_backward(checks, grad_output, input, parameters, std::move(raws), statistics, kinds,
                                  activations, windows, activation, output_mask);
  const Chain& chain = call.chain;
  const auto& units = chain.units();

  Gradients between(checks, chain, input, call.grad_input);
  Image gradient;
  std::vector<double> gradient_sums;  // of the unit before, where the convolution's backward adds them up
  for (size_t i = units.size(); i-- > call.earliest;) {
    const Unit& unit = units[i];
    const bool last = i + 1 == units.size();
    const Tensor& source = i == 0 ? input : call.raws[i - 1];
    if (last && unit.convolves) gradient = between.of(chain, i);
    const bool again = last && !call.keeps_last();
    if (again && unit.convolves) convolve(chain, i, source, call.statistics, gradient);
    BatchNormBackwardParams norm = call.batch_norm(i);
    norm.input = !again ? read_from(call.raws[i]) : unit.convolves ? gradient : read_from(source);
    norm.grad_output = last ? read_from(grad_output) : gradient;
    norm.activation = last ? chain.activation() : Activation::kNone;  // the next unit masked its own
    norm.grad_input =
        unit.convolves ? gradient : write_if_wanted(call.grad_input);  // in place of one it reads
    norm.gradient_sums = gradient_sums.empty() ? nullptr : gradient_sums.data();
    batch_norm_backward(norm, torch_threads());
    if (!unit.convolves) break;

    SeparableConv2dBackwardParams params;
    params.forward = chain.convolution(i, read_from(source), call.statistics);
    params.forward.output = norm.grad_input;
    params.grad_depthwise_weight = data_if_wanted(call.grad_depthwise_weight(unit));
    params.grad_pointwise_weight = data_if_wanted(call.grad_pointwise_weight(unit));
    gradient = i == 0              ? write_if_wanted(call.grad_input)
               : i > call.earliest ? between.of(chain, i - 1)
                                   : Image{};
    params.grad_input = gradient;
    if (gradient.data == nullptr && params.grad_depthwise_weight == nullptr &&
        params.grad_pointwise_weight == nullptr)
      break;
    // Short rows, each to be added to the sums, cost more than a pass of its own: such maps are in a cache.
    constexpr int64_t kLongRow = 16;
    gradient_sums.clear();
    if (i > call.earliest && unit.input[3] >= kLongRow) {
      gradient_sums.resize(static_cast<size_t>(2 * units[i - 1].channels()));
      params.prologue_mean = chain.statistic(call.statistics, units[i - 1], kMean);
      params.gradient_sums = gradient_sums.data();
    }
    separable_conv2d_backward(params, torch_threads());
  }
  return call.gradients;
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, CPU, m) {
  m.impl("conv_chain", TORCH_BOX(&sepconv::binding::forward));
  m.impl("conv_chain_backward", TORCH_BOX(&sepconv::binding::backward));
}
