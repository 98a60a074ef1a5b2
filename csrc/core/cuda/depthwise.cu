#include <sstream>
#include <string>
#include <type_traits>
#include <utility>

#include "core/cuda/depthwise.cuh"
#include "core/cuda/depthwise.h"
#include "core/cuda/depthwise_backward.cuh"
#include "core/cuda/depthwise_rows.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/prologue.h"

namespace sepconv::cuda {
namespace {

constexpr int kRun = 4;
constexpr int64_t kMostItems = int64_t{1} << 30;

template <class T>
T* image_at(const Image& image, int64_t n) {
  return static_cast<T*>(image.data) + n * image.stride_n;
}

// What the threads of a launch share out.
struct Work {
  int64_t items, channels;
  int lanes;  // channels of a thread
  bool along_channels = true;
  size_t weight_bytes = 0;  // of shared memory, for the weights of one channel
  int threads = kBlockThreads, items_of_thread = kItemsOfDepthwise;
};

// Calls launch(grid, block, shared bytes, first channel) with blocks that cover the work.
template <class Launch>
void in_blocks(const Work& work, const Launch& launch) {
  const auto [items, channels, lanes, along_channels, weight_bytes, threads, items_of_thread] = work;
  const int64_t vectors = divide_up(channels, lanes);
  // Few items: more threads along the channels, so that none is idle.
  int x = along_channels ? threads_along(vectors, items >= 64 ? 32 : threads) : 1;
  while (x > 1 && x * lanes * weight_bytes > kSharedBytes) x /= 2;
  const int y = threads / x;
  const auto along_items = static_cast<unsigned>(divide_up(items, y * items_of_thread));
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

// --- Walks down rows of NHWC images ---

// The size of a square kernel that such kernels are compiled for, or 0.
int64_t size_for_rows(const DepthwiseParams& p) {
  const Window& w = p.window;
  const bool square = w.kernel[0] == w.kernel[1] && w.stride[0] == w.stride[1];
  const bool taken = w.dilation[0] == 1 && w.dilation[1] == 1 && w.stride[0] <= 2 && p.multiplier == 1 &&
                     p.dtype != DType::kFloat64 && moves_vectors(p.input, kRowsLanes, p.dtype) &&
                     moves_vectors(p.output, kRowsLanes, p.dtype);
  return square && taken ? w.kernel[0] : 0;
}

constexpr int64_t kMostRows = 16, kFewestRows = 4;  // of a band
constexpr int64_t kThreadsWanted = int64_t{1} << 18;

// Long bands, whose ends overlap less, where there are threads enough.
Bands bands_of(const DepthwiseParams& p, int64_t batch, int64_t height, int64_t width, int run) {
  const int64_t columns = divide_up(width, run), vectors = divide_up(p.output.c, kRowsLanes);
  int64_t rows = kMostRows;
  while (rows > kFewestRows && p.output.n * divide_up(height, rows) * columns * vectors < kThreadsWanted)
    rows /= 2;
  const int64_t bands = divide_up(height, rows);
  return {as_int(divide_up(height, bands)), static_cast<unsigned>(bands), static_cast<unsigned>(columns),
          static_cast<unsigned>(batch * bands * columns)};
}

// Calls kernel with blocks that cover `height` rows of `width` columns of all images, each thread `run` of
// them.
template <class T, class Kernel>
void launch_rows(const Kernel& kernel, const DepthwiseParams& p, const Image& from, const Image& to,
                 int64_t height, int64_t width, int run, bool flipped, Stream stream) {
  DepthwiseRowsArguments<T> a{};
  a.weight = static_cast<const T*>(p.weight);
  a.bias = static_cast<const T*>(p.bias);
  a.in = strides_of(from);
  a.out = strides_of(to);
  a.geometry = geometry_of(p.window, p.input, p.output);
  a.prologue = prologue_arguments<Compute<T>>(p.prologue);
  a.channels = as_int(to.c);
  a.flipped = flipped;
  const int64_t size = p.window.kernel[0];  // 3: its weights go to registers
  const size_t weight_bytes = size == 3 ? 0 : size * size * sizeof(T);
  in_batches(to.n, height * divide_up(width, run), kMostItems, [&](int64_t n, int64_t count) {
    a.input = image_at<T>(from, n);
    a.output = image_at<T>(to, n);
    a.bands = bands_of(p, count, height, width, run);
    in_blocks({a.bands.items, a.channels, kRowsLanes, true, weight_bytes, kRowsThreads, 1},
              [&](dim3 grid, dim3 block, size_t shared, int first_channel) {
                a.first_channel = first_channel;
                SEPCONV_LAUNCH(kernel, grid, block, shared, static_cast<cudaStream_t>(stream), a);
                check_launch("depthwise_rows");
              });
  });
}

// Calls body(size, step), as constants, where there is a kernel for such windows; whether there is one.
template <class Body>
bool with_rows_kernel(int64_t size, int64_t step, const Body& body) {
  const auto of = [&]<int kSize, int kStep>(std::integer_sequence<int, kSize, kStep>) {
    if (size != kSize || step != kStep) return false;
    body(std::integral_constant<int, kSize>{}, std::integral_constant<int, kStep>{});
    return true;
  };
  return of(std::integer_sequence<int, 3, 1>{}) || of(std::integer_sequence<int, 3, 2>{}) ||
         of(std::integer_sequence<int, 5, 1>{}) || of(std::integer_sequence<int, 5, 2>{}) ||
         of(std::integer_sequence<int, 7, 1>{});
}

// Whether there is such a kernel for this call, which it has then launched.
template <class T>
bool depthwise_by_rows(const DepthwiseParams& p, bool flipped, Stream stream) {
  return with_rows_kernel(size_for_rows(p), p.window.stride[0], [&](auto size, auto step) {
    const auto launch = [&](const auto& kernel) {
      launch_rows<T>(kernel, p, p.input, p.output, p.output.h, p.output.w, kRowsRun<size()>, flipped, stream);
    };
    if constexpr (size() == 3) {
      if (!is_identity(p.prologue)) return launch(depthwise_rows_kernel<T, 3, step(), true>);
    }
    launch(depthwise_rows_kernel<T, size(), step(), false>);
  });
}

template <class T>
bool input_gradient_by_rows(const DepthwiseParams& p, Stream stream) {
  const int64_t size = size_for_rows(p);
  const auto launch = [&](const auto& kernel) {
    launch_rows<T>(kernel, p, p.output, p.input, (p.input.h + p.window.padding[0] + 1) / 2,
                   (p.input.w + p.window.padding[1] + 1) / 2, kRunOfInputGradient, false, stream);
    return true;
  };
  if (p.window.stride[0] != 2) return false;
  if (size == 3) return launch(depthwise_rows_input_gradient_kernel<T, 3>);
  if (size == 5) return launch(depthwise_rows_input_gradient_kernel<T, 5>);
  return false;
}

// --- Any window ---

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
    in_blocks({a.items, a.channels, kLanes, along_channels, kShared ? taps * sizeof(T) : 0},
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
    if (depthwise_by_rows<T>(p, flipped, stream)) return;
    constexpr int kLanes = kVectorLanes<T>;
    if (path.vectors) {
      if (path.shared) return launch_depthwise<T, kLanes, 0, 0, true>(p, flipped, true, stream);
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
    in_blocks({a.items, a.channels, kLanes, along_channels, kShared ? taps * sizeof(T) : 0},
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
    flipped.prologue = {};
    for (int axis = 0; axis < 2; ++axis)
      flipped.window.padding[axis] = w.dilation[axis] * (w.kernel[axis] - 1) - w.padding[axis];
    return depthwise_of<T>(flipped, true, stream);
  }
  const Path path = path_of(p);
  if constexpr (!std::is_same_v<T, double>) {
    if (input_gradient_by_rows<T>(p, stream)) return;
    constexpr int kLanes = kVectorLanes<T>;
    if (path.vectors && path.shared) return launch_input_gradient<T, kLanes, true>(p, true, stream);
    if (path.vectors) return launch_input_gradient<T, kLanes, false>(p, true, stream);
  }
  launch_input_gradient<T, 1, false>(p, channels_are_adjacent(p.input), stream);
}

// --- Weight gradient ---

constexpr int kLanesOfWeightGradient = 4;  // seven sums of eight lanes would take too many registers

// Whether a thread walks down rows and sums the whole kernel; else the columns of the kernel that it sums at
// once (3: of three rows). And over how many parts of the items.
struct WeightGradientPlan {
  bool by_rows, vectors, along_channels;
  int64_t columns;
  int x;  // threads along channels
  int64_t channel_blocks, tap_blocks, items, splits, items_of_split;
};

WeightGradientPlan weight_gradient_plan(const DepthwiseParams& p) {
  const Path path = path_of(p);
  const Window& w = p.window;
  WeightGradientPlan plan{size_for_rows(p) == 3, path.vectors, path.along_channels, 1, 1, 0, 0, 0, 0, 0};
  const bool wide = path.vectors && path.step == 1 && (path.columns == 5 || path.columns == 7);
  if (plan.by_rows) {
    plan.tap_blocks = 1;
  } else if (!path.vectors && path.columns == 3 && w.kernel[0] == 3 && path.step == 1) {
    plan.columns = 3;
    plan.tap_blocks = 1;
  } else {
    plan.columns = wide ? path.columns : 1;
    plan.tap_blocks = w.kernel[0] * w.kernel[1] / plan.columns;
  }
  int64_t vectors = path.vectors ? p.output.c / kLanesOfWeightGradient : p.output.c;
  plan.items = p.output.n * p.output.h * divide_up(p.output.w, kRun);
  if (plan.by_rows) {
    vectors = p.output.c / kRowsLanes;
    plan.items = bands_of(p, p.output.n, p.output.h, p.output.w, kRowsRun<3>).items;
  }
  plan.x = plan.by_rows || path.along_channels ? threads_along(vectors, 32) : 1;
  plan.channel_blocks = divide_up(vectors, plan.x);
  // Enough blocks to fill a large device, each with some items for every thread; of the shape alone, so that
  // the sums are the same everywhere.
  const int64_t threads = plan.by_rows ? kRowsThreads : kBlockThreads;
  const int64_t threads_along_items = threads / plan.x, items_of_thread = plan.by_rows ? 1 : 4;
  const int64_t wanted = divide_up(1024, plan.channel_blocks * plan.tap_blocks);
  const int64_t most = divide_up(plan.items, threads_along_items * items_of_thread);
  plan.splits = std::clamp<int64_t>(wanted, 1, std::min<int64_t>(most, 512));
  plan.splits = std::max(plan.splits, divide_up(plan.items, kMostItems));
  plan.items_of_split = divide_up(plan.items, plan.splits);
  return plan;
}

template <class T, int kStep, bool kPrologue>
void launch_rows_weight_gradient(const WeightGradientPlan& plan, const DepthwiseParams& p,
                                 Compute<T>* partial, Stream stream) {
  RowsWeightGradientArguments<T> a{};
  a.grad_output = image_at<T>(p.output, 0);
  a.input = image_at<T>(p.input, 0);
  a.partial = partial;
  a.grad_out = strides_of(p.output);
  a.in = strides_of(p.input);
  a.geometry = geometry_of(p.window, p.input, p.output);
  a.bands = bands_of(p, p.output.n, p.output.h, p.output.w, kRowsRun<3>);
  a.prologue = prologue_arguments<Compute<T>>(p.prologue);
  a.channels = as_int(p.output.c);
  a.items_of_split = static_cast<unsigned>(plan.items_of_split);
  const dim3 grid(static_cast<unsigned>(plan.channel_blocks), static_cast<unsigned>(plan.splits));
  const dim3 block(plan.x, kRowsThreads / plan.x);
  SEPCONV_LAUNCH((depthwise_rows_weight_gradient_kernel<T, 3, kStep, kPrologue>), grid, block,
                 kRowsThreads * kRowsLanes * 9 * sizeof(Compute<T>), static_cast<cudaStream_t>(stream), a);
  check_launch("depthwise_rows_weight_gradient");
}

template <class T, int kLanes, int kRows, int kColumns>
void launch_weight_gradient(const WeightGradientPlan& plan, const WeightGradientArguments<T>& a,
                            Stream stream) {
  const dim3 grid(static_cast<unsigned>(plan.channel_blocks), static_cast<unsigned>(plan.splits),
                  static_cast<unsigned>(plan.tap_blocks));
  const dim3 block(plan.x, kBlockThreads / plan.x);
  SEPCONV_LAUNCH((depthwise_weight_gradient_kernel<T, kLanes, kRun, kRows, kColumns>), grid, block,
                 kBlockThreads * kLanes * sizeof(Compute<T>), static_cast<cudaStream_t>(stream), a);
  check_launch("depthwise_weight_gradient");
}

template <class T>
void launch_vector_weight_gradient(const WeightGradientPlan& plan, const WeightGradientArguments<T>& a,
                                   Stream stream) {
  constexpr int kLanes = kLanesOfWeightGradient;
  if (plan.columns == 5) return launch_weight_gradient<T, kLanes, 1, 5>(plan, a, stream);
  if (plan.columns == 7) return launch_weight_gradient<T, kLanes, 1, 7>(plan, a, stream);
  launch_weight_gradient<T, kLanes, 1, 1>(plan, a, stream);
}

template <class T>
void add_splits(const DepthwiseParams& p, int channels, int64_t splits, T* grad_weight,
                const Compute<T>* partial, Stream stream) {
  const int taps = as_int(p.window.kernel[0] * p.window.kernel[1]);
  const dim3 grid(static_cast<unsigned>(divide_up(channels, kChannelsOfSum)), static_cast<unsigned>(taps));
  SEPCONV_LAUNCH((sum_of_splits_kernel<T>), grid, dim3(kChannelsOfSum, kBlockThreads / kChannelsOfSum),
                 kBlockThreads * sizeof(Compute<T>), static_cast<cudaStream_t>(stream), partial, grad_weight,
                 channels, taps, as_int(splits));
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
  auto* const partial = static_cast<Compute<T>*>(workspace);
  const auto add = [&] {
    add_splits(p, as_int(p.output.c), plan.splits, static_cast<T*>(grad_weight), partial, stream);
  };
  if constexpr (!std::is_same_v<T, double>) {
    if (plan.by_rows) {
      const auto launch = [&]<int kStep>(std::integral_constant<int, kStep>) {
        is_identity(p.prologue) ? launch_rows_weight_gradient<T, kStep, false>(plan, p, partial, stream)
                                : launch_rows_weight_gradient<T, kStep, true>(plan, p, partial, stream);
      };
      p.window.stride[0] == 1 ? launch(std::integral_constant<int, 1>{})
                              : launch(std::integral_constant<int, 2>{});
      return add();
    }
  }
  WeightGradientArguments<T> a{};
  a.grad_output = image_at<T>(p.output, 0);
  a.input = image_at<T>(p.input, 0);
  a.partial = partial;
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
      return add();
    }
  }
  if (plan.columns == 3)
    launch_weight_gradient<T, 1, 3, 3>(plan, a, stream);
  else
    launch_weight_gradient<T, 1, 1, 1>(plan, a, stream);
  add();
}

void check_prologue(const DepthwiseParams& p) {
  if (!is_identity(p.prologue) && !loads_prologue(p))
    throw std::runtime_error(
        "sepconv: no CUDA kernel applies a prologue on load in this depthwise convolution");
}

}  // namespace

std::string describe_depthwise(const DepthwiseParams& p) {
  geometry_of(p.window, p.input, p.output);  // refuses what it would
  std::ostringstream text;
  // The first launch and how many there are, of `items_of_image`, which work(images) turns into blocks.
  const auto launches = [&](int64_t items_of_image, const auto& work) {
    int64_t count = 0;
    in_batches(p.output.n, items_of_image, kMostItems, [&](int64_t, int64_t images) {
      in_blocks(work(images), [&](dim3 grid, dim3 block, size_t shared, int) {
        if (++count > 1) return;
        text << grid.x << " x " << grid.y << " blocks of " << block.x << " x " << block.y << " threads";
        if (shared > 0) text << ", " << shared << " bytes of shared memory";
      });
    });
    if (count > 1) text << ", " << count << " launches";
  };
  text << "depthwise          ";
  const bool by_rows = with_rows_kernel(size_for_rows(p), p.window.stride[0], [&](auto size, auto) {
    constexpr int kRun = kRowsRun<size()>;
    const Bands bands = bands_of(p, p.output.n, p.output.h, p.output.w, kRun);
    const size_t weight_bytes = size() == 3 ? 0 : size() * size() * bytes_of(p.dtype);
    text << "down " << bands.rows << " rows, " << kRun << " columns and " << kRowsLanes
         << " channels a thread: ";
    launches(p.output.h * divide_up(p.output.w, kRun), [&](int64_t images) -> Work {
      const Bands of_launch = bands_of(p, images, p.output.h, p.output.w, kRun);
      return {of_launch.items, p.output.c, kRowsLanes, true, weight_bytes, kRowsThreads, 1};
    });
  });
  if (!by_rows) {
    const Path path = path_of(p);
    const int lanes = path.vectors ? 16 / static_cast<int>(bytes_of(p.dtype)) : 1;
    const int64_t taps = p.window.kernel[0] * p.window.kernel[1],
                  runs = p.output.h * divide_up(p.output.w, kRun);
    text << "any window, " << kRun << " columns and " << lanes << (lanes > 1 ? " channels" : " channel")
         << " a thread: ";
    launches(runs, [&](int64_t images) -> Work {
      return {runs * images, p.output.c, lanes, path.along_channels,
              path.shared ? taps * bytes_of(p.dtype) : 0};
    });
  }
  const WeightGradientPlan weights = weight_gradient_plan(p);
  text << "\nweight gradient    " << (weights.by_rows ? "down rows: " : "any window: ")
       << weights.channel_blocks << " x " << weights.tap_blocks << " blocks of channels and taps, "
       << weights.splits << " parts that a second kernel adds\n";
  return text.str();
}

bool loads_prologue(const DepthwiseParams& params) {
  return size_for_rows(params) == 3;
}

void depthwise(const DepthwiseParams& params, Stream stream) {
  check_prologue(params);
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
  check_prologue(params);
  with_type(params.dtype,
            [&](auto t) { weight_gradient_of<decltype(t)>(params, grad_weight, workspace, stream); });
}

}  // namespace sepconv::cuda
