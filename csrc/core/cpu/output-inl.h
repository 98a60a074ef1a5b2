// Where a tile of output goes: straight into the tensor when its layout and dtype are the kernel's own, else
// into a small buffer that stays in L1 and is converted or transposed from there.

// body(first, done, count) for runs of a tile's pixels that follow each other in an image of this width, of
// its `pixels` pixels from `from` on: `first` counts in the image, `done` those before.
template <class Body>
inline void for_each_run_of_tile(const PixelTile& tile, int64_t image_width, int64_t from, int64_t pixels,
                                 Body&& body) {
  const bool whole = tile.width == image_width;  // rows join
  for (int64_t done = 0; done < pixels;) {
    const int64_t pixel = tile.first + from + done, w = pixel % tile.width;
    const int64_t count = whole ? pixels : std::min(pixels - done, tile.width - w);
    body(whole ? pixel : pixel / tile.width * image_width + tile.column + w, done, count);
    done += count;
  }
}

template <class S>
class OutputTiles {
 public:
  using T = Compute<S>;

  OutputTiles(const Image& output, const Epilogue& epilogue, int64_t pixel_tile, Scratch& scratch)
      : output_(output), residual_(epilogue.residual), scratch_(scratch) {
    direct_ = is_native(output) && (residual_.data == nullptr || is_native(residual_));
    if (direct_) return;
    buffer_ = scratch.add<T>(pixel_tile * kTileColumns<T>);
    if (residual_.data != nullptr) residual_buffer_ = scratch.add<T>(pixel_tile * kTileColumns<T>);
  }

  // The pixels of a tile x one panel of columns from `column`. fill(where, from, count) is called for runs of
  // pixels that follow each other in memory and has to write all `count` of them, the tile's pixel `from` and
  // on.
  template <class Fill>
  void write(const PixelTile& tile, int64_t column, const Stage<T>& stage, Fill&& fill,
             int64_t most_columns = kTileColumns<T>) {
    const int64_t columns = std::min(most_columns, output_.c - column);
    for_each_run_of_tile(tile, output_.w, 0, tile.count, [&](int64_t first, int64_t done, int64_t count) {
      write_run(first, count, column, columns, stage,
                [&](const TileOutput<T>& out) { fill(out, done, count); });
    });
  }

 private:
  template <class Fill>
  void write_run(int64_t first, int64_t count, int64_t column, int64_t columns, const Stage<T>& stage,
                 Fill&& fill) {
    if (direct_) {
      TileOutput<T> out{pixel(output_, first, column), output_.stride_w, columns, stage.from(column)};
      if (residual_.data != nullptr)
        out.residual = pixel(residual_, first, column), out.residual_ld = residual_.stride_w;
      return fill(out);
    }
    constexpr int64_t kLd = kTileColumns<T>;
    TileOutput<T> out{scratch_.get<T>(buffer_), kLd, columns, stage.from(column)};
    if (residual_.data != nullptr) {
      T* residual = scratch_.get<T>(residual_buffer_);
      load_pixels<S>(residual_, first, count, column, columns, residual, kLd);
      out.residual = residual, out.residual_ld = kLd;
    }
    fill(out);
    store_pixels<S>(out.data, kLd, output_, first, count, column, columns);
  }

  static bool is_native(const Image& x) {
    return std::is_same_v<S, T> && channels_are_adjacent(x) && pixels_are_linear(x);
  }
  static T* pixel(const Image& x, int64_t index, int64_t column) {
    return static_cast<T*>(x.data) + index * x.stride_w + column * x.stride_c;
  }
  Image output_, residual_;
  Scratch& scratch_;
  bool direct_;
  size_t buffer_ = 0, residual_buffer_ = 0;
};
