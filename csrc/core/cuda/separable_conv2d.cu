#include <bit>
#include <cstdlib>
#include <cstring>

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

template <class T, int kPixels, int kSize, int kStep>
void launch(const SeparableConv2dParams& p, const Device& device, Stream stream) {
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

  // Of the shapes of a tile, the one of which it takes fewest: near squares first, whose windows overlap
  // least.
  const Geometry& g = a.geometry;
  int64_t tiles = 0;
  for (const int width : {16, 8, 32}) {
    const int height = kPixels / width;
    const int64_t along = divide_up(g.out_width, width), down = divide_up(g.out_height, height);
    if (tiles > 0 && tiles <= along * down) continue;
    tiles = along * down;
    a.tile_width_shift = std::countr_zero(static_cast<unsigned>(width));
    a.rows_of_thread = kSize > 0 ? height : 1;
    a.tiles_along = static_cast<unsigned>(along);
    a.tiles_down = static_cast<unsigned>(down);
  }
  tiles *= p.output.n;
  // Long walks, whose ends overlap less, where every thread has one.
  const auto items = [&] {
    return a.padded_channels / kRowsLanes * (kPixels / kFusedRun / a.rows_of_thread);
  };
  while (a.rows_of_thread > 1 && items() < kFusedThreads) a.rows_of_thread /= 2;
  a.quads = moves_vectors(p.output, 4, p.dtype);
  // Few tiles: several blocks share one, each with some of its output channels.
  const int64_t output_tiles = divide_up(a.out_channels, kFusedOutputs);
  const int64_t blocks_of_tile = std::clamp<int64_t>(device.multiprocessors / tiles, 1, output_tiles);
  a.output_tiles_of_block = static_cast<int>(divide_up(output_tiles, blocks_of_tile));
  const dim3 grid(static_cast<unsigned>(as_int(tiles)),
                  static_cast<unsigned>(divide_up(output_tiles, a.output_tiles_of_block)));

  const FusedShared<T, kPixels> shared(a.padded_channels);
  const auto kernel = separable_conv2d_kernel<T, kPixels, kSize, kStep>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared.bytes()));
  SEPCONV_LAUNCH(kernel, grid, dim3(kFusedThreads), static_cast<size_t>(shared.bytes()),
                 static_cast<cudaStream_t>(stream), a);
  check_launch("separable_conv2d");
}

template <class T, int kPixels>
void of_window(const SeparableConv2dParams& p, const Device& device, Stream stream) {
  const Window& w = p.window;
  const auto both = [](const auto& pair, int64_t value) { return pair[0] == value && pair[1] == value; };
  const bool walks = both(w.kernel, 3) && both(w.dilation, 1);
  if (walks && both(w.stride, 1)) return launch<T, kPixels, 3, 1>(p, device, stream);
  if (walks && both(w.stride, 2)) return launch<T, kPixels, 3, 2>(p, device, stream);
  launch<T, kPixels, 0, 0>(p, device, stream);
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
  const char* const path = std::getenv("SEPCONV_CUDA_PATH");
  return path != nullptr && std::strcmp(path, "fused") == 0 && can_fuse(p, current_device());
}

void separable_conv2d(const SeparableConv2dParams& p, Stream stream) {
  const Device device = current_device();
  const bool wide = pixels_of(p, device) == 128;
  const auto run = [&](auto t) {
    using T = decltype(t);
    wide ? of_window<T, 128>(p, device, stream) : of_window<T, 64>(p, device, stream);
  };
  p.dtype == DType::kFloat16 ? run(Float16{}) : run(BFloat16{});
}

}  // namespace sepconv::cuda
