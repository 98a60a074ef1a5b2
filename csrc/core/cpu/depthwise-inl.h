// The depthwise convolution of one row, vectorised over channels: a weighted sum of shifted input pixels. The
// same sum with the axis read backward is the input gradient; its transpose in the weights is the weight
// gradient.

struct TapOffsets {
  int64_t source, weight;  // in elements
};

// Kernel row i of output row r reads sources[i + r] under weights[i]; tap t adds taps[t].source and
// taps[t].weight to them.
// Values of type S give values of type D; the sums have the compute type.
template <class S, class D>
struct WeightedSum {
  using T = Compute<S>;
  const S* const* sources;
  const T* const* weights;
  int64_t kernel_rows;
  const TapOffsets* taps;
  int64_t tap_count;
  int64_t source_step;  // between the sources of neighbouring outputs
  D* output;
  int64_t output_step, count;  // outputs along the row
  int64_t channels;
  Stage<T> stage;  // the middle stage, from this block's first channel; applied while sums are registers
  int64_t output_rows = 1, output_row_step = 0;

  // Output row r alone.
  WeightedSum row(int64_t r) const {
    WeightedSum one = *this;
    one.sources += r, one.output += r * output_row_step, one.output_rows = 1;
    return one;
  }
};

// Any taps: kOutputs outputs of one row share each weight.
template <int kOutputs, class S, class D, class Vector>
inline void sum_taps(const WeightedSum<S, D>& s, int64_t at, int64_t c, Vector vector) {
  using T = Compute<S>;
  Vec<T> sums[kOutputs];
#pragma GCC unroll 16
  for (int u = 0; u < kOutputs; ++u) sums[u] = zero<T>();
  for (int64_t r = 0; r < s.kernel_rows; ++r) {
    const S* source = s.sources[r] + at * s.source_step + c;
    const T* weight = s.weights[r] + c;
    for (int64_t t = 0; t < s.tap_count; ++t) {
      const Vec<T> w = load(weight + s.taps[t].weight);
      const S* tap = source + s.taps[t].source;
#pragma GCC unroll 16
      for (int u = 0; u < kOutputs; ++u) sums[u] = fma(vector.read(tap + u * s.source_step), w, sums[u]);
    }
  }
  if (!s.stage.empty()) apply_stage<kOutputs>(s.stage, c, sums);
#pragma GCC unroll 16
  for (int u = 0; u < kOutputs; ++u) vector.write(s.output + (at + u) * s.output_step + c, sums[u]);
}

// kTaps adjacent pixels and outputs one pixel apart, in one row: each pixel is loaded once and serves up to
// kTaps outputs. The order of additions of one output is that of sum_taps.
template <int kTaps, int kOutputs, class S, class D, class Vector>
inline void sum_sliding(const WeightedSum<S, D>& s, int64_t at, int64_t c, Vector vector) {
  using T = Compute<S>;
  Vec<T> sums[kOutputs];
#pragma GCC unroll 16
  for (int u = 0; u < kOutputs; ++u) sums[u] = zero<T>();
  for (int64_t r = 0; r < s.kernel_rows; ++r) {
    const S* source = s.sources[r] + s.taps[0].source + at * s.source_step + c;
    const T* weight = s.weights[r] + c;
    Vec<T> w[kTaps];
#pragma GCC unroll 7
    for (int t = 0; t < kTaps; ++t) w[t] = load(weight + s.taps[t].weight);
#pragma GCC unroll 16
    for (int j = 0; j < kOutputs + kTaps - 1; ++j) {
      const Vec<T> x = vector.read(source + j * s.source_step);
#pragma GCC unroll 7
      for (int t = 0; t < kTaps; ++t)
        if (j - t >= 0 && j - t < kOutputs) sums[j - t] = fma(x, w[t], sums[j - t]);
    }
  }
  // The lowest row is the one that no output has read before: asked for two blocks ahead, 25 % off the
  // depthwise.
  if (s.kernel_rows > 0) {
    const S* next = s.sources[s.kernel_rows - 1] + s.taps[0].source + (at + 2 * kOutputs) * s.source_step + c;
#pragma GCC unroll 16
    for (int u = 0; u < kOutputs; ++u) __builtin_prefetch(next + u * s.source_step);
  }
  if (!s.stage.empty()) apply_stage<kOutputs>(s.stage, c, sums);
#pragma GCC unroll 16
  for (int u = 0; u < kOutputs; ++u) vector.write(s.output + (at + u) * s.output_step + c, sums[u]);
}

// The same for kBlockRows rows at once: a pixel is loaded once for all the rows that it serves. Large maps
// take their time to fetch pixels from L2, and this fetches less than half as many. Same order of additions.
template <int kKernelRows, int kTaps, int kOutputs, class S, class D, class Vector>
inline void sum_sliding_rows(const WeightedSum<S, D>& s, int64_t at, int64_t c, Vector vector) {
  using T = Compute<S>;
  constexpr int kRows = Registers<T>::kBlockRows, kPixels = kOutputs + kTaps - 1;
  Vec<T> sums[kRows][kOutputs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int u = 0; u < kOutputs; ++u) sums[r][u] = zero<T>();
#pragma GCC unroll 16
  for (int i = 0; i < kKernelRows + kRows - 1; ++i) {
    const S* source = s.sources[i] + s.taps[0].source + at * s.source_step + c;
    Vec<T> x[kPixels];
#pragma GCC unroll 16
    for (int j = 0; j < kPixels; ++j) x[j] = vector.read(source + j * s.source_step);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      if (i - r < 0 || i - r >= kKernelRows) continue;
#pragma GCC unroll 7
      for (int t = 0; t < kTaps; ++t) {
        const Vec<T> w = load(s.weights[i - r] + s.taps[t].weight + c);
#pragma GCC unroll 4
        for (int u = 0; u < kOutputs; ++u) sums[r][u] = fma(x[u + t], w, sums[r][u]);
      }
    }
  }
  if (!s.stage.empty())
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) apply_stage<kOutputs>(s.stage, c, sums[r]);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int u = 0; u < kOutputs; ++u)
      vector.write(s.output + r * s.output_row_step + (at + u) * s.output_step + c, sums[r][u]);
}

// Blocks of outputs along the row, all channels of a block before the next one: the sources are then read in
// the order of memory, which the hardware prefetches. (Channels outermost took 12 % longer at 128 channels
// and 147 pixels.) `sum(count, at, c, vector)` gets the number of outputs as a constant: kMost, 2 or 1.
template <int kMost, class S, class D, class Sum>
inline void for_each_block(const WeightedSum<S, D>& s, Sum&& sum) {
  using T = Compute<S>;
  const auto block = [&](auto outputs, int64_t at) {
    for_each_vector<T>(s.channels, [&](auto vector, int64_t c) { sum(outputs, at, c, vector); });
  };
  int64_t at = 0;
  for (; at + kMost <= s.count; at += kMost) block(std::integral_constant<int, kMost>{}, at);
  for (; at + 2 <= s.count; at += 2) block(std::integral_constant<int, 2>{}, at);
  for (; at < s.count; ++at) block(std::integral_constant<int, 1>{}, at);
}

template <int kTaps, class S, class D>
inline void sum_all_sliding(const WeightedSum<S, D>& s) {
  for_each_block<Registers<Compute<S>>::kUnroll>(s, [&](auto outputs, int64_t at, int64_t c, auto vector) {
    sum_sliding<kTaps, outputs()>(s, at, c, vector);
  });
}

template <int kKernelRows, int kTaps, class S, class D>
inline void sum_all_sliding_rows(const WeightedSum<S, D>& s) {
  for_each_block<Registers<Compute<S>>::kBlockOutputs>(
      s, [&](auto outputs, int64_t at, int64_t c, auto vector) {
        sum_sliding_rows<kKernelRows, kTaps, outputs()>(s, at, c, vector);
      });
}

template <class S, class D>
inline void sum_all_taps(const WeightedSum<S, D>& s) {
  for_each_block<Registers<Compute<S>>::kUnroll>(
      s, [&](auto outputs, int64_t at, int64_t c, auto vector) { sum_taps<outputs()>(s, at, c, vector); });
}

// One row, with a known number of kernel rows and adjacent taps: addresses stay in registers over the
// channels, which counts in small maps, where few outputs share them. Same order of additions.
template <int kKernelRows, int kTaps, int kOutputs, class S, class D>
inline void sum_window(const WeightedSum<S, D>& s, int64_t at) {
  using T = Compute<S>;
  const int64_t step = s.source_step,
                weight_step = kTaps > 1 ? s.taps[kTaps > 1].weight - s.taps[0].weight : 0;
  const S* sources[kKernelRows];
  const T* weights[kKernelRows];
#pragma GCC unroll 3
  for (int r = 0; r < kKernelRows; ++r) {
    sources[r] = s.sources[r] + s.taps[0].source + at * step;
    weights[r] = s.weights[r] + s.taps[0].weight;
  }
  D* const output = s.output + at * s.output_step;
  for_each_vector<T>(s.channels, [&](auto vector, int64_t c) {
    Vec<T> sums[kOutputs];
#pragma GCC unroll 16
    for (int u = 0; u < kOutputs; ++u) sums[u] = zero<T>();
#pragma GCC unroll 3
    for (int r = 0; r < kKernelRows; ++r) {
      Vec<T> w[kTaps];
#pragma GCC unroll 3
      for (int t = 0; t < kTaps; ++t) w[t] = load(weights[r] + t * weight_step + c);
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs + kTaps - 1; ++j) {
        const Vec<T> x = vector.read(sources[r] + j * step + c);
#pragma GCC unroll 3
        for (int t = 0; t < kTaps; ++t)
          if (j - t >= 0 && j - t < kOutputs) sums[j - t] = fma(x, w[t], sums[j - t]);
      }
    }
    if constexpr (kOutputs > 2) {  // the lowest row is new to every output, as in sum_sliding
      const S* next = sources[kKernelRows - 1] + 2 * kOutputs * step + c;
#pragma GCC unroll 16
      for (int u = 0; u < kOutputs; ++u) __builtin_prefetch(next + u * step);
    }
    if (!s.stage.empty()) apply_stage<kOutputs>(s.stage, c, sums);
#pragma GCC unroll 16
    for (int u = 0; u < kOutputs; ++u) vector.write(output + u * s.output_step + c, sums[u]);
  });
}

template <int kKernelRows, int kTaps, class S, class D>
inline void sum_all_windows(const WeightedSum<S, D>& s) {
  constexpr int kMost = Registers<Compute<S>>::kUnroll;
  int64_t at = 0;
  if constexpr (kTaps == 3) {
    for (; at + kMost <= s.count; at += kMost) sum_window<kKernelRows, kTaps, kMost>(s, at);
    for (; at + 2 <= s.count; at += 2) sum_window<kKernelRows, kTaps, 2>(s, at);
  }
  for (; at < s.count; ++at) sum_window<kKernelRows, kTaps, 1>(s, at);
}

template <class S, class D>
inline void weighted_sum(const WeightedSum<S, D>& s) {
  bool adjacent = s.tap_count > 0;
  for (int64_t t = 1; t < s.tap_count; ++t)
    adjacent &= s.taps[t].source == s.taps[t - 1].source + s.source_step;
  if (s.output_rows > 1) {
    if (adjacent && s.kernel_rows == 3 && s.tap_count == 3) return sum_all_sliding_rows<3, 3>(s);
    if (adjacent && s.kernel_rows == 3 && s.tap_count == 2) return sum_all_sliding_rows<3, 2>(s);  // borders
    if (adjacent && s.kernel_rows == 5 && s.tap_count == 5) return sum_all_sliding_rows<5, 5>(s);
    for (int64_t r = 0; r < s.output_rows; ++r) weighted_sum(s.row(r));
    return;
  }
  if (adjacent && s.tap_count == 3 && s.kernel_rows == 3) return sum_all_windows<3, 3>(s);
  if (adjacent && s.tap_count == 3 && s.kernel_rows == 2) return sum_all_windows<2, 3>(s);
  if (adjacent && s.count == 1) {  // borders and the smallest maps
    if (s.tap_count == 2 && s.kernel_rows == 3) return sum_all_windows<3, 2>(s);
    if (s.tap_count == 2 && s.kernel_rows == 2) return sum_all_windows<2, 2>(s);
    if (s.tap_count == 1 && s.kernel_rows == 1) return sum_all_windows<1, 1>(s);
  }
  adjacent &= s.count > 1;
  if (adjacent && s.tap_count == 3) return sum_all_sliding<3>(s);
  if (adjacent && s.tap_count == 5) return sum_all_sliding<5>(s);
  if (adjacent && s.tap_count == 7) return sum_all_sliding<7>(s);
  sum_all_taps(s);
}

// One direction along one axis pair: which taps to use where. Built once a call, shared by all threads.
struct DepthwisePlan {
  Direction direction;
  Axis vertical;
  std::vector<Segment> segments;  // along the row

  // How many rows from `at` on read whole windows one source row apart, at most `limit`, at least 1.
  int64_t alike(int64_t at, int64_t limit) const {
    const Axis& a = vertical;
    if (direction != Direction::kForward || a.stride != 1 || a.dilation != 1) return 1;
    const int64_t first = at - a.padding, last = std::min(limit, a.input - a.kernel + 1 - first);
    return first < 0 ? 1 : std::max<int64_t>(1, last);
  }
};

// Packed [kh * kw][ld].
template <class T>
struct DepthwiseWeights {
  const T* data;
  int64_t ld, kernel_width;
};

// Positions [begin, end) of rows `at`, `at` + 1, ... (`count` of them, alike) of image `n` of the result of
// `plan`, into output[r * output_row_step + (p - begin) * output_step + c]; `rows.row(n, r)` gives the rows
// that it reads, of type S.
template <class S>
class DepthwiseRow {
 public:
  using T = Compute<S>;
  template <class Rows, class D>
  void run(const DepthwisePlan& plan, Rows& rows, const DepthwiseWeights<T>& weights, int64_t n, int64_t at,
           int64_t count, int64_t begin, int64_t end, const Stage<T>& stage, int64_t channels, D* output,
           int64_t output_step, int64_t output_row_step) {
    taps_at(plan.vertical, plan.direction, at, vertical_);
    sources_.clear(), weights_.clear();
    for (const Tap& tap : vertical_) {
      sources_.push_back(rows.row(n, tap.source));
      weights_.push_back(weights.data + tap.kernel_index * weights.kernel_width * weights.ld);
    }
    for (int64_t r = 1; r < count; ++r) sources_.push_back(rows.row(n, vertical_.back().source + r));
    const int64_t pixel = rows.pixel_stride();
    for (const Segment& segment : plan.segments) {
      const int64_t j0 = segment.begin >= begin ? 0 : divide_up(begin - segment.begin, segment.step);
      const int64_t j1 =
          segment.begin >= end ? 0 : std::min(segment.count, divide_up(end - segment.begin, segment.step));
      if (j0 >= j1) continue;
      taps_.clear();
      for (const Tap& tap : segment.taps)
        taps_.push_back({(tap.source + j0 * segment.source_step) * pixel, tap.kernel_index * weights.ld});
      weighted_sum(
          WeightedSum<S, D>{sources_.data(), weights_.data(), static_cast<int64_t>(weights_.size()),
                            taps_.data(), static_cast<int64_t>(taps_.size()), segment.source_step * pixel,
                            output + (segment.begin + j0 * segment.step - begin) * output_step,
                            segment.step * output_step, j1 - j0, channels, stage, count, output_row_step});
    }
  }

 private:
  std::vector<Tap> vertical_;
  std::vector<const S*> sources_;
  std::vector<const T*> weights_;
  std::vector<TapOffsets> taps_;
};

// gradient[t][c] += sum over count positions of g[j * g_step + c] * source[t][j * source_step + c], kTaps
// taps at once.
template <int kTaps, class T, class Vector>
inline void accumulate_taps(const T* g, int64_t g_step, const T* const* sources, int64_t source_step,
                            int64_t count, T* const* gradients, int64_t c, Vector vector) {
  Vec<T> sums[kTaps];
#pragma GCC unroll 7
  for (int t = 0; t < kTaps; ++t) sums[t] = zero<T>();
  for (int64_t j = 0; j < count; ++j) {
    const Vec<T> y = vector.read(g + j * g_step + c);
#pragma GCC unroll 7
    for (int t = 0; t < kTaps; ++t) sums[t] = fma(y, vector.read(sources[t] + j * source_step + c), sums[t]);
  }
#pragma GCC unroll 7
  for (int t = 0; t < kTaps; ++t) vector.write(gradients[t] + c, add(vector.read(gradients[t] + c), sums[t]));
}

// Blocks of positions, all channels of a block before the next one, as for_each_block does.
template <int kTaps, class T>
inline void accumulate_all(const T* g, int64_t g_step, const T* const* sources, int64_t source_step,
                           int64_t count, T* const* gradients, int64_t channels) {
  constexpr int64_t kPositions = 32;
  const T* from[kTaps];
  for (int64_t j = 0; j < count; j += kPositions) {
    for (int t = 0; t < kTaps; ++t) from[t] = sources[t] + j * source_step;
    const int64_t positions = std::min(kPositions, count - j);
    for_each_vector<T>(channels, [&](auto vector, int64_t c) {
      accumulate_taps<kTaps>(g + j * g_step, g_step, from, source_step, positions, gradients, c, vector);
    });
  }
}

// Adds the weight gradient of one output row: g is the gradient of the depthwise output, gradient [kh *
// kw][ld].
template <class T>
class DepthwiseGradientRow {
 public:
  template <class Rows>
  void run(const DepthwisePlan& plan, Rows& rows, int64_t n, int64_t at, const T* g, int64_t g_step,
           int64_t channels, T* gradient, int64_t ld, int64_t kernel_width) {
    taps_at(plan.vertical, Direction::kForward, at, vertical_);
    const int64_t pixel = rows.pixel_stride();
    for (const Tap& row_tap : vertical_) {
      const T* row = rows.row(n, row_tap.source);
      T* row_gradient = gradient + row_tap.kernel_index * kernel_width * ld;
      for (const Segment& segment : plan.segments) {
        constexpr size_t kAtOnce = 7;
        for (size_t t0 = 0; t0 < segment.taps.size(); t0 += kAtOnce) {
          const size_t taps = std::min(kAtOnce, segment.taps.size() - t0);
          const T* sources[kAtOnce];
          T* gradients[kAtOnce];
          for (size_t t = 0; t < taps; ++t) {
            sources[t] = row + segment.taps[t0 + t].source * pixel;
            gradients[t] = row_gradient + segment.taps[t0 + t].kernel_index * ld;
          }
          accumulate(taps, g + segment.begin * g_step, g_step, sources, segment.source_step * pixel,
                     segment.count, gradients, channels);
        }
      }
    }
  }

 private:
  static void accumulate(size_t taps, const T* g, int64_t g_step, const T* const* sources,
                         int64_t source_step, int64_t count, T* const* gradients, int64_t channels) {
    switch (taps) {
      case 1:
        return accumulate_all<1>(g, g_step, sources, source_step, count, gradients, channels);
      case 2:
        return accumulate_all<2>(g, g_step, sources, source_step, count, gradients, channels);
      case 3:
        return accumulate_all<3>(g, g_step, sources, source_step, count, gradients, channels);
      case 4:
        return accumulate_all<4>(g, g_step, sources, source_step, count, gradients, channels);
      case 5:
        return accumulate_all<5>(g, g_step, sources, source_step, count, gradients, channels);
      case 6:
        return accumulate_all<6>(g, g_step, sources, source_step, count, gradients, channels);
      default:
        return accumulate_all<7>(g, g_step, sources, source_step, count, gradients, channels);
    }
  }
  std::vector<Tap> vertical_;
};
