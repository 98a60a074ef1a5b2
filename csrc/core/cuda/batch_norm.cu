#include <algorithm>
#include <stdexcept>

#include "core/cuda/batch_norm.cuh"
#include "core/cuda/batch_norm.h"
#include "core/cuda/launch.cuh"

namespace sepconv::cuda {
namespace {

constexpr int64_t kBlocksWanted = 1024, kBlocksWantedOverPixels = 2048, kMostSplits = 512,
                  kFewestPixelsOfThread = 4;

// Blocks of threads over the channels and pixels of an image, and the splits of its sums.
struct Blocks {
  dim3 block;
  int64_t of_channels, splits, pixels_of_split;
};

int64_t pixels_of(const Image& image) {
  return image.n * image.h * image.w;
}

Blocks blocks_of(const Image& image, int lanes) {
  const int64_t vectors = divide_up(image.c, lanes), pixels = pixels_of(image);
  const int x = threads_along(vectors, 32), y = kBlockThreads / x;
  const int64_t of_channels = divide_up(vectors, x);
  const int64_t most = std::min(kMostSplits, divide_up(pixels, y * kFewestPixelsOfThread));
  const int64_t wanted = std::clamp<int64_t>(kBlocksWanted / of_channels, 1, most);
  const int64_t pixels_of_split = divide_up(pixels, wanted);
  return {dim3(x, y), of_channels, divide_up(pixels, pixels_of_split), pixels_of_split};
}

template <class T>
Pixels<T> pixels_at(const Image& image) {
  if (image.stride_c != 1 && image.c != 1)
    throw std::runtime_error("sepconv: batch norm on CUDA takes images whose channels are adjacent");
  const bool rows_join = image.h == 1 || image.stride_h == image.w * image.stride_w;
  const bool images_join = image.n == 1 || image.stride_n == image.h * image.w * image.stride_w;
  return {static_cast<T*>(image.data),
          image.stride_n,
          image.stride_h,
          image.stride_w,
          static_cast<unsigned>(as_int(image.h)),
          static_cast<unsigned>(as_int(image.w)),
          rows_join && images_join};
}

unsigned count_of(const Image& image) {
  return static_cast<unsigned>(as_int(pixels_of(image)));
}

// Calls body(lanes), a constant: as many as 16 bytes hold where all images can be moved so.
template <class T, class Body>
void with_lanes(DType dtype, std::initializer_list<const Image*> images, const Body& body) {
  constexpr int kLanes = kVectorLanes<T>;
  const bool vectors =
      std::ranges::all_of(images, [&](const Image* image) { return moves_vectors(*image, kLanes, dtype); });
  if (vectors) return body(std::integral_constant<int, kLanes>{});
  body(std::integral_constant<int, 1>{});
}

// What threads read of their channels serves several groups of pixels where there are blocks enough.
dim3 grid_over_pixels(const Blocks& blocks, int64_t pixels) {
  const int64_t groups = divide_up(pixels, blocks.block.y * kPixelsAtOnce);
  const int64_t wanted = divide_up(kBlocksWantedOverPixels, blocks.of_channels);
  return dim3(static_cast<unsigned>(std::min(groups, wanted)), static_cast<unsigned>(blocks.of_channels));
}

// Calls launch(grid, block, shared bytes) for the sums of an image.
template <class T, class Launch>
SumsArguments<T> sums_of(const Image& input, const Blocks& blocks, void* workspace, int lanes,
                         const Launch& launch) {
  const SumsArguments<T> a{pixels_at<const T>(input), static_cast<Compute<T>*>(workspace), as_int(input.c),
                           count_of(input), static_cast<unsigned>(blocks.pixels_of_split)};
  launch(a, dim3(static_cast<unsigned>(blocks.of_channels), static_cast<unsigned>(blocks.splits)),
         (kBlockThreads + 4) * lanes * sizeof(Compute<T>));
  return a;
}

// A block of totals: threads along y share the splits.
constexpr int kRowsOfTotals = kBlockThreads / kChannelsOfTotals;
constexpr size_t kBytesOfTotals = 2 * kBlockThreads * sizeof(double);

dim3 grid_over_channels(int64_t channels) {
  return dim3(static_cast<unsigned>(divide_up(channels, kChannelsOfTotals)));
}

template <class T>
void statistics_of(const BatchNormStatisticsParams& p, int64_t* batches, void* workspace, Stream stream) {
  using C = Compute<T>;
  const auto on = static_cast<cudaStream_t>(stream);
  int64_t splits = 0;
  with_lanes<T>(p.dtype, {&p.input}, [&](auto lanes) {
    const Blocks blocks = blocks_of(p.input, lanes());
    splits = blocks.splits;
    sums_of<T>(p.input, blocks, workspace, lanes(), [&](const SumsArguments<T>& a, dim3 grid, size_t shared) {
      SEPCONV_LAUNCH((batch_norm_sums_kernel<T, lanes()>), grid, blocks.block, shared, on, a);
      check_launch("batch_norm_sums");
    });
  });
  StatisticsArguments<T> a{};
  a.input = pixels_at<const T>(p.input);
  a.partial = static_cast<const C*>(workspace);
  a.weight = static_cast<const C*>(p.weight), a.bias = static_cast<const C*>(p.bias);
  a.running_mean = static_cast<C*>(p.running_mean), a.running_var = static_cast<C*>(p.running_var);
  a.mean = static_cast<C*>(p.mean), a.inverse_std = static_cast<C*>(p.inverse_std);
  a.scale = static_cast<C*>(p.scale), a.shift = static_cast<C*>(p.shift);
  a.batches = batches;
  a.eps = p.eps, a.momentum = p.momentum;
  a.channels = as_int(p.input.c), a.splits = as_int(splits);
  a.pixels = count_of(p.input);
  SEPCONV_LAUNCH((batch_norm_statistics_kernel<T>), grid_over_channels(p.input.c),
                 dim3(kChannelsOfTotals, kRowsOfTotals), kBytesOfTotals, on, a);
  check_launch("batch_norm_statistics");
}

template <class T>
void apply(const BatchNormParams& p, Stream stream) {
  with_lanes<T>(p.dtype, {&p.input, &p.output}, [&](auto lanes) {
    const Blocks blocks = blocks_of(p.input, lanes());
    const ChannelStage stage{p.scale, p.shift, p.activation, true};
    const BatchNormArguments<T> a{pixels_at<const T>(p.input), pixels_at<T>(p.output),
                                  prologue_arguments<Compute<T>>(stage), as_int(p.input.c),
                                  count_of(p.input)};
    SEPCONV_LAUNCH((batch_norm_kernel<T, lanes()>), grid_over_pixels(blocks, a.pixels), blocks.block, 0,
                   static_cast<cudaStream_t>(stream), a);
    check_launch("batch_norm");
  });
}

template <class T>
GradientArguments<T> gradient_of(const BatchNormBackwardParams& p) {
  const ChannelStage stage{p.scale, p.shift, p.activation, true};
  return {pixels_at<const T>(p.grad_output), prologue_arguments<Compute<T>>(stage),
          static_cast<const Compute<T>*>(p.mean)};
}

template <class T>
void input_gradient_of(const BatchNormBackwardParams& p, const Compute<T>* scale,
                       GradientLine<Compute<T>> line, Stream stream) {
  with_lanes<T>(p.dtype, {&p.input, &p.grad_output, &p.grad_input}, [&](auto lanes) {
    const Blocks blocks = blocks_of(p.input, lanes());
    const InputGradientOfNormArguments<T> a{
        pixels_at<const T>(p.input), pixels_at<T>(p.grad_input), scale, line,
        as_int(p.input.c),           count_of(p.input)};
    SEPCONV_LAUNCH((batch_norm_input_gradient_kernel<T, lanes()>), grid_over_pixels(blocks, a.pixels),
                   blocks.block, 0, static_cast<cudaStream_t>(stream), a, gradient_of<T>(p));
    check_launch("batch_norm_input_gradient");
  });
}

template <class T>
void backward_of(const BatchNormBackwardParams& p, void* workspace, Stream stream) {
  using C = Compute<T>;
  const auto on = static_cast<cudaStream_t>(stream);
  int64_t splits = 0;
  with_lanes<T>(p.dtype, {&p.input, &p.grad_output}, [&](auto lanes) {
    const Blocks blocks = blocks_of(p.input, lanes());
    splits = blocks.splits;
    sums_of<T>(p.input, blocks, workspace, lanes(), [&](const SumsArguments<T>& a, dim3 grid, size_t shared) {
      SEPCONV_LAUNCH((batch_norm_gradient_sums_kernel<T, lanes()>), grid, blocks.block, shared, on, a,
                     gradient_of<T>(p));
      check_launch("batch_norm_gradient_sums");
    });
  });
  C* const behind = static_cast<C*>(workspace) + 2 * splits * p.input.c;
  GradientTotalsArguments<C> a{};
  a.partial = static_cast<const C*>(workspace);
  a.scale = static_cast<const C*>(p.scale), a.inverse_std = static_cast<const C*>(p.inverse_std);
  a.grad_weight = static_cast<C*>(p.grad_weight), a.grad_bias = static_cast<C*>(p.grad_bias);
  a.line = {behind, behind + p.input.c};
  a.channels = as_int(p.input.c), a.splits = as_int(splits);
  a.pixels = count_of(p.input);
  SEPCONV_LAUNCH((batch_norm_gradient_totals_kernel<C>), grid_over_channels(p.input.c),
                 dim3(kChannelsOfTotals, kRowsOfTotals), kBytesOfTotals, on, a);
  check_launch("batch_norm_gradient_totals");
  if (p.grad_input.data != nullptr) input_gradient_of<T>(p, a.scale, a.line, stream);
}

}  // namespace

int64_t workspace_of_batch_norm(const Image& input, DType dtype) {
  // Whether vectors of channels can be moved is known when all images are.
  const int lanes = 16 / static_cast<int>(bytes_of(dtype));
  const int64_t splits = std::max(blocks_of(input, lanes).splits, blocks_of(input, 1).splits);
  return (2 * splits + 2) * input.c * (dtype == DType::kFloat64 ? 8 : 4);
}

void batch_norm_statistics(const BatchNormStatisticsParams& params, int64_t* batches, void* workspace,
                           Stream stream) {
  with_type(params.dtype, [&](auto t) { statistics_of<decltype(t)>(params, batches, workspace, stream); });
}

void batch_norm(const BatchNormParams& params, Stream stream) {
  with_type(params.dtype, [&](auto t) { apply<decltype(t)>(params, stream); });
}

void batch_norm_backward(const BatchNormBackwardParams& params, void* workspace, Stream stream) {
  with_type(params.dtype, [&](auto t) { backward_of<decltype(t)>(params, workspace, stream); });
}

void activation_backward(const BatchNormBackwardParams& params, Stream stream) {
  with_type(params.dtype,
            [&](auto t) { input_gradient_of<decltype(t)>(params, nullptr, {nullptr, nullptr}, stream); });
}

}  // namespace sepconv::cuda
