// Backward of the dense convolution of averaged rows. The weight gradient gathers the panel again; the input
// gradient scatters G = grad_output x weights back into averaged rows, image by image in a fixed order, and
// spreads those.

template <class S>
void dense_weight_pass(const RowAverageConv2dBackwardParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  constexpr int64_t kSplits = 8, kMinSplitPixels = 256, kChunk = 112;
  const RowAverageConv2dParams& p = b.forward;
  const Image& gy = p.output;
  const int64_t pixels = gy.n * gy.h * gy.w;
  // The panel is gathered in its whole depth, so only pixels are split; by the shape alone.
  const int64_t splits = std::clamp<int64_t>(pixels / kMinSplitPixels, 1, kSplits);
  Scratch call(ScratchUse::kCall);
  DenseStage<S> dense(p, call);
  const int64_t depth = dense.depth();
  const size_t ordered_slot = call.add<S>(gy.c * depth);
  WeightProduct<S> product(splits, gy.c, depth, call);
  dense.prepare(call);
  S* ordered = call.get<S>(ordered_slot);
  product.prepare(call, ordered);

  parallel.share(splits, [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const int64_t ld = round_up(depth, kTileColumns<T>) + Vec<T>::kLanes;
    const size_t panel_slot = task.add<T>(kChunk * ld);
    GradientColumns<S> gradient(gy, kChunk, depth, task);
    RowSource<S> rows(dense.rows(), p.input.c, task);
    auto vertical = reserved<Tap>(p.window.kernel[0]);
    rows.select(0, p.input.c);
    T* panel = task.get<T>(panel_slot);
    for (int64_t split; tasks.next(split);) {
      const int64_t p0 = pixels * split / splits, p1 = pixels * (split + 1) / splits;
      for (int64_t first = p0; first < p1; first += kChunk) {
        const int64_t count = std::min(kChunk, p1 - first);
        dense.fill(rows, vertical, first, count, panel, ld);
        product.chunk(split, gradient, first, count, panel, ld, 0, depth, first != p0);
      }
    }
  });
  product.merge(parallel);
  if (!call.only_counts()) dense.from_panel_order(ordered, static_cast<S*>(b.grad_weight));
}

template <class S>
class AveragedGradient {
 public:
  using T = Compute<S>;
  // The gradient of one averaged image, channels-last.
  AveragedGradient(const DenseStage<S>& dense, const RowAverageConv2dParams& p, Scratch& task)
      : dense_(dense),
        p_(p),
        channels_(p.input.c),
        size_(dense.height() * p.input.w * p.input.c),
        slot_(task.add<T>(size_ + Vec<T>::kLanes)),
        row_slot_(task.add<T>(p.input.w * p.input.c + Vec<T>::kLanes)),
        vertical_(reserved<Tap>(p.window.kernel[0])) {}

  void clear(Scratch& task) {
    data_ = task.get<T>(slot_);
    row_ = task.get<T>(row_slot_);
    std::fill(data_, data_ + size_, T(0));
  }

  // Adds the gathered gradients of pixels [first, first + count) of the image: panel[pixel][(kh, kw, c)].
  void scatter(const T* panel, int64_t ld, int64_t first, int64_t count) {
    const int64_t width = p_.output.w, kernel_row = p_.window.kernel[1] * channels_;
    for (const Segment& segment : dense_.segments()) {
      for (int64_t j = 0; j < segment.count; ++j) {
        const int64_t w = segment.begin + j;
        for (int64_t h = divide_up(first - w, width); h * width + w < first + count; ++h) {
          if (h * width + w < first) continue;
          taps_at(dense_.vertical(), Direction::kForward, h, vertical_);
          const T* from = panel + (h * width + w - first) * ld;
          for (const Tap& row_tap : vertical_)
            for (const Tap& tap : segment.taps)
              add_to(data_ + (row_tap.source * p_.input.w + tap.source + j * segment.source_step) * channels_,
                     from + row_tap.kernel_index * kernel_row + tap.kernel_index * channels_);
        }
      }
    }
  }

  // Writes image n of grad_input: each input row collects from the averages it took part in.
  void spread(const Image& grad_input, int64_t n) {
    const int64_t s = p_.prologue.row_average_stride, row_size = p_.input.w * channels_;
    for (int64_t h = 0; h < grad_input.h; ++h) {
      const T* row = data_ + h * row_size;
      if (s != 0) {
        combine_rows(static_cast<const T*>(data_), row_size, backward_rows(h, s, grad_input.h), row_,
                     row_size);
        row = row_;
      }
      store_pixels<S>(row, channels_, grad_input, (n * grad_input.h + h) * grad_input.w, grad_input.w, 0,
                      channels_);
    }
  }

 private:
  void add_to(T* to, const T* from) const {
    for_each_vector<T>(channels_, [&](auto vector, int64_t c) {
      vector.write(to + c, add(vector.read(to + c), vector.read(from + c)));
    });
  }
  const DenseStage<S>& dense_;
  const RowAverageConv2dParams& p_;
  int64_t channels_, size_;
  size_t slot_, row_slot_;
  T *data_ = nullptr, *row_ = nullptr;
  ScratchVector<Tap> vertical_;
};

template <class S>
void dense_input_pass(const RowAverageConv2dBackwardParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  constexpr int64_t kChunk = 112;
  const RowAverageConv2dParams& p = b.forward;
  const Image& gy = p.output;
  Scratch call(ScratchUse::kCall);
  DenseStage<S> dense(p, call);
  const int64_t depth = dense.depth();
  PackedWeights<T> weights{nullptr, gy.c, depth};
  const size_t ordered_slot = call.add<S>(gy.c * depth), packed_slot = call.add<T>(weights.size());
  dense.prepare(call);
  S* ordered = call.get<S>(ordered_slot);
  T* packed = call.get<T>(packed_slot);
  if (!call.only_counts()) {
    dense.to_panel_order(static_cast<const S*>(p.weight), ordered);
    for (int64_t panel = 0; panel < weights.panels(); ++panel)
      pack_rows(static_cast<const S*>(ordered), weights, panel, packed + weights.offset(panel));
  }
  weights.data = packed;

  parallel.share(gy.n, [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    const int64_t ld = round_up(depth, kTileColumns<T>) + Vec<T>::kLanes;
    const size_t panel_slot = task.add<T>(kChunk * ld);
    GradientTiles<S> gradient(gy, kChunk, task);
    AveragedGradient<S> averaged(dense, p, task);
    T* panel = task.get<T>(panel_slot);
    for (int64_t n; tasks.next(n);) {
      averaged.clear(task);
      for (int64_t first = 0; first < gy.h * gy.w; first += kChunk) {
        const int64_t count = std::min(kChunk, gy.h * gy.w - first);
        const T* left = gradient.tile(n * gy.h * gy.w + first, count);
        for (int64_t c = 0; c < depth; c += kTileColumns<T>)
          multiply<false>(Panel<T>{left, gradient.ld(), 1}, count, weights.panel(c / kTileColumns<T>),
                          weights.width(c / kTileColumns<T>), gy.c,
                          TileOutput<T>{panel + c, ld, std::min<int64_t>(kTileColumns<T>, depth - c)});
        averaged.scatter(panel, ld, first, count);
      }
      averaged.spread(b.grad_input, n);
    }
  });
}

template <class S>
void row_average_conv2d_backward(const RowAverageConv2dBackwardParams& b, const Parallel& parallel) {
  if (b.grad_input.data != nullptr) dense_input_pass<S>(b, parallel);
  if (b.grad_weight != nullptr) dense_weight_pass<S>(b, parallel);
  if (b.grad_bias != nullptr) sum_pixels(b.forward.output, static_cast<S*>(b.grad_bias), parallel);
}
