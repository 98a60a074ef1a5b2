// The core's entry points: instruction set and dtype are looked up here, once a call.
#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "core/batch_norm.h"
#include "core/cpu/kernels.h"
#include "core/row_average.h"
#include "core/row_average_conv2d.h"
#include "core/separable_conv2d.h"

namespace sepconv {
namespace {

// Strides of axes of size 1 mean nothing; set them so that the layout tests of the kernels see through them.
Image canonical(Image x) {
  if (x.c == 1) x.stride_c = 1;
  if (x.w == 1) x.stride_w = x.h > 1 ? x.stride_h : x.n > 1 ? x.stride_n : x.c;
  if (x.h == 1) x.stride_h = x.w * x.stride_w;
  if (x.n == 1) x.stride_n = x.h * x.stride_h;
  return x;
}

SeparableConv2dParams canonical(SeparableConv2dParams p) {
  p.input = canonical(p.input), p.output = canonical(p.output),
  p.epilogue.residual = canonical(p.epilogue.residual);
  return p;
}
RowAverageConv2dParams canonical(RowAverageConv2dParams p) {
  p.input = canonical(p.input), p.output = canonical(p.output),
  p.epilogue.residual = canonical(p.epilogue.residual);
  return p;
}
RowAverageParams canonical(RowAverageParams p) {
  p.input = canonical(p.input), p.output = canonical(p.output);
  return p;
}

bool empty(const Image& x) {
  return x.n * x.c * x.h * x.w == 0;
}

// All dtypes write zero as zero bits.
void clear(void* data, int64_t count, DType dtype) {
  if (data != nullptr) std::memset(data, 0, static_cast<size_t>(count) * bytes_of(dtype));
}

int index(DType dtype) {
  return static_cast<int>(dtype);
}

DType compute_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

bool plain(const ChannelStage& stage) {
  return stage.scale == nullptr && stage.activation == Activation::kNone;
}

bool empty(const ChannelStage& stage) {
  return plain(stage) && stage.shift == nullptr;
}
bool empty(const Epilogue& epilogue) {
  return empty(static_cast<const ChannelStage&>(epilogue)) && epilogue.residual.data == nullptr;
}

void require(const char* op, bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string(op) + ": " + what);
}
void require_plain(const char* op, bool holds) {
  require(op, holds,
          "the backward takes biases and a prologue only, no other scales, activations or residuals");
}

// The entry of a dtype, if this build has it.
template <class Function>
Function kernel_of(const char* op, const Function (&kernels)[kDTypes], DType dtype) {
  const Function kernel = kernels[index(dtype)];
  require(op, kernel != nullptr, "this build of the library leaves out the dtype or the backward");
  return kernel;
}

// Whether what follows from a missing weight holds.
void require_consistent(const char* op, const SeparableConv2dParams& p) {
  const Window& v = p.window;
  require(op,
          p.has_depthwise() || (v.kernel[0] * v.kernel[1] == 1 && v.padding[0] == 0 && v.padding[1] == 0 &&
                                p.depth_multiplier == 1),
          "without a depthwise the window is 1x1, the padding 0 and the depth multiplier 1");
  require(op, p.has_pointwise() || (p.output.c == p.input.c * p.depth_multiplier && empty(p.epilogue)),
          "without a pointwise the output has the depthwise channels, and no epilogue");
}

}  // namespace

const Kernels& current_kernels() {
  switch (current_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return kernels_avx2();
    case Isa::kAvx512:
      return kernels_avx512();
#ifndef SEPCONV_WITHOUT_BFLOAT16
    case Isa::kAvx512Bf16:
      return kernels_avx512_bf16();
    case Isa::kAmx:
      return kernels_amx();
#endif
#endif
#if defined(__aarch64__)
    case Isa::kNeon:
      return kernels_neon();
#ifndef SEPCONV_WITHOUT_BFLOAT16
    case Isa::kNeonBf16:
      return kernels_neon_bf16();
#endif
#endif
    default:
      return kernels_scalar();
  }
}

const BatchNormKernels& current_batch_norm_kernels() {
  switch (current_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return batch_norm_kernels_avx2();
    case Isa::kAvx512:
    case Isa::kAvx512Bf16:
    case Isa::kAmx:
      return batch_norm_kernels_avx512();
#endif
#if defined(__aarch64__)
    case Isa::kNeon:
    case Isa::kNeonBf16:
      return batch_norm_kernels_neon();
#endif
    default:
      return batch_norm_kernels_scalar();
  }
}

void separable_conv2d(const SeparableConv2dParams& params, const Parallel& parallel) {
  require_consistent("separable_conv2d", params);
  if (empty(params.output)) return;
  kernel_of("separable_conv2d", current_kernels().separable_conv2d, params.dtype)(canonical(params),
                                                                                  parallel);
}

int64_t packed_bytes_of_separable_conv2d(const SeparableConv2dParams& params) {
  return kernel_of("pack_separable_conv2d", current_kernels().packed_bytes, params.dtype)(params);
}

void pack_separable_conv2d(const SeparableConv2dParams& params, void* packed) {
  kernel_of("pack_separable_conv2d", current_kernels().pack, params.dtype)(params, packed);
}

void separable_conv2d_backward(const SeparableConv2dBackwardParams& params, const Parallel& parallel) {
  const char* op = "separable_conv2d_backward";
  const SeparableConv2dParams& forward = params.forward;
  const Prologue& prologue = forward.prologue;
  require_consistent(op, forward);
  require(op, prologue.row_average_stride == 0 && prologue.activation != Activation::kHardSwish,
          "the backward takes a prologue without row average, and of activations ReLU and ReLU6");
  require_plain(
      op, plain(forward.middle) && plain(forward.epilogue) && forward.epilogue.residual.data == nullptr);
  require(op, forward.has_depthwise() || params.grad_depthwise_weight == nullptr,
          "no gradient of a depthwise weight that is not there");
  require(op,
          forward.has_pointwise() ||
              (params.grad_pointwise_weight == nullptr && params.grad_pointwise_bias == nullptr),
          "no gradient of a pointwise weight or bias that is not there");
  require(op, params.gradient_sums == nullptr || params.grad_input.data != nullptr,
          "no sums of an input gradient that is not wanted");
  if (empty(forward.output)) {
    if (params.gradient_sums != nullptr) std::fill_n(params.gradient_sums, 2 * forward.input.c, 0.0);
    const int64_t depth = forward.input.c * forward.depth_multiplier;
    clear(params.grad_depthwise_weight, depth * forward.window.kernel[0] * forward.window.kernel[1],
          forward.dtype);
    clear(params.grad_pointwise_weight, forward.output.c * depth, forward.dtype);
    clear(params.grad_depthwise_bias, depth, forward.dtype);
    clear(params.grad_pointwise_bias, forward.output.c, forward.dtype);
    return;
  }
  SeparableConv2dBackwardParams p = params;
  p.forward = canonical(p.forward), p.grad_input = canonical(p.grad_input);
  kernel_of(op, current_kernels().separable_conv2d_backward, forward.dtype)(p, parallel);
}

void row_average(const RowAverageParams& params, const Parallel& parallel) {
  if (empty(params.output)) return;
  kernel_of("row_average", current_kernels().row_average, params.dtype)(canonical(params), parallel);
}

void row_average_backward(const RowAverageParams& params, const Parallel& parallel) {
  if (empty(params.output)) return;
  kernel_of("row_average_backward", current_kernels().row_average_backward, params.dtype)(canonical(params),
                                                                                          parallel);
}

void row_average_conv2d(const RowAverageConv2dParams& params, const Parallel& parallel) {
  if (empty(params.output)) return;
  kernel_of("row_average_conv2d", current_kernels().row_average_conv2d, params.dtype)(canonical(params),
                                                                                      parallel);
}

void row_average_conv2d_backward(const RowAverageConv2dBackwardParams& params, const Parallel& parallel) {
  const RowAverageConv2dParams& forward = params.forward;
  require_plain("row_average_conv2d_backward", empty(forward.prologue) && plain(forward.epilogue) &&
                                                   forward.epilogue.residual.data == nullptr);
  if (empty(forward.output)) {
    clear(params.grad_weight,
          forward.output.c * forward.input.c * forward.window.kernel[0] * forward.window.kernel[1],
          forward.dtype);
    clear(params.grad_bias, forward.output.c, forward.dtype);
    return;
  }
  RowAverageConv2dBackwardParams p = params;
  p.forward = canonical(p.forward), p.grad_input = canonical(p.grad_input);
  kernel_of("row_average_conv2d_backward", current_kernels().row_average_conv2d_backward, forward.dtype)(
      p, parallel);
}

void batch_norm_statistics(const BatchNormStatisticsParams& params, const Parallel& parallel) {
  if (empty(params.input)) {  // stock leaves the running statistics alone
    for (void* vector : {params.mean, params.inverse_std, params.scale, params.shift})
      clear(vector, params.input.c, compute_dtype(params.dtype));
    return;
  }
  BatchNormStatisticsParams p = params;
  p.input = canonical(p.input);
  kernel_of("batch_norm_statistics", current_batch_norm_kernels().statistics, p.dtype)(p, parallel);
}

void batch_norm(const BatchNormParams& params, const Parallel& parallel) {
  if (empty(params.output)) return;
  BatchNormParams p = params;
  p.input = canonical(p.input), p.residual = canonical(p.residual), p.output = canonical(p.output);
  kernel_of("batch_norm", current_batch_norm_kernels().forward, p.dtype)(p, parallel);
}

void batch_norm_backward(const BatchNormBackwardParams& params, const Parallel& parallel) {
  if (params.activation != Activation::kNone && params.activation != Activation::kRelu &&
      params.activation != Activation::kRelu6)
    throw std::runtime_error("batch_norm_backward: the activation has to be none, ReLU or ReLU6");
  if (empty(params.input)) {
    clear(params.grad_weight, params.input.c, compute_dtype(params.dtype));
    clear(params.grad_bias, params.input.c, compute_dtype(params.dtype));
    return;
  }
  BatchNormBackwardParams p = params;
  p.input = canonical(p.input), p.grad_output = canonical(p.grad_output),
  p.grad_input = canonical(p.grad_input);
  kernel_of("batch_norm_backward", current_batch_norm_kernels().backward, p.dtype)(p, parallel);
}

std::string describe_separable_conv2d(const SeparableConv2dParams& params, int threads) {
  const Kernels& kernels = current_kernels();
  const TileShape tile = kernels.tile[index(params.dtype)];
  const bool pairs = params.dtype == DType::kBFloat16 && kernels.plan_pairs != nullptr;
  const Image &in = params.input, &out = params.output;
  const int64_t compute_bytes = params.dtype == DType::kFloat64 ? 8 : 4,
                panel_bytes = pairs ? 2 : compute_bytes;
  const int64_t depth = in.c * params.depth_multiplier, pixels = out.n * out.h * out.w;
  const ForwardPlan forward =
      pairs ? kernels.plan_pairs(canonical(params), threads)
            : plan_forward(pixels, out.w, depth, out.c, compute_bytes, tile, threads, cache_sizes());
  const TileShape forward_tile = pairs ? kernels.pair_tile : tile;
  const InputGradientPlan inputs = plan_input_gradient(out.n, out.h, out.w, depth, threads, tile);
  const WeightGradientPlan weights =
      plan_weight_gradient(out.n, out.h, out.w, depth, compute_bytes, tile, threads, cache_sizes());
  std::ostringstream text;
  text << "instruction set    " << name_of(current_isa()) << ", " << threads << " threads, L2 "
       << cache_sizes().l2 / 1024 << " KiB\n"
       << "output             " << out.n << " x " << out.c << " x " << out.h << " x " << out.w << "\n"
       << "register tile      " << forward_tile.rows << " pixels x " << forward_tile.columns
       << " output channels" << (pairs ? ", pairs of bfloat16\n" : "\n");
  if (!pairs && takes_nchw(canonical(params))) {
    const NchwPlan nchw = plan_nchw(pixels, depth, out.c, compute_bytes, tile, threads, cache_sizes());
    text << "forward            NCHW as it lies: ";
    if (nchw.shared) {
      text << "one depthwise panel, its channels and then the output channels divided among threads\n";
    } else {
      text << nchw.pixel_tiles << " tiles of up to " << nchw.pixel_tile << " pixels\n";
    }
    text << "depthwise panel    " << depth << " x " << nchw.pixel_tile << " values, "
         << nchw.pixel_tile * depth * compute_bytes / 1024 << " KiB\n";
  } else if (!pairs && forward.few_pixels) {
    text << "forward            few pixels: " << forward.channel_blocks << " tasks of about "
         << divide_up(out.c, forward.channel_blocks) << " output channels, weights as they lie in memory\n"
         << "depthwise output   " << pixels << " x " << depth << " values, packed\n";
  } else {
    text << "forward            " << forward.tasks() << " tasks: " << forward.pixel_tiles << " tiles of "
         << forward.pixel_tile << " pixels" << (forward.strips == 1 ? "" : " in strips of columns") << " x "
         << forward.panel_splits << " splits of " << forward.panels << " weight panels\n"
         << "depthwise panel    " << forward.pixel_tile << " x " << depth << " values, "
         << forward.pixel_tile * depth * panel_bytes / 1024 << " KiB a thread\n";
  }
  text << "input gradient     " << inputs.tasks() << " tasks: " << inputs.image_groups
       << " groups of images x " << inputs.channel_blocks << " blocks of " << inputs.channel_block
       << " channels, " << inputs.tile_rows << " rows a GEMM\n"
       << "pointwise gradient " << weights.tasks() << " tasks: " << weights.depth_blocks << " blocks of "
       << weights.depth_block << " channels x " << weights.pixel_splits << " pixel splits, "
       << weights.pixel_chunk << " pixels a chunk\n";
  return text.str();
}

}  // namespace sepconv
