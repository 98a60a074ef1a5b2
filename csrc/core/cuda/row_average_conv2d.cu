#include <algorithm>

#include "core/cuda/launch.cuh"
#include "core/cuda/row_average_conv2d.cuh"
#include "core/cuda/row_average_conv2d.h"

namespace sepconv::cuda {
namespace {

DenseShape shape_of(const RowAverageConv2dParams& p) {
  DenseShape shape;
  shape.input = p.input;
  shape.output = p.output;
  for (int axis = 0; axis < 2; ++axis) {
    shape.kernel[axis] = p.window.kernel[axis];
    shape.stride[axis] = p.window.stride[axis];
    shape.padding[axis] = p.window.padding[axis];
    shape.dilation[axis] = p.window.dilation[axis];
  }
  shape.row_stride = p.prologue.row_average_stride;
  shape.averages = shape.row_stride == 0 ? p.input.h : row_average_size(p.input.h, shape.row_stride);
  shape.taps = p.window.kernel[0] * p.window.kernel[1];
  shape.depth = p.input.c * shape.taps;
  return shape;
}

// Elements from a kept row to the next, at least `columns`: rows of pixels that one warp reads together begin
// on banks of their own where some padding does that.
int64_t pitch_of_rows(int64_t columns, int64_t width, int64_t stride) {
  constexpr int64_t kBanks = 32;
  const int64_t rows = kBanks / width;
  for (int64_t pitch = columns; rows > 1 && pitch < columns + kBanks; ++pitch)
    if (const int64_t apart = stride * pitch % kBanks; apart % width == 0 && apart / width % 2 == 1)
      return pitch;
  return columns;
}

// The part of a tile that a chunk of the depth fits: whole channels where their rows are kept.
void fit_chunk(const DenseShape& shape, size_t size, DenseTile& tile) {
  constexpr int64_t kMostRows = 1 << 12;  // far more than fit
  const int64_t of_depth = static_cast<int64_t>(kDenseWeightPitch * size + sizeof(int)),
                budget = static_cast<int64_t>(kSharedBytes - 4 * size);  // less what rounding up takes
  const auto extent = [&](int64_t pixels, int axis) {
    return (pixels - 1) * shape.stride[axis] + (shape.kernel[axis] - 1) * shape.dilation[axis] + 1;
  };
  const int64_t rows = extent(tile.height, 0), columns = extent(int64_t{1} << tile.width_shift, 1);
  tile.rows_kept = false;
  if (rows <= kMostRows && columns <= kMostRows) {
    const int64_t phases = std::min(shape.stride[1], columns), phase_pitch = divide_up(columns, phases);
    const int64_t pitch =
        pitch_of_rows(phases * phase_pitch, int64_t{1} << tile.width_shift, shape.stride[0]);
    const int64_t plane = rows * pitch;
    const int64_t channels =
        std::min(shape.input.c, budget / (plane * static_cast<int64_t>(size) + shape.taps * of_depth));
    // Many rows or columns lie between the taps of a large stride: then a panel is smaller.
    if (channels > 0 && plane <= 2 * shape.taps * tile.pixels) {
      tile.rows_kept = true;
      tile.rows = static_cast<int>(rows);
      tile.columns = static_cast<int>(columns);
      tile.phase_pitch = static_cast<int>(phase_pitch);
      tile.pitch = static_cast<int>(pitch);
      tile.channels = static_cast<int>(channels);
      tile.by_channels = SmallDivisor(channels);
      tile.by_last_channels =
          SmallDivisor(shape.input.c % channels == 0 ? channels : shape.input.c % channels);
      tile.by_stride = SmallDivisor(shape.stride[1]);
      tile.chunk = static_cast<int>(channels * shape.taps);
      tile.values = channels * plane;
    }
  }
  if (!tile.rows_kept) {
    tile.chunk = static_cast<int>(
        std::min(shape.depth, budget / (tile.pixels * static_cast<int64_t>(size) + of_depth)));
    tile.values = static_cast<int64_t>(tile.chunk) * tile.pixels;
  }
  tile.values = divide_up(tile.values, 4) * 4;  // weights begin at a vector
}

DenseTile tile_of(const RowAverageConv2dParams& p, const DenseShape& shape) {
  DenseTile tile{};
  const Image& y = p.output;
  tile.channels_adjacent = channels_are_adjacent(p.input);
  tile.groups_shift = y.c <= kDenseChannels ? 0 : y.c <= 2 * kDenseChannels ? 1 : 2;
  tile.pixels = (kDenseWarps >> tile.groups_shift) * kDensePixels * 32;
  // The width that leaves the fewest pixels outside, rather wide than tall.
  int64_t least = -1;
  for (int shift : {5, 4, 3}) {
    const int64_t width = int64_t{1} << shift, height = tile.pixels >> shift;
    const int64_t covered = divide_up(y.w, width) * width * divide_up(y.h, height) * height;
    if (least >= 0 && covered >= least) continue;
    least = covered;
    tile.width_shift = shift;
    tile.height = static_cast<int>(height);
  }
  const size_t size = p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  fit_chunk(shape, size, tile);
  tile.tiles_w = static_cast<unsigned>(as_int(divide_up(y.w, int64_t{1} << tile.width_shift)));
  tile.tiles_h = static_cast<unsigned>(as_int(divide_up(y.h, tile.height)));
  tile.tiles_c = static_cast<unsigned>(as_int(divide_up(y.c, kDenseChannels << tile.groups_shift)));
  return tile;
}

GradientShape gradient_shape(const RowAverageConv2dParams& p) {
  constexpr int64_t kBlocks = 1024, kLeastRuns = 4;
  const Image& y = p.output;
  const int64_t depth = p.input.c * p.window.kernel[0] * p.window.kernel[1];
  GradientShape shape;
  shape.channels_adjacent = channels_are_adjacent(y);
  shape.tiles_o = static_cast<unsigned>(as_int(divide_up(y.c, kGradientEdge)));
  shape.tiles_k = static_cast<unsigned>(as_int(divide_up(depth, kGradientEdge)));
  const int64_t tiles = as_int(static_cast<int64_t>(shape.tiles_o) * shape.tiles_k);
  shape.pixels = y.n * y.h * y.w;
  const int64_t most = std::max<int64_t>(1, shape.pixels / (kGradientPixels * kLeastRuns));
  shape.splits = std::clamp<int64_t>(kBlocks / tiles, 1, most);
  return shape;
}

}  // namespace

void row_average_conv2d(const RowAverageConv2dParams& p, Stream stream) {
  DenseShape shape = shape_of(p);
  DenseTile tile = tile_of(p, shape);
  const int64_t blocks_of_image =
      static_cast<int64_t>(as_int(static_cast<int64_t>(tile.tiles_w) * tile.tiles_h)) * tile.tiles_c;
  as_int(blocks_of_image);
  with_type(p.dtype, [&](auto type) {
    using S = decltype(type);
    using T = Compute<S>;
    tile.stores_vectors = moves_vectors(p.output, kVectorLanes<S>, p.dtype);
    const size_t shared =
        (tile.values + tile.chunk * kDenseWeightPitch) * sizeof(T) + tile.chunk * sizeof(int);
    in_batches(p.output.n, blocks_of_image, kMostBlocks, [&](int64_t n, int64_t count) {
      SEPCONV_LAUNCH((row_average_conv2d_kernel<S>), static_cast<unsigned>(blocks_of_image * count),
                     kDenseThreads, shared, static_cast<cudaStream_t>(stream),
                     static_cast<const S*>(p.input.data) + n * p.input.stride_n,
                     static_cast<const S*>(p.weight), static_cast<const S*>(p.epilogue.shift),
                     static_cast<S*>(p.output.data) + n * p.output.stride_n, shape, tile, divisors_of<T>());
      check_launch("row_average_conv2d");
    });
  });
}

int64_t workspace_of_row_average_conv2d_weight_gradient(const RowAverageConv2dParams& p) {
  const int64_t depth = p.input.c * p.window.kernel[0] * p.window.kernel[1];
  return gradient_shape(p).splits * p.output.c * depth *
         static_cast<int64_t>(p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
}

void row_average_conv2d_weight_gradient(const RowAverageConv2dParams& p, void* grad_weight, void* workspace,
                                        Stream stream) {
  const DenseShape shape = shape_of(p);
  const GradientShape split_shape = gradient_shape(p);
  const unsigned blocks =
      static_cast<unsigned>(as_int(split_shape.splits * split_shape.tiles_o * split_shape.tiles_k));
  const int64_t elements = p.output.c * shape.depth;
  with_type(p.dtype, [&](auto type) {
    using S = decltype(type);
    using T = Compute<S>;
    constexpr size_t kShared = 2 * kGradientPixels * kGradientPitch * sizeof(T);
    static_assert(kShared <= kSharedBytes &&
                  kShared >= kGradientQuarters * kGradientEdge * kGradientEdge * sizeof(T));
    SEPCONV_LAUNCH((row_average_conv2d_weight_gradient_kernel<S>), blocks, kDenseThreads, kShared,
                   static_cast<cudaStream_t>(stream), static_cast<const S*>(p.input.data),
                   static_cast<const S*>(p.output.data), static_cast<T*>(workspace), shape, split_shape,
                   divisors_of<T>());
    check_launch("row_average_conv2d_weight_gradient");
    SEPCONV_LAUNCH((row_average_conv2d_merge_kernel<S>),
                   static_cast<unsigned>(as_int(divide_up(elements, kMergedElements))), kDenseThreads,
                   kDenseThreads * sizeof(T), static_cast<cudaStream_t>(stream),
                   static_cast<const T*>(workspace), static_cast<S*>(grad_weight), elements,
                   split_shape.splits);
    check_launch("row_average_conv2d_merge");
  });
}

}  // namespace sepconv::cuda
