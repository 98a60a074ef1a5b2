#include <bit>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>

#include "core/cuda/launch.cuh"
#include "core/cuda/separable_conv2d.cuh"
#include "core/cuda/separable_conv2d.h"

namespace sepconv::cuda {
namespace {

int padded_channels(DType dtype, int64_t channels) {
  const int64_t chunk = 64 / static_cast<int64_t>(bytes_of(dtype));
  return as_int(divide_up(channels, chunk) * chunk);
}

// Pixels of a tile: as many as leave room for the panel.
int pixels_of(const SeparableConv2dParams& p, const Device& device) {
  if (p.input.c > device.shared_bytes) return 0;
  const int channels = padded_channels(p.dtype, p.input.c);
  if (FusedShared<Float16, 128>(channels).bytes() <= device.shared_bytes) return 128;
  if (FusedShared<Float16, 64>(channels).bytes() <= device.shared_bytes) return 64;
  return 0;
}

// How the fused kernel shares out a call. Tiles are 2^width_shift columns wide.
struct FusedPlan {
  int pixels, width_shift, rows_of_thread;
  int64_t tiles_along, tiles_down;  // of one image
  int64_t blocks_of_tile, output_tiles_of_block;
  int64_t shared_bytes;
};

bool walks_rows(const Window& w) {
  const auto both = [](const auto& pair, int64_t value) { return pair[0] == value && pair[1] == value; };
  return both(w.kernel, 3) && both(w.dilation, 1) && (both(w.stride, 1) || both(w.stride, 2));
}

FusedPlan fused_plan(const SeparableConv2dParams& p, const Device& device) {
  FusedPlan plan{};
  plan.pixels = pixels_of(p, device);
  const int channels = padded_channels(p.dtype, p.input.c);
  plan.shared_bytes = plan.pixels == 128 ? FusedShared<Float16, 128>(channels).bytes()
                                         : FusedShared<Float16, 64>(channels).bytes();
  // Of the shapes of a tile, the one of which it takes fewest: near squares first, whose windows overlap
  // least.
  for (const int width : {16, 8, 32}) {
    const int height = plan.pixels / width;
    const int64_t along = divide_up(p.output.w, width), down = divide_up(p.output.h, height);
    if (plan.tiles_along > 0 && plan.tiles_along * plan.tiles_down <= along * down) continue;
    plan.width_shift = std::countr_zero(static_cast<unsigned>(width));
    plan.rows_of_thread = walks_rows(p.window) ? height : 1;
    plan.tiles_along = along;
    plan.tiles_down = down;
  }
  // Long walks, whose ends overlap less, where every thread has one.
  const auto items = [&] { return channels / kRowsLanes * (plan.pixels / kFusedRun / plan.rows_of_thread); };
  while (plan.rows_of_thread > 1 && items() < kFusedThreads) plan.rows_of_thread /= 2;
  // Few tiles: several blocks share one, each with some of its output channels.
  const int64_t tiles = plan.tiles_along * plan.tiles_down * p.output.n;
  const int64_t output_tiles = divide_up(p.output.c, kFusedOutputs);
  const int64_t blocks_of_tile = std::clamp<int64_t>(device.multiprocessors / tiles, 1, output_tiles);
  plan.output_tiles_of_block = divide_up(output_tiles, blocks_of_tile);
  plan.blocks_of_tile = divide_up(output_tiles, plan.output_tiles_of_block);
  return plan;
}

template <class T, int kPixels, int kSize, int kStep>
void launch(const SeparableConv2dParams& p, const FusedPlan& plan, Stream stream) {
  FusedArguments<T> a{};
  a.input = static_cast<const T*>(p.input.data);
  a.output = static_cast<T*>(p.output.data);
  a.depthwise_weight = static_cast<const T*>(p.depthwise_weight);
  a.depthwise_bias = static_cast<const T*>(p.middle.shift);
  a.pointwise_weight = static_cast<const T*>(p.pointwise_weight);
  a.pointwise_bias = static_cast<const T*>(p.epilogue.shift);
  a.in = strides_of(p.input);
  a.out = strides_of(p.output);
  a.geometry = geometry_of(p.window, p.input, p.output);
  a.channels = as_int(p.input.c);
  a.padded_channels = padded_channels(p.dtype, p.input.c);
  a.out_channels = as_int(p.output.c);
  a.tile_width_shift = plan.width_shift;
  a.rows_of_thread = plan.rows_of_thread;
  a.tiles_along = static_cast<unsigned>(plan.tiles_along);
  a.tiles_down = static_cast<unsigned>(plan.tiles_down);
  a.quads = moves_vectors(p.output, 4, p.dtype);
  a.output_tiles_of_block = as_int(plan.output_tiles_of_block);
  const dim3 grid(static_cast<unsigned>(as_int(plan.tiles_along * plan.tiles_down * p.output.n)),
                  static_cast<unsigned>(plan.blocks_of_tile));
  const auto kernel = separable_conv2d_kernel<T, kPixels, kSize, kStep>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(plan.shared_bytes));
  SEPCONV_LAUNCH(kernel, grid, dim3(kFusedThreads), static_cast<size_t>(plan.shared_bytes),
                 static_cast<cudaStream_t>(stream), a);
  check_launch("separable_conv2d");
}

template <class T, int kPixels>
void of_window(const SeparableConv2dParams& p, const FusedPlan& plan, Stream stream) {
  if (!walks_rows(p.window)) return launch<T, kPixels, 0, 0>(p, plan, stream);
  p.window.stride[0] == 1 ? launch<T, kPixels, 3, 1>(p, plan, stream)
                          : launch<T, kPixels, 3, 2>(p, plan, stream);
}

bool asks_for_fusion() {
  const char* const path = std::getenv("SEPCONV_CUDA_PATH");
  return path != nullptr && std::strcmp(path, "fused") == 0;
}

bool can_fuse(const SeparableConv2dParams& p, const Device& device) {
  if (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) return false;
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const int64_t pixels = p.output.n * p.output.h * p.output.w;
  return p.depth_multiplier == 1 && pixels <= kMostBlocks && moves_vectors(p.input, 8, p.dtype) &&
         moves_vectors(p.output, 2, p.dtype) && aligned(p.pointwise_weight) && pixels_of(p, device) > 0;
}

}  // namespace

bool fuses_separable_conv2d(const SeparableConv2dParams& p) {
  return asks_for_fusion() && can_fuse(p, current_device());
}

void separable_conv2d(const SeparableConv2dParams& p, Stream stream) {
  const FusedPlan plan = fused_plan(p, current_device());
  const auto run = [&](auto t) {
    using T = decltype(t);
    plan.pixels == 128 ? of_window<T, 128>(p, plan, stream) : of_window<T, 64>(p, plan, stream);
  };
  p.dtype == DType::kFloat16 ? run(Float16{}) : run(BFloat16{});
}

std::string describe_separable_conv2d(const SeparableConv2dParams& p, const Device& device) {
  const Image& out = p.output;
  std::ostringstream text;
  text << "GPU                " << device.multiprocessors << " multiprocessors, "
       << device.shared_bytes / 1024 << " KiB of shared memory a block\n"
       << "output             " << out.n << " x " << out.c << " x " << out.h << " x " << out.w << "\n"
       << "forward            ";
  if (!can_fuse(p, device)) {
    text << "in stages: the fused kernel does not serve this call\n";
  } else {
    const FusedPlan plan = fused_plan(p, device);
    text << (asks_for_fusion() ? "fused: " : "in stages; SEPCONV_CUDA_PATH=fused would fuse: ")
         << plan.tiles_along * plan.tiles_down * out.n << " tiles of " << (plan.pixels >> plan.width_shift)
         << " x " << (1 << plan.width_shift) << " pixels x " << plan.blocks_of_tile << " blocks of "
         << plan.output_tiles_of_block * kFusedOutputs << " output channels, "
         << (plan.shared_bytes + 1023) / 1024 << " KiB of shared memory\n";
  }
  return text.str();
}

}  // namespace sepconv::cuda
