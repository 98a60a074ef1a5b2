// Rows for the forward of the dense convolution: converted, averaged and padded with zeros once, in a ring,
// so that the inputs of an output pixel are a few runs of memory and borders need no code. Position p of a
// row is input column p - padding. Two orders, after the two layouts of images:
//   interleaved (NHWC): channel c of position p at [p][c]; a kernel row is one run of kernel width x channels
//   planar (NCHW): at [c][p % stride][p / stride]; a tap of neighbouring pixels is one run

enum class RowOrder { kInterleaved, kPlanar };

template <class S>
class WindowRows {
 public:
  using T = Compute<S>;

  static constexpr int64_t kMostResidues = 4;  // each has a row of its own, with a vector to spare

  static bool serves(const RowAverageConv2dParams& p, RowOrder order) {
    const ChannelStage& stage = p.prologue;
    if (stage.scale != nullptr || stage.shift != nullptr || stage.activation != Activation::kNone)
      return false;
    if (order == RowOrder::kPlanar) return p.input.stride_w == 1 && p.window.stride[1] <= kMostResidues;
    return channels_are_adjacent(p.input) && p.input.stride_w == p.input.c;
  }

  // `height` rows after the average. Sizes only: the memory comes with prepare().
  WindowRows(const RowAverageConv2dParams& p, RowOrder order, int64_t height, Scratch& scratch)
      : p_(p),
        order_(order),
        height_(height),
        channels_(p.input.c),
        stride_(p.window.stride[1]),
        positions_((p.output.w - 1) * stride_ + (p.window.kernel[1] - 1) * p.window.dilation[1] + 1),
        // A vector more than needed: runs are read in whole vectors.
        residue_ld_(divide_up(positions_, stride_) + Vec<T>::kLanes),
        line_size_(positions_ + 2 * Vec<T>::kLanes * stride_),
        row_size_(order == RowOrder::kPlanar ? channels_ * stride_ * residue_ld_
                                             : positions_ * channels_ + Vec<T>::kLanes),
        runs_(p.window.dilation[1] == 1 ? 1 : p.window.kernel[1]),
        window_rows_(std::min((p.window.kernel[0] - 1) * p.window.dilation[0] + 1, height)),
        rows_slot_(scratch.add<T>((window_rows_ + 1) * row_size_)),
        line_slot_(scratch.add<T>(line_size_)),
        held_(static_cast<size_t>(window_rows_), -1),
        offsets_(reserved<int64_t>(p.window.kernel[0] * runs_)) {}

  void prepare(Scratch& scratch) {
    rows_ = scratch.get<T>(rows_slot_);
    line_ = scratch.get<T>(line_slot_);
    if (scratch.only_counts()) return;
    std::fill(rows_, rows_ + (window_rows_ + 1) * row_size_, T(0));
    std::fill(line_, line_ + line_size_, T(0));
  }

  // Row r of image n, zeros where there is none; valid until as many others were asked for as a window has.
  const T* row(int64_t n, int64_t r) {
    if (r < 0 || r >= height_) return rows_ + window_rows_ * row_size_;
    const int64_t id = n * height_ + r, slot = id % window_rows_;
    T* to = rows_ + slot * row_size_;
    if (held_[static_cast<size_t>(slot)] != id) {
      order_ == RowOrder::kPlanar ? stage_planar(n, r, to) : stage_interleaved(n, r, to);
      held_[static_cast<size_t>(slot)] = id;
    }
    return to;
  }

  // The inputs of pixels [first, first + count), counted over rows and images, as left factors where they
  // lie: body(windows, from, count) for those of an output row, `from` counted from `first`. In the order
  // (kh, kw, c), in runs of run_depth() values.
  template <class Body>
  void for_each_row_of_windows(int64_t first, int64_t count, Body&& body) {
    for_each_output_row(first, count, [&](int64_t n, int64_t h, int64_t w, int64_t at, int64_t length) {
      offsets_.clear();
      for (int64_t kh = 0; kh < p_.window.kernel[0]; ++kh)
        for (int64_t run = 0; run < runs_; ++run)
          offsets_.push_back(row(n, input_row(h, kh)) - rows_ + run * p_.window.dilation[1] * channels_);
      body(Panel<T>{rows_ + w * stride_ * channels_, stride_ * channels_, 1, offsets_.data(),
                    static_cast<int64_t>(offsets_.size())},
           at, length);
    });
  }
  int64_t run_depth() const { return p_.window.kernel[1] / runs_ * channels_; }

  // panel[(kh, kw, c)][pixel] of pixels [first, first + count); rows of the panel have room for one vector
  // more than count.
  void fill_by_tap(int64_t first, int64_t count, T* panel, int64_t ld) {
    const Window& window = p_.window;
    for_each_output_row(first, count, [&](int64_t n, int64_t h, int64_t w, int64_t at, int64_t length) {
      T* to = panel + at;
      for (int64_t kh = 0; kh < window.kernel[0]; ++kh) {
        const T* from = row(n, input_row(h, kh)) + w;
        for (int64_t kw = 0; kw < window.kernel[1]; ++kw) {
          const int64_t position = kw * window.dilation[1];
          const T* tap = from + position % stride_ * residue_ld_ + position / stride_;
          for (int64_t c = 0; c < channels_; ++c, to += ld) copy(tap + c * stride_ * residue_ld_, to, length);
        }
      }
    });
  }

 private:
  // Whole vectors.
  static void copy(const T* from, T* to, int64_t count) {
    for (int64_t i = 0; i < count; i += Vec<T>::kLanes) store(to + i, load(from + i));
  }

  int64_t input_row(int64_t h, int64_t kh) const {
    return h * p_.window.stride[0] - p_.window.padding[0] + kh * p_.window.dilation[0];
  }
  // body(image, row, first column, its pixel counted from `first`, columns)
  template <class Body>
  void for_each_output_row(int64_t first, int64_t count, Body&& body) {
    const Image& out = p_.output;
    for (int64_t done = 0; done < count;) {
      const int64_t pixel = first + done, w = pixel % out.w, h = pixel / out.w % out.h,
                    n = pixel / out.w / out.h, length = std::min(count - done, out.w - w);
      body(n, h, w, done, length);
      done += length;
    }
  }

  // Input columns that some window reads.
  int64_t columns() const { return std::clamp<int64_t>(positions_ - p_.window.padding[1], 0, p_.input.w); }
  // A row as it is, with the face of DividedSum.
  struct PlainRow {
    const S* from;
    template <class Vector>
    Vec<T> at(Vector vector, int64_t i) const {
      return vector.read(from + i);
    }
    void write(int64_t first, int64_t count, T* to) const { convert(from + first, to, count); }
  };
  // Calls body(values) with row r of image n after the average; what depends on the row is settled once for
  // all its channels.
  template <class Body>
  void with_values(int64_t n, int64_t r, Body&& body) const {
    const Image& x = p_.input;
    const S* image = static_cast<const S*>(x.data) + n * x.stride_n;
    const int64_t s = p_.prologue.row_average_stride;
    s == 0 ? body(PlainRow{image + r * x.stride_h})
           : with_mean(image, x.stride_h, forward_rows(r, s, x.h), body);
  }
  void stage_interleaved(int64_t n, int64_t r, T* to) const {
    with_values(n, r, [&](const auto& values) {
      values.write(0, columns() * channels_, to + p_.window.padding[1] * channels_);
    });
  }
  void stage_planar(int64_t n, int64_t r, T* to) const {
    with_values(n, r, [&](const auto& values) {
      for (int64_t c = 0; c < channels_; ++c, to += stride_ * residue_ld_) {
        const int64_t channel = c * p_.input.stride_c;
        if (stride_ == 1) {
          values.write(channel, columns(), to + p_.window.padding[1]);
        } else if (stride_ == 2) {
          halve(values, channel, to);
        } else {
          values.write(channel, columns(), line_ + p_.window.padding[1]);
          for (int64_t residue = 0; residue < stride_; ++residue)
            for (int64_t i = 0; i < residue_ld_ - Vec<T>::kLanes; ++i)
              to[residue * residue_ld_ + i] = line_[i * stride_ + residue];
        }
      }
    });
  }
  // Values from `first` on, those of even and of odd positions apart.
  template <class Values>
  void halve(const Values values, int64_t first, T* to) const {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const int64_t padding = p_.window.padding[1], count = columns();
    T* to_even = to + padding % 2 * residue_ld_ + padding / 2;  // of even columns
    T* to_odd = to + (padding + 1) % 2 * residue_ld_ + (padding + 1) / 2;
    const auto place = [&](Vec<T> even, Vec<T> odd, int64_t i) {
      deinterleave(even, odd);
      store(to_even + i / 2, even);
      store(to_odd + i / 2, odd);
    };
    const auto tail = [&](int64_t i) {
      const PartialVector<T> vector{static_cast<int>(std::clamp<int64_t>(count - i, 0, kLanes))};
      return values.at(vector, first + i);
    };
    int64_t i = 0;
    for (const FullVector<T> full; i + 2 * kLanes <= count; i += 2 * kLanes)
      place(values.at(full, first + i), values.at(full, first + i + kLanes), i);
    if (i < count) place(tail(i), tail(i + kLanes), i);
  }

  const RowAverageConv2dParams& p_;
  RowOrder order_;
  int64_t height_, channels_, stride_, positions_, residue_ld_, line_size_, row_size_;
  int64_t runs_;  // of memory in a row of a window
  int64_t window_rows_;
  size_t rows_slot_, line_slot_;
  T *rows_ = nullptr, *line_ = nullptr;  // the ring and a row of zeros; one channel of a row, in order
  ScratchVector<int64_t> held_;          // which row each slot of the ring holds
  ScratchVector<int64_t> offsets_;       // of the runs of a window
};
