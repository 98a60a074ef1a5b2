#include "core/plan.h"

#include <algorithm>
#include <bit>

namespace sepconv {

PixelTile ForwardPlan::tile(int64_t index) const {
  if (strips == 1) return {0, width, index * pixel_tile, std::min(pixel_tile, pixels - index * pixel_tile)};
  const int64_t tiles = pixel_tiles / strips, strip = down_strips ? index / tiles : index % strips,
                row = down_strips ? index % tiles : index / strips;
  const int64_t column = width * strip / strips, strip_width = width * (strip + 1) / strips - column;
  const int64_t size = pixel_tile / divide_up(width, strips) * strip_width, first = row * size;
  return {column, strip_width, first, std::min(size, pixels / width * strip_width - first)};
}

ForwardPlan plan_forward(int64_t pixels, int64_t width, int64_t depth, int64_t out_channels,
                         int64_t compute_bytes, TileShape tile, int threads, const CacheSizes& cache) {
  constexpr int64_t kMaxPixelTile = 192, kFewThreads = 4, kStripRows = 4, kMinStrip = 24;
  constexpr int64_t kWorthAThread = 1 << 17;  // multiply-adds: some microseconds, what waking one takes
  threads = static_cast<int>(
      std::clamp<int64_t>(pixels * std::max<int64_t>(depth, 1) * out_channels / kWorthAThread, 1, threads));
  ForwardPlan plan{};
  plan.pixels = pixels, plan.width = width, plan.strips = 1, plan.panel_splits = 1;
  // Weights that outweigh the pixels are not packed: what is transposed instead is at most half as much, or a
  // quarter more where packed weights would go through memory.
  const int64_t weights = depth * out_channels, values = pixels * (depth + out_channels);
  plan.few_pixels =
      weights * compute_bytes > 2 * cache.l2 ? 4 * values <= 5 * weights : 2 * values <= weights;
  // Packing costs a few percent of the arithmetic on a hundred pixels; fetching it from another core costs
  // more, unless many cores share the work.
  plan.pack_in_task = threads <= kFewThreads;
  plan.panels = divide_up(out_channels, tile.columns);
  // A few blocks too many for the threads leave some of them idle: rather more and smaller ones.
  plan.channel_blocks = plan.panels >= 4 * threads ? plan.panels
                                                   : std::min<int64_t>(round_up(plan.panels, threads),
                                                                       std::max<int64_t>(1, out_channels));
  // A third of L2 for the depthwise panel: packed weights and rows of the input stream through the rest.
  const int64_t fits = cache.l2 / 3 / std::max<int64_t>(1, depth * compute_bytes);
  const int64_t largest = std::clamp<int64_t>(fits, 2 * tile.rows, kMaxPixelTile) / tile.rows * tile.rows;

  // The depthwise takes kStripRows rows at once; rows too long for that are cut into strips.
  if (width * kStripRows > largest && largest >= kStripRows * kMinStrip) {
    plan.strips = divide_up(width * kStripRows, largest);
    plan.pixel_tile = kStripRows * divide_up(width, plan.strips);
    plan.pixel_tiles = divide_up(pixels / width, kStripRows) * plan.strips;
    if (plan.pixel_tiles >= 2 * threads) return plan;
    plan.strips = 1;
  }
  plan.pixel_tiles = divide_up(pixels, largest);
  if (threads > 1 && plan.pixel_tiles < 2 * threads) {
    // Too few tiles to keep every thread busy. Small maps split the output channels (each split recomputes
    // its depthwise panel, 9 multiply-adds a value); larger ones take smaller tiles.
    if (plan.pixel_tiles == 1 && plan.panels >= 2 * threads) {
      plan.panel_splits = threads;
    } else {
      const int64_t wanted = round_up(std::max<int64_t>(plan.pixel_tiles, threads), threads);
      plan.pixel_tiles = std::min(wanted, divide_up(pixels, tile.rows));
    }
  }
  plan.pixel_tile = divide_up(pixels, std::max<int64_t>(1, plan.pixel_tiles));
  plan.pixel_tiles = plan.pixel_tile == 0 ? 0 : divide_up(pixels, plan.pixel_tile);
  // Few pixels are columns, in whole vectors: many empty lanes, or the broadcasts of a lone vector, cost more
  // than packing weights that are used once.
  const bool fills_vectors = pixels >= 2 * tile.lanes && 5 * round_up(pixels, tile.lanes) <= 6 * pixels;
  if (!fills_vectors && plan.tasks() <= threads) plan.few_pixels = false;
  return plan;
}

void ForwardPlan::prefer_whole_rows(int64_t row_pixels, int threads) {
  constexpr int64_t kPixels = 512, kTilesAThread = 4;
  if (panel_splits > 1 || row_pixels <= 0) return;
  const int64_t rows = std::min(kPixels / row_pixels, pixels / row_pixels / (kTilesAThread * threads));
  if (rows == 0) return;
  pixel_tile = rows * row_pixels;
  pixel_tiles = divide_up(pixels, pixel_tile);
}

InputGradientPlan plan_input_gradient(int64_t batch, int64_t out_height, int64_t out_width, int64_t depth,
                                      int threads, TileShape tile) {
  constexpr int64_t kGroups = 16, kTilePixels = 112, kMaxChannelBlock = 256, kMaxTileValues = 112 * 256,
                    kWholeImages = 256, kFewPixels = 256;
  InputGradientPlan plan{};
  const int64_t image = std::max<int64_t>(1, out_height * out_width), pixels = batch * image;
  plan.few_pixels = pixels <= kFewPixels;
  plan.whole_images = image <= kWholeImages;
  plan.image_groups =
      std::clamp<int64_t>(pixels / kTilePixels, 1, std::max<int64_t>(1, std::min(batch, kGroups)));
  plan.tile_rows = std::max<int64_t>(
      1, plan.whole_images
             ? std::max<int64_t>(1, (plan.few_pixels ? kWholeImages : kTilePixels) / image) * out_height
             : kTilePixels / out_width);
  const int64_t wanted = divide_up(2 * std::min<int64_t>(threads, kGroups), plan.image_groups);
  const int64_t most =
      plan.few_pixels
          ? depth
          : std::min(kMaxChannelBlock, kMaxTileValues / (plan.tile_rows * std::max<int64_t>(1, out_width)));
  plan.channel_block = round_up(std::max<int64_t>(1, std::min(divide_up(depth, wanted), most)), tile.columns);
  plan.channel_blocks = divide_up(depth, plan.channel_block);
  return plan;
}

WeightGradientPlan plan_weight_gradient(int64_t batch, int64_t out_height, int64_t out_width, int64_t depth,
                                        int64_t compute_bytes, TileShape tile, int threads,
                                        const CacheSizes& cache) {
  // Merging a split takes as long as multiplying some twenty pixels. Powers of two, so that threads get equal
  // shares.
  constexpr int64_t kTasks = 16, kMinSplitPixels = 512, kMaxChunk = 256;
  const auto power_of_two = [](int64_t most) {
    return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(most, 1))));
  };
  WeightGradientPlan plan{};
  const int64_t image = out_height * out_width, pixels = batch * image;
  const int64_t panels = divide_up(std::max<int64_t>(depth, 1), tile.columns);
  plan.pixel_splits = power_of_two(std::min(divide_up(kTasks, panels), pixels / kMinSplitPixels));
  const int64_t chunk = std::clamp<int64_t>(pixels / plan.pixel_splits, 1, kMaxChunk);
  plan.unit = image <= chunk ? std::max<int64_t>(image, 1) : out_width <= chunk ? out_width : 1;
  plan.units = pixels / plan.unit;
  plan.pixel_chunk = chunk / plan.unit * plan.unit;
  // Every block of the depth reads grad_output again, so rather few: as many as keep the threads busy, and a
  // chunk of the depthwise output in L2.
  const int64_t fits = cache.l2 * 2 / 5 / (plan.pixel_chunk * tile.columns * compute_bytes);
  const int64_t wanted = divide_up(threads, plan.pixel_splits);
  const int64_t most = std::clamp<int64_t>(divide_up(panels, wanted), 1, std::max<int64_t>(fits, 1));
  // All of one size, and shares of one size for the threads: with a few tasks, one more is a long wait.
  const int64_t blocks = std::min(panels, round_up(divide_up(panels, most), wanted));
  plan.depth_block = divide_up(panels, blocks) * tile.columns;
  plan.depth_blocks = divide_up(depth, plan.depth_block);
  return plan;
}

PixelSumPlan plan_pixel_sums(int64_t pixels, int64_t channels, bool in_spans) {
  // A task is worth waking a thread for. Rows of a block of channels are long enough to stream; spans of
  // pixels cost a little each, whatever their length.
  constexpr int64_t kTasks = 32, kTaskValues = 1 << 15;
  const int64_t most = std::clamp<int64_t>(pixels * channels / kTaskValues, 1, kTasks);
  const auto at_most = [&](int64_t count) { return std::clamp<int64_t>(count, 1, most); };
  PixelSumPlan plan{};
  const int64_t blocks = in_spans ? at_most(most / at_most(pixels / 2048)) : at_most(channels / 256),
                round = in_spans ? 8 : 64;
  plan.channel_block = round_up(divide_up(channels, blocks), round);
  plan.channel_blocks = divide_up(channels, plan.channel_block);
  plan.pixel_splits =
      std::min(at_most(most / plan.channel_blocks), std::max<int64_t>(1, pixels / (in_spans ? 2048 : 64)));
  return plan;
}

bool takes_nchw(const SeparableConv2dParams& p) {
  // Narrow rows leave most of a vector empty, more so where a stride takes them apart first, and large
  // windows share no loads: transposing squares takes less time there, the more so when no weights are packed
  // for it.
  constexpr int64_t kNarrow = 14, kNarrowPacked = 16, kNarrowStrided = 32, kManyTaps = 25;
  const Window& window = p.window;
  const Image& residual = p.epilogue.residual;
  const int64_t narrow = window.stride[1] > 1          ? kNarrowStrided
                         : p.packed_weights != nullptr ? kNarrowPacked
                                                       : kNarrow;
  return p.output.w >= narrow && window.kernel[0] * window.kernel[1] <= kManyTaps && p.input.stride_w == 1 &&
         p.output.stride_w == 1 && (residual.data == nullptr || residual.stride_w == 1) &&
         p.prologue.row_average_stride == 0;
}

NchwPlan plan_nchw(int64_t pixels, int64_t depth, int64_t out_channels, int64_t compute_bytes, TileShape tile,
                   int threads, const CacheSizes& cache) {
  constexpr int64_t kMaxPixelTile = 1024;
  NchwPlan plan{};
  plan.columns = tile.columns;
  plan.blocks = divide_up(pixels, tile.columns);
  // A third of L2 for the depthwise panel, as in plan_forward.
  const int64_t fits = cache.l2 / 3 / std::max<int64_t>(1, depth * compute_bytes);
  const int64_t largest = std::clamp<int64_t>(std::min(fits, kMaxPixelTile) / tile.columns, 1, plan.blocks);
  // Each pixel tile reads all weights: where these outweigh the pixels, every thread reads a part of them
  // instead and fetches the depthwise output of the others.
  plan.shared = threads > 1 && plan.blocks < 2 * threads && plan.blocks <= largest &&
                out_channels >= tile.rows * threads;
  plan.pixel_tiles = plan.shared ? 1 : divide_up(plan.blocks, largest);
  if (!plan.shared)
    plan.pixel_tiles = std::min(plan.blocks, round_up(plan.pixel_tiles, std::max(threads, 1)));
  plan.pixel_tile = divide_up(plan.blocks, plan.pixel_tiles) * tile.columns;
  return plan;
}

}  // namespace sepconv
