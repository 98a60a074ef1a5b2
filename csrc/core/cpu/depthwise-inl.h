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
  Stage<T> on_load = {};  // the prologue likewise, where the sources do not hold its results
  bool streamed = false;  // outputs are whole lines and may go past the caches

  // Output row r alone.
  WeightedSum row(int64_t r) const {
    WeightedSum one = *this;
    one.sources += r, one.output += r * output_row_step, one.output_rows = 1;
    return one;
  }
};

// A vector store past the caches writes a whole line.
template <class D>
inline constexpr bool kVectorsAreLines =
    std::is_same_v<D, Compute<D>> && Vec<Compute<D>>::kLanes * sizeof(D) == kLine;

// The prologues that are applied to values as they are loaded: no row is copied for them.
enum class OnLoad { kNothing, kRelu, kClampedAffine };

template <class T>
inline OnLoad on_load_of(const Stage<T>& stage) {
  if (stage.empty()) return OnLoad::kNothing;
  const bool affine = stage.scale != nullptr || stage.shift != nullptr;
  return !affine && stage.activation == Activation::kRelu ? OnLoad::kRelu : OnLoad::kClampedAffine;
}

// Vector policies that read what the prologue makes of the values.
template <class T, class Vector>
struct Rectified : Vector {
  template <class S>
  Vec<T> read(const S* p) const {
    return max(zero<T>(), Vector::read(p));
  }
};
template <class T, class Vector>
struct ClampedAffine : Vector {
  Vec<T> scale, shift, low, high;
  template <class S>
  Vec<T> read(const S* p) const {
    return min(high, max(low, fma(Vector::read(p), scale, shift)));
  }
};
template <OnLoad kOnLoad, class T, class Vector>
[[gnu::always_inline]] inline auto loading(const Stage<T>& stage, int64_t c, Vector vector) {
  if constexpr (kOnLoad == OnLoad::kNothing) {
    return vector;
  } else if constexpr (kOnLoad == OnLoad::kRelu) {
    return Rectified<T, Vector>{vector};
  } else {
    const T infinity = std::numeric_limits<T>::infinity();
    return ClampedAffine<T, Vector>{vector, stage.scale != nullptr ? load(stage.scale + c) : broadcast(T(1)),
                                    stage.shift != nullptr ? load(stage.shift + c) : zero<T>(),
                                    broadcast(stage.activation == Activation::kNone ? -infinity : T(0)),
                                    broadcast(stage.activation == Activation::kRelu6 ? T(6) : infinity)};
  }
}

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
  const auto write_all = [&](auto&& write) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int u = 0; u < kOutputs; ++u)
        write(s.output + r * s.output_row_step + (at + u) * s.output_step + c, sums[r][u]);
  };
  if constexpr (kVectorsAreLines<D> && std::is_same_v<Vector, FullVector<T>>)
    if (s.streamed) return write_all([](D* to, const Vec<T>& sum) { stream_line(&sum, to); });
  write_all([&](D* to, Vec<T> sum) { vector.write(to, sum); });
}

// Blocks of outputs along the row, all channels of a block before the next one: the sources are then read in
// the order of memory, which the hardware prefetches. (Channels outermost took 12 % longer at 128 channels
// and 147 pixels.) `sum(count, at, c, vector)` gets the number of outputs as a constant: kMost, 2 or 1.
template <OnLoad kOnLoad, int kMost, class S, class D, class Sum>
inline void for_each_block(const WeightedSum<S, D>& s, Sum&& sum) {
  using T = Compute<S>;
  const auto block = [&](auto outputs, int64_t at) {
    for_each_vector<T>(s.channels, [&](auto vector, int64_t c) {
      sum(outputs, at, c, loading<kOnLoad>(s.on_load, c, vector));
    });
  };
  int64_t at = 0;
  for (; at + kMost <= s.count; at += kMost) block(std::integral_constant<int, kMost>{}, at);
  for (; at + 2 <= s.count; at += 2) block(std::integral_constant<int, 2>{}, at);
  for (; at < s.count; ++at) block(std::integral_constant<int, 1>{}, at);
}

template <OnLoad kOnLoad, int kTaps, class S, class D>
inline void sum_all_sliding(const WeightedSum<S, D>& s) {
  for_each_block<kOnLoad, Registers<Compute<S>>::kUnroll>(
      s, [&](auto outputs, int64_t at, int64_t c, auto vector) {
        sum_sliding<kTaps, outputs()>(s, at, c, vector);
      });
}

template <OnLoad kOnLoad, int kKernelRows, int kTaps, class S, class D>
inline void sum_all_sliding_rows(const WeightedSum<S, D>& s) {
  for_each_block<kOnLoad, Registers<Compute<S>>::kBlockOutputs>(
      s, [&](auto outputs, int64_t at, int64_t c, auto vector) {
        sum_sliding_rows<kKernelRows, kTaps, outputs()>(s, at, c, vector);
      });
}

template <OnLoad kOnLoad, class S, class D>
inline void sum_all_taps(const WeightedSum<S, D>& s) {
  for_each_block<kOnLoad, Registers<Compute<S>>::kUnroll>(
      s, [&](auto outputs, int64_t at, int64_t c, auto vector) { sum_taps<outputs()>(s, at, c, vector); });
}

// One row, with a known number of kernel rows and adjacent taps: addresses stay in registers over the
// channels, which counts in small maps, where few outputs share them. Same order of additions.
template <OnLoad kOnLoad, int kKernelRows, int kTaps, int kOutputs, class S, class D>
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
  for_each_vector<T>(s.channels, [&](auto plain, int64_t c) {
    const auto vector = loading<kOnLoad>(s.on_load, c, plain);
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

template <OnLoad kOnLoad, int kKernelRows, int kTaps, class S, class D>
inline void sum_all_windows(const WeightedSum<S, D>& s) {
  constexpr int kMost = Registers<Compute<S>>::kUnroll;
  int64_t at = 0;
  if constexpr (kTaps == 3) {
    for (; at + kMost <= s.count; at += kMost) sum_window<kOnLoad, kKernelRows, kTaps, kMost>(s, at);
    for (; at + 2 <= s.count; at += 2) sum_window<kOnLoad, kKernelRows, kTaps, 2>(s, at);
  }
  for (; at < s.count; ++at) sum_window<kOnLoad, kKernelRows, kTaps, 1>(s, at);
}

template <OnLoad kOnLoad, class S, class D>
inline void weighted_sum_of(const WeightedSum<S, D>& s) {
  bool adjacent = s.tap_count > 0;
  for (int64_t t = 1; t < s.tap_count; ++t)
    adjacent &= s.taps[t].source == s.taps[t - 1].source + s.source_step;
  if (s.output_rows > 1) {
    if (adjacent && s.kernel_rows == 3 && s.tap_count == 3) return sum_all_sliding_rows<kOnLoad, 3, 3>(s);
    if (adjacent && s.kernel_rows == 3 && s.tap_count == 2)  // borders
      return sum_all_sliding_rows<kOnLoad, 3, 2>(s);
    if (adjacent && s.kernel_rows == 5 && s.tap_count == 5) return sum_all_sliding_rows<kOnLoad, 5, 5>(s);
    for (int64_t r = 0; r < s.output_rows; ++r) weighted_sum_of<kOnLoad>(s.row(r));
    return;
  }
  if (adjacent && s.tap_count == 3 && s.kernel_rows == 3) return sum_all_windows<kOnLoad, 3, 3>(s);
  if (adjacent && s.tap_count == 3 && s.kernel_rows == 2) return sum_all_windows<kOnLoad, 2, 3>(s);
  if (adjacent && s.count == 1) {  // borders and the smallest maps
    if (s.tap_count == 2 && s.kernel_rows == 3) return sum_all_windows<kOnLoad, 3, 2>(s);
    if (s.tap_count == 2 && s.kernel_rows == 2) return sum_all_windows<kOnLoad, 2, 2>(s);
    if (s.tap_count == 1 && s.kernel_rows == 1) return sum_all_windows<kOnLoad, 1, 1>(s);
  }
  adjacent &= s.count > 1;
  if (adjacent && s.tap_count == 3) return sum_all_sliding<kOnLoad, 3>(s);
  if (adjacent && s.tap_count == 5) return sum_all_sliding<kOnLoad, 5>(s);
  if (adjacent && s.tap_count == 7) return sum_all_sliding<kOnLoad, 7>(s);
  sum_all_taps<kOnLoad>(s);
}

template <class S, class D>
inline void weighted_sum(const WeightedSum<S, D>& s) {
  if constexpr (std::is_same_v<S, D>) {  // as a panel takes them: what else there is reads staged rows
    switch (on_load_of(s.on_load)) {
      case OnLoad::kRelu:
        return weighted_sum_of<OnLoad::kRelu>(s);
      case OnLoad::kClampedAffine:
        return weighted_sum_of<OnLoad::kClampedAffine>(s);
      case OnLoad::kNothing:
        break;
    }
  }
  weighted_sum_of<OnLoad::kNothing>(s);
}

// One direction along one axis pair: which taps to use where. Built once a call, shared by all threads.
struct DepthwisePlan {
  Direction direction;
  Axis vertical;
  ScratchVector<Segment> segments;  // along the row

  // How many rows from `at` on read whole windows one source row apart, at most `limit`, at least 1.
  int64_t alike(int64_t at, int64_t limit) const {
    const Axis& a = vertical;
    if (a.stride != 1 || a.dilation != 1) return 1;
    const bool forward = direction == Direction::kForward;
    const int64_t first = forward ? at - a.padding : at + a.padding - (a.kernel - 1),
                  sources = forward ? a.input : a.output,
                  last = std::min(limit, sources - a.kernel + 1 - first);
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
  explicit DepthwiseRow(const Window& window)
      : vertical_(reserved<Tap>(window.kernel[0])),
        sources_(reserved<const S*>(window.kernel[0] + Registers<T>::kBlockRows - 1)),
        weights_(reserved<const T*>(window.kernel[0])),
        taps_(reserved<TapOffsets>(window.kernel[1])) {}

  template <class Rows, class D>
  void run(const DepthwisePlan& plan, Rows& rows, const DepthwiseWeights<T>& weights, int64_t n, int64_t at,
           int64_t count, int64_t begin, int64_t end, const Stage<T>& stage, int64_t channels, D* output,
           int64_t output_step, int64_t output_row_step, bool streamed = false) {
    const Stage<T> on_load = rows.on_load();
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
      weighted_sum(WeightedSum<S, D>{
          sources_.data(), weights_.data(), static_cast<int64_t>(weights_.size()), taps_.data(),
          static_cast<int64_t>(taps_.size()), segment.source_step * pixel,
          output + (segment.begin + j0 * segment.step - begin) * output_step, segment.step * output_step,
          j1 - j0, channels, stage, count, output_row_step, on_load, streamed});
    }
  }

 private:
  ScratchVector<Tap> vertical_;
  ScratchVector<const S*> sources_;
  ScratchVector<const T*> weights_;
  ScratchVector<TapOffsets> taps_;
};

// gradients[r][t * gradient_step + c] += sum over count positions of
//   g[j * g_step + c] * sources[r][j * source_step + t * tap_step + c]
// for all rows r and taps t of a window, or a part of it: as many sums as hide the latency of a multiply-add.
template <class T>
struct TapGradients {
  const T* g;
  int64_t g_step, count;
  const T* sources[3];
  int64_t source_step, tap_step;
  T* gradients[3];
  int64_t gradient_step, channels;
};
constexpr int gradient_rows_at_once(int taps) {
  return taps <= 3 ? 3 : taps == 4 ? 2 : 1;
}
inline constexpr int kGradientTaps = 7;

template <int kRows, int kTaps, class T, class Vector>
inline void accumulate_taps(const TapGradients<T>& s, int64_t from, int64_t to, int64_t c, Vector vector) {
  Vec<T> sums[kRows][kTaps];
  const T *g = s.g + from * s.g_step + c, *sources[kRows];
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r) {
    sources[r] = s.sources[r] + from * s.source_step + c;
#pragma GCC unroll 7
    for (int t = 0; t < kTaps; ++t) sums[r][t] = zero<T>();
  }
  for (int64_t j = from; j < to; ++j, g += s.g_step) {
    const Vec<T> y = vector.read(g);
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 7
      for (int t = 0; t < kTaps; ++t)
        sums[r][t] = fma(y, vector.read(sources[r] + t * s.tap_step), sums[r][t]);
      sources[r] += s.source_step;
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 7
    for (int t = 0; t < kTaps; ++t) {
      T* gradient = s.gradients[r] + t * s.gradient_step + c;
      vector.write(gradient, add(vector.read(gradient), sums[r][t]));
    }
}

// Blocks of positions, all channels of a block before the next one, as for_each_block does.
template <int kRows, int kTaps, class T>
void accumulate_all(const TapGradients<T>& s) {
  constexpr int64_t kPositions = 32;
  for (int64_t j = 0; j < s.count; j += kPositions)
    for_each_vector<T>(s.channels, [&](auto vector, int64_t c) {
      accumulate_taps<kRows, kTaps>(s, j, std::min(j + kPositions, s.count), c, vector);
    });
}

template <class T>
inline void accumulate(const TapGradients<T>& s, size_t rows, size_t taps) {
  using Kernel = void (*)(const TapGradients<T>&);
  static constexpr Kernel kKernels[kGradientTaps][3] = {
      {accumulate_all<1, 1, T>, accumulate_all<2, 1, T>, accumulate_all<3, 1, T>},
      {accumulate_all<1, 2, T>, accumulate_all<2, 2, T>, accumulate_all<3, 2, T>},
      {accumulate_all<1, 3, T>, accumulate_all<2, 3, T>, accumulate_all<3, 3, T>},
      {accumulate_all<1, 4, T>, accumulate_all<2, 4, T>, nullptr},
      {accumulate_all<1, 5, T>, nullptr, nullptr},
      {accumulate_all<1, 6, T>, nullptr, nullptr},
      {accumulate_all<1, 7, T>, nullptr, nullptr}};
  kKernels[taps - 1][rows - 1](s);
}

// Adds weight gradients, [kh * kw][ld]: g is the gradient of the depthwise output.
template <class T>
class DepthwiseGradient {
 public:
  DepthwiseGradient(T* gradient, int64_t ld, int64_t kernel_width, int64_t channels)
      : gradient_(gradient), ld_(ld), kernel_width_(kernel_width), channels_(channels) {}

  // Of the positions that one window of taps connects: g and the source of tap (0, 0) of `vertical` and
  // `horizontal`, at position 0; taps are `tap_step` apart.
  template <class SourceRow>
  void add(const ScratchVector<Tap>& vertical, const ScratchVector<Tap>& horizontal, const T* g,
           int64_t g_step, int64_t count, int64_t source_step, int64_t tap_step,
           SourceRow&& source_row) const {
    for (size_t t0 = 0; t0 < horizontal.size(); t0 += kGradientTaps) {
      const size_t taps = std::min<size_t>(kGradientTaps, horizontal.size() - t0);
      const auto at_once = static_cast<size_t>(gradient_rows_at_once(static_cast<int>(taps)));
      // The kernel's taps may run against the sources' order.
      const int64_t kernel_step =
          taps > 1 ? horizontal[t0 + 1].kernel_index - horizontal[t0].kernel_index : 1;
      for (size_t r0 = 0; r0 < vertical.size(); r0 += at_once) {
        const size_t rows = std::min(at_once, vertical.size() - r0);
        TapGradients<T> s{g, g_step, count, {}, source_step, tap_step, {}, kernel_step * ld_, channels_};
        for (size_t r = 0; r < rows; ++r) {
          const Tap& row = vertical[r0 + r];
          s.sources[r] = source_row(row.source) + static_cast<int64_t>(t0) * tap_step;
          s.gradients[r] = gradient_ + (row.kernel_index * kernel_width_ + horizontal[t0].kernel_index) * ld_;
        }
        accumulate(s, rows, taps);
      }
    }
  }

 private:
  T* gradient_;
  int64_t ld_, kernel_width_, channels_;
};
