// How a shape is cut into tiles and tasks: pure functions of the shape, the threads and the cache, testable
// alone.
#pragma once
#include <cstdint>

#include "core/cache_sizes.h"
#include "core/params.h"

namespace sepconv {

// What a kernel set tells the planner about its registers, for one compute type.
struct TileShape {
  int64_t rows;     // pixels of a pointwise register tile
  int64_t columns;  // output channels of a register tile: the width of a packed panel
  int64_t lanes;    // of a vector
};

// Pixels [first, first + count) of a strip of columns, counted along the strip's rows of all images in order.
struct PixelTile {
  int64_t column, width, first, count;
};

// Forward: pixels are flattened over rows and images, of wide maps strip by strip of columns; every task
// holds the full depth, so no plan changes a bit of the result.
struct ForwardPlan {
  bool few_pixels;         // weights are read where they lie, and the depthwise output is packed instead
  int64_t channel_blocks;  // of few_pixels: the tasks of its product
  bool pack_in_task;       // every task packs the weights that it reads, for itself
  int64_t pixels, width;   // of the output: all pixels, and those of a row
  int64_t strips;          // of columns: where a tile of whole rows would have too few of them
  // Tiles follow each other down the strips, where a tile finds its upper rows in L2, or across them, where
  // rows are staged whole.
  bool down_strips;
  int64_t pixel_tile, pixel_tiles, panels, panel_splits;
  int64_t tasks() const { return pixel_tiles * panel_splits; }
  PixelTile tile(int64_t index) const;
  // Tiles of some rows of the output each, where that leaves every thread several: for a product that reads
  // staged rows in place, so that the rows of a window are all that has to fit a cache.
  void prefer_whole_rows(int64_t row_pixels, int threads);
};
ForwardPlan plan_forward(int64_t pixels, int64_t width, int64_t depth, int64_t out_channels,
                         int64_t compute_bytes, TileShape tile, int threads, const CacheSizes& cache);

// Backward: groups of images and blocks of channels. Sums over groups are merged in order, so these may
// depend on the shape alone: never on threads or caches. Blocks of channels cut no sum of the input gradient.
struct InputGradientPlan {
  int64_t image_groups, channel_block, channel_blocks, tile_rows;  // tile_rows: output rows of one GEMM
  bool whole_images;                                               // in every tile
  bool few_pixels;  // every task packs its weights, slice by slice
  int64_t tasks() const { return image_groups * channel_blocks; }
};
InputGradientPlan plan_input_gradient(int64_t batch, int64_t out_height, int64_t out_width, int64_t depth,
                                      int threads, TileShape tile);

// A task is a split of the pixels and a block of the depth. A gradient element sums the pixels of a split in
// order, whatever the blocks. Splits decide its bits, and chunks where products of pairs sum each by itself:
// both depend on the shape alone.
struct WeightGradientPlan {
  int64_t units, unit;  // of pixels: whole images or else rows, where a chunk holds any
  int64_t pixel_splits, pixel_chunk, depth_block, depth_blocks;
  int64_t tasks() const { return depth_blocks * pixel_splits; }
  int64_t first_pixel(int64_t split) const { return units * split / pixel_splits * unit; }
  bool in_one_chunk() const { return pixel_splits == 1 && units * unit <= pixel_chunk; }
};
WeightGradientPlan plan_weight_gradient(int64_t batch, int64_t out_height, int64_t out_width, int64_t depth,
                                        int64_t compute_bytes, TileShape tile, int threads,
                                        const CacheSizes& cache);

// Sums over the pixels of each channel, and passes beside them: blocks of channels and splits of all pixels.
struct PixelSumPlan {
  int64_t channel_block, channel_blocks, pixel_splits;
  int64_t tasks() const { return channel_blocks * pixel_splits; }
};
PixelSumPlan plan_pixel_sums(int64_t pixels, int64_t channels, bool in_spans);

// Forward of NCHW tensors: pixels are flattened over rows and images and cut into blocks of a register tile's
// columns; tiles have equally many of them, give or take one.
struct NchwPlan {
  bool shared;  // one depthwise panel for all threads, which divide the output channels
  int64_t columns, blocks, pixel_tile, pixel_tiles;
  int64_t first(int64_t tile) const { return blocks * tile / pixel_tiles * columns; }  // its first pixel
};
// Whether a call is one for separable_conv2d_nchw-inl.h: rows of adjacent pixels in all its tensors.
bool takes_nchw(const SeparableConv2dParams& params);
NchwPlan plan_nchw(int64_t pixels, int64_t depth, int64_t out_channels, int64_t compute_bytes, TileShape tile,
                   int threads, const CacheSizes& cache);

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return divide_up(a, b) * b;
}

}  // namespace sepconv
