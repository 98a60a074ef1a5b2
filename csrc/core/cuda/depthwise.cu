#include "core/cuda/depthwise.cuh"
#include "core/cuda/depthwise.h"
#include "core/cuda/depthwise_backward.cuh"
#include "core/cuda/launch.cuh"

namespace sepconv::cuda {
namespace {

constexpr int kRun = 4;
constexpr int64_t kMostItems = int64_t{1} << 30;

template <class T>
T* image_at(const Image& image, int64_t n) {
  return static_cast<T*>(image.data) + n * image.stride_n;
}

// Calls launch(grid, block, shared bytes, first channel) with blocks that cover `items` items of `channels`
// channels; the weights of one channel take `weight_bytes` of shared memory.
template <class Launch>
void in_blocks(int64_t items, int64_t channels, int lanes, bool along_channels, size_t weight_bytes,
               const Launch& launch) {
  const int64_t vectors = divide_up(channels, lanes);
  // Few items: more threads along the channels, so that none is idle.
  int x = along_channels ? threads_along(vectors, items >= 64 ? 32 : kBlockThreads) : 1;
  while (x > 1 && x * lanes * weight_bytes > kSharedBytes) x /= 2;
  const int y = kBlockThreads / x;
  const auto along_items = static_cast<unsigned>(divide_up(items, y * kItemsOfDepthwise));
  const int64_t blocks = divide_up(vectors, x);
  for (int64_t first = 0; first < blocks; first += kMostBlocksDown) {
    const auto along_y = static_cast<unsigned>(std::min(kMostBlocksDown, blocks - first));
    launch(dim3(along_items, along_y), dim3(x, y), x * lanes * weight_bytes,
           static_cast<int>(first * x * lanes));
  }
}

bool fits_in_shared(int lanes, int64_t taps, DType dtype) {
  return lanes * taps * bytes_of(dtype) <= kSharedBytes;
}

// How a call is carried out: lanes of a vector, whether threads run along channels, and the columns and the
// step of a kernel that is compiled for them (0: any).
struct Path {
  bool vectors, along_channels, shared;
  int64_t columns, step;
};

Path path_of(const DepthwiseParams& p) {
  const int lanes = 16 / static_cast<int>(bytes_of(p.dtype));
  const int64_t taps = p.window.kernel[0] * p.window.kernel[1];
  Path path{};
  path.vectors = p.multiplier == 1 && p.dtype != DType::kFloat64 && moves_vectors(p.input, lanes, p.dtype) &&
                 moves_vectors(p.output, lanes, p.dtype);
  path.along_channels = path.vectors || channels_are_adjacent(p.output);
  path.shared = path.vectors && fits_in_shared(lanes, taps, p.dtype);
  if (p.window.dilation[1] == 1 && p.window.stride[1] <= 2) {
    path.columns = p.window.kernel[1];
    path.step = p.window.stride[1];
  }
  return path;
}

template <class T, int kLanes, int kColumns, int kStep, bool kShared>
void launch_depthwise(const DepthwiseParams& p, bool flipped, bool along_channels, Stream stream) {
  DepthwiseArguments<T> a{};
  a.weight = static_cast<const T*>(p.weight);
  a.bias = static_cast<const T*>(p.bias);
  a.in = strides_of(p.input);
  a.out = strides_of(p.output);
  a.geometry = geometry_of(p.window, p.input, p.output);
  a.channels = as_int(p.output.c);
  a.multiplier = as_int(p.multiplier);
  a.flipped = flipped;
  const int64_t taps = p.window.kernel[0] * p.window.kernel[1];
  const int64_t runs = p.output.h * divide_up(p.output.w, kRun);
  in_batches(p.output.n, runs, kMostItems, [&](int64_t n, int64_t count) {
    a.input = image_at<T>(p.input, n);
    a.output = image_at<T>(p.output, n);
    a.items = static_cast<unsigned>(runs * count);
    in_blocks(a.items, a.channels, kLanes, along_channels, kShared ? taps * sizeof(T) : 0,
              [&](dim3 grid, dim3 block, size_t shared, int first_channel) {
                a.first_channel = first_channel;
                SEPCONV_LAUNCH((depthwise_kernel<T, kLanes, kRun, kColumns, kStep, kShared>), grid, block,
                               shared, static_cast<cudaStream_t>(stream), a);
                check_launch("depthwise");
              });
  });
}

template <class T>
void depthwise_of(const DepthwiseParams& p, bool flipped, Stream stream) {
  const Path path = path_of(p);
  const auto is = [&](int64_t columns, int64_t step) { return path.columns == columns && path.step == step; };
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int kLanes = kVectorLanes<T>;
    if (path.vectors) {
      if (path.shared) {
        if (is(3, 1)) return launch_depthwise<T, kLanes, 3, 1, true>(p, flipped, true, stream);
        if (is(3, 2)) return launch_depthwise<T, kLanes, 3, 2, true>(p, flipped, true, stream);
        if (is(5, 1)) return launch_depthwise<T, kLanes, 5, 1, true>(p, flipped, true, stream);
        if (is(5, 2)) return launch_depthwise<T, kLanes, 5, 2, true>(p, flipped, true, stream);
        if (is(7, 1)) return launch_depthwise<T, kLanes, 7, 1, true>(p, flipped, true, stream);
        return launch_depthwise<T, kLanes, 0, 0, true>(p, flipped, true, stream);
      }
      return launch_depthwise<T, kLanes, 0, 0, false>(p, flipped, true, stream);
    }
  }
  if (is(3, 1)) return launch_depthwise<T, 1, 3, 1, false>(p, flipped, path.along_channels, stream);
  if (is(3, 2)) return launch_depthwise<T, 1, 3, 2, false>(p, flipped, path.along_channels, stream);
  return launch_depthwise<T, 1, 0, 0, false>(p, flipped, path.along_channels, stream);
}

template <class T, int kLanes, bool kShared>
void launch_input_gradient(const DepthwiseParams& p, bool along_channels, Stream stream) {
  InputGradientArguments<T> a{};
  a.weight = static_cast<const T*>(p.weight);
  a.grad_out = strides_of(p.output);
  a.grad_in = strides_of(p.input);
  a.geometry = geometry_of(p.window, p.input, p.output);
  a.channels = as_int(p.input.c);
  a.multiplier = as_int(p.multiplier);
  const int64_t taps = p.window.kernel[0] * p.window.kernel[1];
  const int64_t positions = p.input.h * p.input.w;
  in_batches(p.input.n, positions, kMostItems, [&](int64_t n, int64_t count) {
    a.grad_output = image_at<T>(p.output, n);
    a.grad_input = image_at<T>(p.input, n);
    a.items = static_cast<unsigned>(positions * count);
    in_blocks(a.items, a.channels, kLanes, along_channels, kShared ? taps * sizeof(T) : 0,
              [&](dim3 grid, dim3 block, size_t shared, int first_channel) {
                a.first_channel = first_channel;
                SEPCONV_LAUNCH((depthwise_input_gradient_kernel<T, kLanes, kShared>), grid, block, shared,
                               static_cast<cudaStream_t>(stream), a);
                check_launch("depthwise_input_gradient");
              });
  });
}

template <class T>
void input_gradient_of(const DepthwiseParams& p, Stream stream) {
  const Window& w = p.window;
  if (w.stride[0] == 1 && w.stride[1] == 1 && p.multiplier == 1) {
    // The forward with the kernel flipped; its padding may be negative, which crops.
    DepthwiseParams flipped = p;
    std::swap(flipped.input, flipped.output);
    flipped.bias = nullptr;
    for (int axis = 0; axis < 2; ++axis)
      flipped.window.padding[axis] = w.dilation[axis] * (w.kernel[axis] - 1) - w.padding[axis];
    return depthwise_of<T>(flipped, true, stream);
  }
  const Path path = path_of(p);
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int kLanes = kVectorLanes<T>;
    if (path.vectors && path.shared) return launch_input_gradient<T, kLanes, true>(p, true, stream);
    if (path.vectors) return launch_input_gradient<T, kLanes, false>(p, true, stream);
  }
  launch_input_gradient<T, 1, false>(p, channels_are_adjacent(p.input), stream);
}

// --- Weight gradient ---

constexpr int kLanesOfWeightGradient = 4;  // nine sums of eight lanes would take too many registers

// The columns of the kernel that one thread sums at once (3: of three rows), and over how many parts of the
// items.
struct WeightGradientPlan {
  bool vectors, along_channels;
  int64_t columns, step;
  int x;  // threads along channels
  int64_t channel_blocks, tap_blocks, items, splits, items_of_split;
};

WeightGradientPlan weight_gradient_plan(const DepthwiseParams& p) {
  const Path path = path_of(p);
  const Window& w = p.window;
  WeightGradientPlan plan{path.vectors, path.along_channels, 1, 1, 1, 0, 0, 0, 0, 0};
  const bool wide = path.vectors && path.step == 1 && (path.columns == 5 || path.columns == 7);
  if (path.columns == 3 && w.kernel[0] == 3 && (path.step == 1 || path.vectors)) {
    plan.columns = 3;
    plan.step = path.step;
    plan.tap_blocks = 1;
  } else {
    plan.columns = wide ? path.columns : 1;
    plan.tap_blocks = w.kernel[0] * w.kernel[1] / plan.columns;
  }
  const int64_t vectors = path.vectors ? p.output.c / kLanesOfWeightGradient : p.output.c;
  plan.items = p.output.n * p.output.h * divide_up(p.output.w, kRun);
  plan.x = path.along_channels ? threads_along(vectors, 32) : 1;
  plan.channel_blocks = divide_up(vectors, plan.x);
  // Enough blocks to fill a large device, each with some items for every thread; of the shape alone, so that
  // the sums are the same everywhere.
  const int64_t threads_along_items = kBlockThreads / plan.x;
  const int64_t wanted = divide_up(1024, plan.channel_blocks * plan.tap_blocks);
  const int64_t most = divide_up(plan.items, threads_along_items * 4);
  plan.splits = std::clamp<int64_t>(wanted, 1, std::min<int64_t>(most, 512));
  plan.splits = std::max(plan.splits, divide_up(plan.items, kMostItems));
  plan.items_of_split = divide_up(plan.items, plan.splits);
  return plan;
}

template <class T, int kLanes, int kRows, int kColumns, int kStep>
void launch_weight_gradient(const WeightGradientPlan& plan, const WeightGradientArguments<T>& a,
                            Stream stream) {
  const dim3 grid(static_cast<unsigned>(plan.channel_blocks), static_cast<unsigned>(plan.splits),
                  static_cast<unsigned>(plan.tap_blocks));
  const dim3 block(plan.x, kBlockThreads / plan.x);
  SEPCONV_LAUNCH((depthwise_weight_gradient_kernel<T, kLanes, kRun, kRows, kColumns, kStep>), grid, block,
                 kBlockThreads * kLanes * sizeof(Compute<T>), static_cast<cudaStream_t>(stream), a);
  check_launch("depthwise_weight_gradient");
}

template <class T>
void launch_vector_weight_gradient(const WeightGradientPlan& plan, const WeightGradientArguments<T>& a,
                                   Stream stream) {
  constexpr int kLanes = kLanesOfWeightGradient;
  const auto is = [&](int64_t columns, int64_t step) { return plan.columns == columns && plan.step == step; };
  if (is(3, 1)) return launch_weight_gradient<T, kLanes, 3, 3, 1>(plan, a, stream);
  if (is(3, 2)) return launch_weight_gradient<T, kLanes, 3, 3, 2>(plan, a, stream);
  if (is(5, 1)) return launch_weight_gradient<T, kLanes, 1, 5, 1>(plan, a, stream);
  if (is(7, 1)) return launch_weight_gradient<T, kLanes, 1, 7, 1>(plan, a, stream);
  launch_weight_gradient<T, kLanes, 1, 1, 1>(plan, a, stream);
}

template <class T>
void add_splits(const DepthwiseParams& p, int channels, int64_t splits, T* grad_weight,
                const Compute<T>* partial, Stream stream) {
  const int taps = as_int(p.window.kernel[0] * p.window.kernel[1]);
  const dim3 grid(static_cast<unsigned>(divide_up(channels, kBlockThreads)), static_cast<unsigned>(taps));
  SEPCONV_LAUNCH((sum_of_splits_kernel<T>), grid, dim3(kBlockThreads), 0, static_cast<cudaStream_t>(stream),
                 partial, grad_weight, channels, taps, as_int(splits));
  check_launch("sum_of_splits");
}

template <class T>
void weight_gradient_of(const DepthwiseParams& p, void* grad_weight, void* workspace, Stream stream) {
  const WeightGradientPlan plan = weight_gradient_plan(p);
  const int64_t taps = p.window.kernel[0] * p.window.kernel[1];
  if (taps > kMostBlocksDown)
    throw std::runtime_error("sepconv: CUDA computes weight gradients of depthwise kernels of at most " +
                             std::to_string(kMostBlocksDown) + " elements, got " + std::to_string(taps));
  if (plan.items > 2 * kMostItems)
    throw std::runtime_error("sepconv: CUDA computes weight gradients of at most " +
                             std::to_string(2 * kMostItems * kRun) + " pixels at once");
  WeightGradientArguments<T> a{};
  a.grad_output = image_at<T>(p.output, 0);
  a.input = image_at<T>(p.input, 0);
  a.partial = static_cast<Compute<T>*>(workspace);
  a.grad_out = strides_of(p.output);
  a.in = strides_of(p.input);
  a.geometry = geometry_of(p.window, p.input, p.output);
  a.channels = as_int(p.output.c);
  a.multiplier = as_int(p.multiplier);
  a.items = static_cast<unsigned>(plan.items);
  a.items_of_split = static_cast<unsigned>(plan.items_of_split);

  if constexpr (!std::is_same_v<T, double>) {
    if (plan.vectors) {
      launch_vector_weight_gradient<T>(plan, a, stream);
      return add_splits(p, a.channels, plan.splits, static_cast<T*>(grad_weight), a.partial, stream);
    }
  }
  if (plan.columns == 3 && plan.step == 1)
    launch_weight_gradient<T, 1, 3, 3, 1>(plan, a, stream);
  else
    launch_weight_gradient<T, 1, 1, 1, 1>(plan, a, stream);
  add_splits(p, a.channels, plan.splits, static_cast<T*>(grad_weight), a.partial, stream);
}

}  // namespace

void depthwise(const DepthwiseParams& params, Stream stream) {
  with_type(params.dtype, [&](auto t) { depthwise_of<decltype(t)>(params, false, stream); });
}

void depthwise_input_gradient(const DepthwiseParams& params, Stream stream) {
  with_type(params.dtype, [&](auto t) { input_gradient_of<decltype(t)>(params, stream); });
}

int64_t workspace_of_depthwise_weight_gradient(const DepthwiseParams& params) {
  const int64_t taps = params.window.kernel[0] * params.window.kernel[1];
  const int64_t bytes = params.dtype == DType::kFloat64 ? 8 : 4;
  return weight_gradient_plan(params).splits * taps * params.output.c * bytes;
}

void depthwise_weight_gradient(const DepthwiseParams& params, void* grad_weight, void* workspace,
                               Stream stream) {
  with_type(params.dtype,
            [&](auto t) { weight_gradient_of<decltype(t)>(params, grad_weight, workspace, stream); });
}

}  // namespace sepconv::cuda
