// Inference: weights packed once, and the three stages of a call with activations and a residual.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "core/isa.h"
#include "core/packed_weights.h"
#include "core/separable_conv2d.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sepconv::binding {
namespace {

// What decides about the packed layout, and nothing else.
SeparableConv2dParams layout_of(DType dtype, int64_t middle_channels, int64_t out_channels,
                                std::array<int64_t, 2> kernel) {
  SeparableConv2dParams params;
  params.dtype = dtype;
  params.input.c = middle_channels;
  params.output.c = out_channels;
  std::copy(kernel.begin(), kernel.end(), params.window.kernel);
  return params;
}

Tensor pack(const Tensor& depthwise_weight, const Tensor& pointwise_weight) {
  const Checks checks("pack_separable_conv2d");
  const DType dtype = checks.dtype(depthwise_weight.scalar_type(), "depthwise_weight");
  checks.like_input(pointwise_weight, "pointwise_weight", depthwise_weight, "depthwise_weight");
  checks.dimensions(depthwise_weight, "depthwise_weight", 4, "(C_in * multiplier, 1, kh, kw)");
  const auto depthwise = sizes_of(depthwise_weight);
  checks.require(depthwise[0] > 0 && depthwise[1] == 1 && depthwise[2] > 0 && depthwise[3] > 0,
                 "depthwise_weight must have shape (C_in * multiplier, 1, kh, kw), got ", Listed{depthwise});
  checks.dimensions(pointwise_weight, "pointwise_weight", 4, "(C_out, C_in * multiplier, 1, 1)");
  const int64_t out_channels = pointwise_weight.size(0);
  checks.at_least("C_out of pointwise_weight", out_channels, 1);
  checks.shape(pointwise_weight, "pointwise_weight", {out_channels, depthwise[0], 1, 1});

  // Dense first: what fits in memory once does not overflow the count of packed bytes.
  const Tensor dense_depthwise = dense(depthwise_weight), dense_pointwise = dense(pointwise_weight);
  SeparableConv2dParams layout = layout_of(dtype, depthwise[0], out_channels, {depthwise[2], depthwise[3]});
  layout.depthwise_weight = dense_depthwise.const_data_ptr();
  layout.pointwise_weight = dense_pointwise.const_data_ptr();
  const PackedHeader header = packed_header_of(layout);
  const Tensor packed = empty_bytes(checks, "packed", header.bytes, depthwise_weight);
  write_packed(layout, header, packed.mutable_data_ptr());
  return packed;
}

int64_t packed_bytes_of(int64_t middle_channels, int64_t out_channels, Ints kernel_size,
                        torch::headeronly::ScalarType dtype) {
  const Checks checks("packed_bytes_of_separable_conv2d");
  checks.at_least("middle_channels", middle_channels, 1);
  checks.at_least("out_channels", out_channels, 1);
  checks.length("kernel_size", kernel_size, 2);
  checks.require(kernel_size[0] > 0 && kernel_size[1] > 0, "kernel_size must be at least 1, got ",
                 Listed{kernel_size});
  const DType type = checks.dtype(dtype, "dtype");
  checks.countable("depthwise_weight", {middle_channels, int64_t{1}, kernel_size[0], kernel_size[1]}, type);
  checks.countable("pointwise_weight", {out_channels, middle_channels}, type);
  return packed_header_of(layout_of(type, middle_channels, out_channels, {kernel_size[0], kernel_size[1]}))
      .bytes;
}

// The weights in `packed`, which has to be what pack() makes for `layout` now.
const void* packed_weights(const Checks& checks, const Tensor& packed, const Tensor& input,
                           const SeparableConv2dParams& layout) {
  checks.on_device_of(packed, "packed", input);
  PackedHeader header;
  const void* data = packed.const_data_ptr();
  const bool bytes = packed.scalar_type() == torch::headeronly::ScalarType::Byte && packed.dim() == 1 &&
                     packed.is_contiguous() && packed.numel() >= kPackedHeaderBytes;
  if (bytes) std::memcpy(&header, data, sizeof(header));
  checks.require(bytes && header.is_magic(),
                 "packed must be a tensor that pack_separable_conv2d made, got another one of shape ",
                 Listed{packed.sizes()});
  const PackedHeader expected = packed_header_of(layout);
  checks.require(header.isa == expected.isa, "packed must be for the instruction set in use, ",
                 name_of(static_cast<Isa>(expected.isa)), ", got ", name_of(static_cast<Isa>(header.isa)),
                 ": pack the weights again");
  checks.require(header.dtype == expected.dtype, "packed must hold weights of the dtype of input, ",
                 name_of(static_cast<DType>(expected.dtype)), ", got ",
                 name_of(static_cast<DType>(header.dtype)));
  const auto weights = [](const PackedHeader& h) {
    return Sizes{h.middle_channels, h.out_channels, h.kernel[0], h.kernel[1]};
  };
  checks.require(header.same_weights(expected),
                 "packed must hold weights for (C_in * multiplier, C_out, kh, kw) = ",
                 Listed{weights(expected)}, ", got ", Listed{weights(header)});
  checks.require(header.bytes == expected.bytes && packed.numel() == expected.bytes, "packed must have ",
                 expected.bytes, " bytes, got ", packed.numel());
  checks.require(reinterpret_cast<uintptr_t>(data) % kScratchAlignment == 0, "packed must be aligned to ",
                 kScratchAlignment, " bytes, as pack_separable_conv2d makes it");
  return packed_values(data);
}

Activation activation_of(const Checks& checks, const char* name, int64_t value) {
  checks.require(value >= 0 && value <= static_cast<int64_t>(Activation::kHardSwish), name,
                 " must be 0 (none), 1 (ReLU), 2 (ReLU6) or 3 (hard swish), got ", value);
  return static_cast<Activation>(value);
}

Tensor forward(const Tensor& input, const Tensor& packed, const std::optional<Tensor>& depthwise_bias,
               const std::optional<Tensor>& pointwise_bias, const std::optional<Tensor>& residual,
               int64_t out_channels, int64_t depth_multiplier, Ints kernel_size, Ints stride, Ints padding,
               Ints dilation, int64_t prologue_activation, int64_t middle_activation, int64_t activation) {
  const Checks checks("frozen_separable_conv2d");
  checks.image(input, "input");
  const Sizes in = sizes_of(input);
  checks.at_least("out_channels", out_channels, 1);
  checks.at_least("depth_multiplier", depth_multiplier, 1);
  checks.length("kernel_size", kernel_size, 2);
  int64_t middle = 0;
  checks.require(!__builtin_mul_overflow(in[1], depth_multiplier, &middle),
                 "depth_multiplier is too large for input, got ", depth_multiplier);

  SeparableConv2dParams params;
  params.dtype = checks.dtype(input.scalar_type(), "input");
  params.window = checks.window({kernel_size[0], kernel_size[1]}, stride, padding, dilation);
  params.depth_multiplier = depth_multiplier;
  params.prologue.activation = activation_of(checks, "prologue_activation", prologue_activation);
  params.middle.activation = activation_of(checks, "middle_activation", middle_activation);
  params.epilogue.activation = activation_of(checks, "activation", activation);
  checks.like_input(depthwise_bias, "depthwise_bias", input);
  checks.vector(depthwise_bias, "depthwise_bias", middle);
  checks.like_input(pointwise_bias, "pointwise_bias", input);
  checks.vector(pointwise_bias, "pointwise_bias", out_channels);
  const auto [height, width] = checks.output_size(in[2], in[3], params.window);
  const Sizes out{in[0], out_channels, height, width};
  checks.like_input(residual, "residual", input);
  if (residual) checks.shape(*residual, "residual", out);
  params.packed_weights = packed_weights(
      checks, packed, input, layout_of(params.dtype, middle, out_channels, {kernel_size[0], kernel_size[1]}));

  const auto depthwise_shift = dense(depthwise_bias), pointwise_shift = dense(pointwise_bias);
  const Tensor output = empty_image(checks, "output", out, input);
  if (in[0] == 0) return output;
  params.input = read_from(input);
  params.middle.shift = data_or_null(depthwise_shift);
  params.epilogue.shift = data_or_null(pointwise_shift);
  if (residual) params.epilogue.residual = read_from(*residual);
  params.output = write_to(output);
  separable_conv2d(params, torch_threads());
  return output;
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, CPU, m) {
  m.impl("pack_separable_conv2d", TORCH_BOX(&sepconv::binding::pack));
  m.impl("frozen_separable_conv2d", TORCH_BOX(&sepconv::binding::forward));
}

STABLE_TORCH_LIBRARY_IMPL(sepconv, CompositeExplicitAutograd, m) {
  m.impl("packed_bytes_of_separable_conv2d", TORCH_BOX(&sepconv::binding::packed_bytes_of));
}
