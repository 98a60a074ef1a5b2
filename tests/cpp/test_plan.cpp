// Plans cover their work exactly once and keep to their memory, for a sweep of shapes, threads and caches.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "core/plan.h"

using namespace sepconv;

namespace {

void require(bool holds, const char* what, int64_t a, int64_t b, int64_t c) {
  if (holds) return;
  std::printf("%s (%ld, %ld, %ld)\n", what, static_cast<long>(a), static_cast<long>(b), static_cast<long>(c));
  std::exit(1);
}

// The last level is what Linux says, wherever it says something.
void require_linux_cache_sizes() {
  int64_t last = 0;
  for (int index = 0;; ++index) {
    const std::string cache = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
    std::ifstream level_file(cache + "/level"), size_file(cache + "/size");
    int64_t level = 0, size = 0;
    char unit = 0;
    if (!(level_file >> level && size_file >> size >> unit)) break;
    if (level > 1) last = std::max(last, size << (unit == 'M' ? 20 : 10));
  }
  const CacheSizes& found = cache_sizes();
  require(last == 0 || found.last_level == last, "not the last-level cache of this machine", found.last_level,
          last, 0);
  require(0 < found.l2 && found.l2 <= found.last_level, "an L2 larger than the last level", found.l2,
          found.last_level, 0);
}

}  // namespace

int main() {
  const TileShape tile{6, 64, 16};
  int64_t cases = 0;
  require_linux_cache_sizes();
  for (auto [height, width] : {std::pair<int64_t, int64_t>{1, 1},
                               {1, 2},
                               {13, 1},
                               {2, 7},
                               {10, 10},
                               {19, 19},
                               {37, 37},
                               {74, 74},
                               {147, 147},
                               {3, 333},
                               {1176, 147}})
    for (int64_t depth : {1, 3, 31, 32, 33, 64, 728, 1024, 2048, 20000})
      for (int64_t out_channels : {1, 31, 32, 33, 64, 728, 2048})
        for (int64_t bytes : {4, 8}) {
          const int64_t pixels = height * width;
          for (int threads : {1, 2, 3, 16, 64})
            for (int64_t l2 : {256 << 10, 1 << 20, 2 << 20}) {
              ++cases;
              ForwardPlan plan = plan_forward(pixels, width, depth, out_channels, bytes, tile, threads, {l2});
              plan.down_strips = cases % 2 == 0;
              std::vector<int> covered(static_cast<size_t>(pixels));
              for (int64_t index = 0; index < plan.pixel_tiles; ++index) {
                const PixelTile part = plan.tile(index);
                require(part.count >= 1 && part.count <= plan.pixel_tile, "a tile is empty or too large",
                        pixels, depth, threads);
                for (int64_t p = part.first; p < part.first + part.count; ++p)
                  ++covered[static_cast<size_t>(p / part.width * width + part.column + p % part.width)];
              }
              require(std::all_of(covered.begin(), covered.end(), [](int times) { return times == 1; }),
                      "forward tiles do not cover each pixel once", pixels, depth, threads);
              // Pixels as columns are for those that fill their vectors, or weights that are used again.
              require(!plan.few_pixels || plan.tasks() > threads ||
                          (pixels >= 2 * tile.lanes && 5 * round_up(pixels, tile.lanes) <= 6 * pixels),
                      "few pixels leave vectors empty", pixels, depth, threads);
              require(plan.panel_splits >= 1 && plan.panel_splits <= plan.panels,
                      "a split without weight panels", pixels, out_channels, threads);
              const bool smallest = plan.pixel_tile <= 2 * tile.rows;
              require(smallest || plan.pixel_tile * depth * bytes <= l2 / 3,
                      "the depthwise panel is too large", pixels, depth, l2);

              ForwardPlan rows = plan_forward(pixels, 1, depth, out_channels, bytes, tile, threads, {l2});
              rows.prefer_whole_rows(width, threads);
              require(rows.pixel_tile * rows.pixel_tiles >= pixels &&
                          rows.pixel_tile * (rows.pixel_tiles - 1) < pixels,
                      "tiles of rows do not cover the pixels", pixels, width, threads);
              require(width > 512 || height < 4 * threads || rows.panel_splits > 1 ||
                          (rows.pixel_tile % width == 0 && rows.pixel_tiles >= 4 * threads),
                      "tiles of rows cut a row, or are too few", pixels, width, threads);
            }
          for (int threads : {1, 2, 3, 16, 64}) {
            ++cases;
            const int64_t l2 = 1 << 20;
            const NchwPlan plan = plan_nchw(pixels, depth, out_channels, bytes, tile, threads, {l2});
            require(plan.first(0) == 0 && plan.first(plan.pixel_tiles) >= pixels &&
                        plan.first(plan.pixel_tiles) < pixels + tile.columns,
                    "NCHW tiles do not cover the pixels", pixels, depth, threads);
            for (int64_t i = 0; i < plan.pixel_tiles; ++i) {
              const int64_t length = plan.first(i + 1) - plan.first(i);
              require(length > 0 && length <= plan.pixel_tile, "an NCHW tile is empty or too long", pixels, i,
                      threads);
            }
            require(!plan.shared || plan.pixel_tiles == 1, "a shared panel without all pixels", pixels, depth,
                    threads);
            require(plan.pixel_tile == tile.columns || plan.pixel_tile * depth * bytes <= l2 / 3,
                    "the NCHW panel is too large", pixels, depth, threads);
          }
        }
  for (int64_t batch : {1, 2, 7, 64})
    for (int64_t size : {1, 2, 7, 19, 147, 1000})
      for (int64_t depth : {1, 32, 33, 728, 2048}) {
        ++cases;
        const InputGradientPlan plan = plan_input_gradient(batch, size, size, depth, 2, tile);
        require(plan.image_groups >= 1 && plan.image_groups <= batch, "a group without images", batch, size,
                depth);
        require(plan.channel_block % tile.columns == 0, "a channel block cuts a weight panel", batch, size,
                depth);
        require(plan.channel_block * plan.channel_blocks >= depth &&
                    plan.channel_block * (plan.channel_blocks - 1) < depth,
                "channel blocks do not cover the depth", batch, size, depth);
        require(plan.tile_rows >= 1, "a tile without rows", batch, size, depth);

        const int64_t pixels = batch * size * size,
                      splits = plan_weight_gradient(batch, size, size, depth, 4, tile, 1, {}).pixel_splits;
        for (int threads : {1, 2, 3, 16, 64})
          for (int64_t l2 : {1 << 18, 1 << 21}) {
            ++cases;
            const WeightGradientPlan weights =
                plan_weight_gradient(batch, size, size, depth, 4, tile, threads, {l2});
            require(weights.pixel_splits == splits, "pixel splits depend on more than the shape", batch, size,
                    depth);
            require(weights.depth_block % tile.columns == 0, "a depth block cuts a weight panel", batch, size,
                    depth);
            require(weights.depth_block ==
                        divide_up(divide_up(depth, tile.columns), weights.depth_blocks) * tile.columns,
                    "depth blocks of uneven size", batch, size, depth);
            require(weights.depth_block * weights.depth_blocks >= depth &&
                        weights.depth_block * (weights.depth_blocks - 1) < depth,
                    "depth blocks do not cover the depth", batch, size, depth);
            require(weights.first_pixel(0) == 0 && weights.first_pixel(splits) == pixels,
                    "pixel splits do not cover the pixels", batch, size, depth);
            require(weights.pixel_chunk >= 1 && weights.pixel_chunk % weights.unit == 0,
                    "a chunk cuts a row or an image", batch, size, depth);
            for (int64_t split = 0; split < splits; ++split)
              require(weights.first_pixel(split) < weights.first_pixel(split + 1), "a split without pixels",
                      batch, size, depth);
            require(weights.depth_block == tile.columns ||
                        weights.pixel_chunk * weights.depth_block * 4 <= l2 / 2,
                    "the depthwise panel is too large", batch, size, depth);
          }
      }
  for (int64_t pixels : {1, 2, 63, 64, 256, 10816, 65536, 10000000})
    for (int64_t channels : {1, 3, 32, 728, 2048, 100000})
      for (bool in_spans : {false, true}) {
        ++cases;
        const PixelSumPlan plan = plan_pixel_sums(pixels, channels, in_spans);
        require(plan.channel_block * plan.channel_blocks >= channels &&
                    plan.channel_block * (plan.channel_blocks - 1) < channels,
                "blocks of summed channels do not cover them", pixels, channels, in_spans);
        require(plan.pixel_splits >= 1 && plan.pixel_splits <= pixels, "a sum without pixels", pixels,
                channels, in_spans);
        require(pixels * channels >= 1 << 16 || plan.tasks() == 1, "a thread woken for little", pixels,
                channels, in_spans);
      }
  std::printf("%ld plans cover their work and keep to their memory\n", static_cast<long>(cases));
  return 0;
}
