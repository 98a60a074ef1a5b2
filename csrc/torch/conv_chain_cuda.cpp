// conv_chain on CUDA: this library's depthwise and batch norm kernels, the library's products for pointwise
// convolutions. Images are dense NHWC between the units; others are converted on the way in and out. The
// gradient that one unit hands to the one before is that past its activation: the batch norm's backward there
// applies the mask, since it reads what the mask depends on.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "core/cuda/batch_norm.h"
#include "core/cuda/depthwise.h"
#include "core/cuda/prologue.h"
#include "torch/checks.h"
#include "torch/conv_chain.h"
#include "torch/cuda.h"
#include "torch/library.h"
#include "torch/pointwise_cuda.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

// A dense NHWC tensor as the kernels see it, whatever its strides say of axes with one element.
Image dense_nhwc(const Tensor& tensor, void* data) {
  const auto [n, c, h, w] = sizes_of(tensor);
  const auto [stride_n, stride_c, stride_h, stride_w] = dense_strides(sizes_of(tensor), true);
  return {data, n, c, h, w, stride_n, stride_c, stride_h, stride_w};
}
Image read_nhwc(const Tensor& tensor) {
  return dense_nhwc(tensor, const_cast<void*>(tensor.const_data_ptr()));
}
Image write_nhwc(const Tensor& tensor) {
  return dense_nhwc(tensor, tensor.mutable_data_ptr());
}

// What a convolution reads, and the batch norm and activation on the way there.
struct Source {
  Tensor image;
  ChannelStage prologue;
};

// What forward and backward share of one call.
class ChainOnCuda {
 public:
  ChainOnCuda(const Checks& checks, const Chain& chain, const Tensor& like, const Tensor& statistics,
              cuda::Stream stream)
      : checks_(checks), chain_(chain), like_(like), statistics_(statistics), stream_(stream) {
    int64_t bytes = 0;
    for (const Unit& unit : chain.units()) {
      const auto [n, c, h, w] = unit.output;
      const auto [stride_n, stride_c, stride_h, stride_w] = dense_strides(unit.output, true);
      const Image image{nullptr, n, c, h, w, stride_n, stride_c, stride_h, stride_w};
      bytes = std::max(bytes, cuda::workspace_of_batch_norm(image, unit.dtype));
    }
    workspace_ = empty_bytes(checks, "the sums of batch norms", bytes, like);
  }

  cuda::Stream stream() const { return stream_; }
  void* workspace() const { return workspace_.mutable_data_ptr(); }

  Tensor empty(const char* name, const Sizes& sizes) const {
    checks_.countable(name, sizes, chain_.last().dtype);
    return allocate(checks_, name, sizes, dense_strides(sizes, true), like_);
  }

  Source source(size_t i, const Tensor& image) const {
    return {image, chain_.convolution(i, {}, statistics_).prologue};
  }

  // What unit i's depthwise kernel needs. Where none applies the prologue on load, `source` is replaced by
  // what it makes of the image.
  cuda::DepthwiseParams depthwise(size_t i, Source& source, const Image& output) const {
    const Unit& unit = chain_.units()[i];
    const SeparableConv2dParams convolution = unit.convolution();
    cuda::DepthwiseParams params;
    params.dtype = unit.dtype;
    params.window = unit.window;
    params.multiplier = convolution.depth_multiplier;
    params.weight = convolution.depthwise_weight;
    params.prologue = source.prologue;
    params.input = read_nhwc(source.image);
    params.output = output;
    if (cuda::is_identity(params.prologue) || cuda::loads_prologue(params)) return params;
    source = {applied(source, {1, 1}), {}};
    params.prologue = {};
    params.input = read_nhwc(source.image);
    return params;
  }

  // What the pointwise product of unit i reads.
  Tensor factors(size_t i, Source& source) const {
    const Unit& unit = chain_.units()[i];
    if (!unit.depthwise_weight.defined())
      return applied(source, {unit.window.stride[0], unit.window.stride[1]});
    const Tensor middle = empty("the depthwise result", sizes_of_factors(unit));
    cuda::depthwise(depthwise(i, source, write_nhwc(middle)), stream_);
    return middle;
  }
  static Sizes sizes_of_factors(const Unit& unit) {
    const auto [n, c, h, w] = unit.output;
    return {n, unit.pointwise_weight.size(1), h, w};
  }

  // The result of unit i's convolution, dense NHWC.
  Tensor convolve(size_t i, Source source) const {
    const Unit& unit = chain_.units()[i];
    if (!unit.pointwise_weight.defined()) {
      const Tensor output = empty("a result", unit.output);
      cuda::depthwise(depthwise(i, source, write_nhwc(output)), stream_);
      return output;
    }
    const Tensor left = factors(i, source);
    if (unit.dtype != DType::kFloat32) return linear_of(left, unit.pointwise_weight, std::nullopt);
    // Only a convolution knows whether TF32 is allowed.
    const Tensor product = in_dtype_of(left, library::convolution(left, unit.pointwise_weight, std::nullopt));
    return image_of_pixels(as_dense_nhwc(checks_, "a result", product), unit.output);
  }

  // `gradient`, of every stride-th pixel, among zeros.
  Tensor spread(const Tensor& gradient, const Unit& unit) const {
    const Tensor all = empty("a gradient", unit.input);
    zero(all);
    BatchNormParams params;
    params.dtype = unit.dtype;
    params.input = read_nhwc(gradient);
    params.output = every(write_nhwc(all), unit.window.stride, gradient);
    cuda::batch_norm(params, stream_);
    return all;
  }

 private:
  // Every stride-th pixel of an image, as many as `like` has.
  static Image every(Image image, const int64_t (&stride)[2], const Tensor& like) {
    image.h = like.size(2), image.w = like.size(3);
    image.stride_h *= stride[0], image.stride_w *= stride[1];
    return image;
  }

  // What the prologue makes of every stride-th pixel.
  Tensor applied(const Source& source, const int64_t (&stride)[2]) const {
    if (cuda::is_identity(source.prologue) && stride[0] == 1 && stride[1] == 1) return source.image;
    const auto [n, c, h, w] = sizes_of(source.image);
    const Tensor result =
        empty("a normalized input", {n, c, (h - 1) / stride[0] + 1, (w - 1) / stride[1] + 1});
    BatchNormParams params;
    params.dtype = chain_.last().dtype;
    params.input = every(read_nhwc(source.image), stride, result);
    params.scale = source.prologue.scale, params.shift = source.prologue.shift;
    params.activation = source.prologue.activation;
    params.output = write_nhwc(result);
    cuda::batch_norm(params, stream_);
    return result;
  }

  const Checks& checks_;
  const Chain& chain_;
  const Tensor& like_;
  const Tensor& statistics_;
  cuda::Stream stream_;
  Tensor workspace_;
};

std::tuple<Tensor, Tensors, Tensor> forward(const Tensor& input, Tensors parameters, Tensors running,
                                            Ints kinds, Ints activations, Ints windows,
                                            std::vector<double> eps, std::vector<double> momentum,
                                            int64_t activation, bool keep) {
  const Checks checks("conv_chain");
  const Chain chain(checks, input, parameters, kinds, activations, windows, activation);
  const auto& units = chain.units();
  const RunningStatistics of_units(checks, chain, input, std::move(running), std::move(eps),
                                   std::move(momentum));

  const OnDevice device(input);
  const Tensor statistics = empty_statistics(checks, chain, input);
  const ChainOnCuda on_cuda(checks, chain, input, statistics, device.stream);
  Tensors raws;
  Tensor raw = as_dense_nhwc(checks, "input", input);
  for (size_t i = 0; i < units.size(); ++i) {
    if (units[i].convolves) raw = on_cuda.convolve(i, on_cuda.source(i, raw));
    BatchNormStatisticsParams params = statistics_of(checks, chain, i, raw, of_units, statistics);
    params.input = read_nhwc(raw);
    cuda::batch_norm_statistics(params, of_units.batches(checks, i, input), on_cuda.workspace(),
                                device.stream);
    if (keep && chain.keeps(i)) raws.push_back(raw);
  }

  const Unit& last = chain.last();
  const bool kept = keep && chain.keeps(units.size() - 1);
  const bool in_place = last.convolves && !kept && is_channels_last(input);
  const Tensor output = in_place ? raw : empty_image(checks, "output", last.output, input);
  const Tensor written = is_dense_nhwc(output)     ? output
                         : last.convolves && !kept ? raw
                                                   : on_cuda.empty("output", last.output);
  BatchNormParams params = last_batch_norm(chain, raw, statistics);
  params.input = read_nhwc(raw);
  params.output = write_nhwc(written);
  cuda::batch_norm(params, device.stream);
  if (!is_dense_nhwc(output)) move_into(output, written);
  return {output, raws, statistics};
}

// Back through unit i's convolution, from `gradient` of its result: writes those of the weights, and returns
// that of the source, past the prologue, if it is wanted.
Tensor backward_of_convolution(const Checks& checks, const ConvChainBackward& call,
                               const ChainOnCuda& on_cuda, size_t i, const Tensor& source_image,
                               Tensor gradient, bool of_source) {
  const Unit& unit = call.chain.units()[i];
  Source source = on_cuda.source(i, source_image);
  if (unit.pointwise_weight.defined()) {
    const Tensor grad_weight = call.grad_pointwise_weight(unit);
    const Tensor left = grad_weight.defined() ? on_cuda.factors(i, source) : Tensor();
    const bool of_factors = of_source || call.grad_depthwise_weight(unit).defined();
    gradient = backward_of_pointwise(checks, unit.dtype, gradient, left, ChainOnCuda::sizes_of_factors(unit),
                                     unit.pointwise_weight, of_factors, grad_weight);
    if (!of_factors) return Tensor();
    gradient = as_dense_nhwc(checks, "a gradient", gradient);
  }
  if (!unit.depthwise_weight.defined()) {
    const bool strided = unit.window.stride[0] > 1 || unit.window.stride[1] > 1;
    return strided ? on_cuda.spread(gradient, unit) : gradient;
  }
  if (const Tensor grad_weight = call.grad_depthwise_weight(unit); grad_weight.defined()) {
    const cuda::DepthwiseParams params = on_cuda.depthwise(i, source, read_nhwc(gradient));
    const Tensor sums = empty_bytes(checks, "the sums of a depthwise gradient",
                                    cuda::workspace_of_depthwise_weight_gradient(params), gradient);
    cuda::depthwise_weight_gradient(params, grad_weight.mutable_data_ptr(), sums.mutable_data_ptr(),
                                    on_cuda.stream());
  }
  if (!of_source) return Tensor();
  const bool in_place = i == 0 && is_dense_nhwc(call.grad_input);
  const Tensor of_input = in_place ? call.grad_input : on_cuda.empty("a gradient", unit.input);
  Source plain{source_image, {}};
  cuda::DepthwiseParams params = on_cuda.depthwise(i, plain, read_nhwc(gradient));
  params.input = write_nhwc(of_input);
  cuda::depthwise_input_gradient(params, on_cuda.stream());
  return of_input;
}

Tensors backward(const Tensor& grad_output, const Tensor& input, Tensors parameters, Tensors raws,
                 const Tensor& statistics, Ints kinds, Ints activations, Ints windows, int64_t activation,
                 std::vector<bool> output_mask) {
  const Checks checks("conv_chain_backward");
  const ConvChainBackward call =
      checked_conv_chain_backward(checks, grad_output, input, parameters, std::move(raws), statistics, kinds,
                                  activations, windows, activation, output_mask);
  const auto& units = call.chain.units();
  const OnDevice device(input);
  const ChainOnCuda on_cuda(checks, call.chain, input, call.statistics, device.stream);

  const Tensor first = as_dense_nhwc(checks, "input", input);
  Tensor gradient = as_dense_nhwc(checks, "grad_output", grad_output);
  for (size_t i = units.size(); i-- > call.earliest;) {
    const Unit& unit = units[i];
    const bool last = i + 1 == units.size(), again = last && !call.keeps_last();
    const bool of_source = i > call.earliest || (i == 0 && call.grad_input.defined());
    const Tensor source = i == 0 ? first : as_dense_nhwc(checks, "raws", call.raws[i - 1]);
    const Tensor raw = !again           ? as_dense_nhwc(checks, "raws", call.raws[i])
                       : unit.convolves ? on_cuda.convolve(i, on_cuda.source(i, source))
                                        : source;
    BatchNormBackwardParams norm = call.batch_norm(i);
    norm.input = read_nhwc(raw);
    const Tensor of_output = gradient;  // owned while it is read
    norm.grad_output = read_nhwc(of_output);
    norm.activation = last ? call.chain.activation() : units[i + 1].activation;
    // In place of what is not read again, never of what the caller gave.
    if (last) gradient = again && unit.convolves ? raw : on_cuda.empty("a gradient", unit.output);
    const bool goes_on =
        of_source || call.grad_depthwise_weight(unit).defined() || call.grad_pointwise_weight(unit).defined();
    if (goes_on) norm.grad_input = write_nhwc(gradient);
    cuda::batch_norm_backward(norm, on_cuda.workspace(), device.stream);

    if (!goes_on) break;
    if (unit.convolves)
      gradient = backward_of_convolution(checks, call, on_cuda, i, source, gradient, of_source);
    if (i > 0 || !of_source) continue;
    if (unit.activation != Activation::kNone) {
      BatchNormBackwardParams mask;
      mask.dtype = unit.dtype;
      mask.input = read_nhwc(source);
      mask.grad_output = read_nhwc(gradient);
      mask.grad_input = write_nhwc(gradient);
      mask.activation = unit.activation;
      cuda::activation_backward(mask, device.stream);
    }
    if (gradient.get() != call.grad_input.get()) move_into(call.grad_input, gradient);
  }
  return call.gradients;
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, SEPCONV_CUDA_KEY, m) {
  m.impl("conv_chain", TORCH_BOX(&sepconv::binding::forward));
  m.impl("conv_chain_backward", TORCH_BOX(&sepconv::binding::backward));
}
