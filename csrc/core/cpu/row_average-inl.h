// The 3-row average as an op of its own, forward and backward: every output row is a weighted sum of at most
// three rows.

struct DividedRows {
  int64_t count = 0;
  int64_t row[3];
  int64_t divisor[3];  // what each row is divided by
};

inline DividedRows forward_rows(int64_t r, int64_t row_stride, int64_t height) {
  DividedRows rows;
  const RowMean mean = averaged_rows(r, row_stride, height);
  for (; rows.count < mean.count; ++rows.count) {
    rows.row[rows.count] = mean.first + rows.count;
    rows.divisor[rows.count] = mean.count;
  }
  return rows;
}

// Row h of the input took part in the averages around it, each divided by the rows that average had.
inline DividedRows backward_rows(int64_t h, int64_t row_stride, int64_t height) {
  DividedRows rows;
  const int64_t averages = row_average_size(height, row_stride);
  const int64_t first = h < 2 ? 0 : (h - 2) / row_stride + 1;  // rounded up without a sum that could overflow
  for (int64_t r = first; r < averages && r * row_stride <= h + 1; ++r) {
    rows.row[rows.count] = r;
    rows.divisor[rows.count++] = averaged_rows(r, row_stride, height).count;
  }
  return rows;
}

// By 1, 2 or 3; made once, as a division rounded toward zero takes longer than a short row.
template <class T>
inline const Divisor<T>& divisor_of(int64_t count) {
  static const Divisor<T> kDivisors[3] = {Divisor<T>(1), Divisor<T>(2), Divisor<T>(3)};
  return kDivisors[count - 1];
}

// Value i: sum over rows of src[i] / divisor, where row r starts at src + r * row_step. Rows of one divisor,
// all of a forward, are summed and divided once: one rounding, as the definition has it.
template <int kRows, bool kEqual, class S>
class DividedSum {
 public:
  using T = Compute<S>;
  DividedSum(const S* src, int64_t row_step, const DividedRows& rows)
      : from0_(src + rows.row[0] * row_step),
        from1_(kRows > 1 ? src + rows.row[1] * row_step : from0_),
        from2_(kRows > 2 ? src + rows.row[2] * row_step : from1_),
        by0_(divisor_of<T>(rows.divisor[0])),
        by1_(kEqual || kRows < 2 ? by0_ : divisor_of<T>(rows.divisor[1])),
        by2_(kEqual || kRows < 3 ? by0_ : divisor_of<T>(rows.divisor[2])) {}

  const S* last() const { return from2_; }
  template <class Vector>
  Vec<T> at(Vector vector, int64_t i) const {
    Vec<T> sum = vector.read(from0_ + i);
    if (!kEqual) sum = by0_.divide(sum);
    if (kRows > 1)
      sum = kEqual ? add(sum, vector.read(from1_ + i)) : by1_.divide_add(vector.read(from1_ + i), sum);
    if (kRows > 2)
      sum = kEqual ? add(sum, vector.read(from2_ + i)) : by2_.divide_add(vector.read(from2_ + i), sum);
    return kEqual ? by0_.divide(sum) : sum;
  }
  template <class D>
  void write(int64_t first, int64_t count, D* dst) const {
    for_each_vector<T>(count, [sum = *this, first, dst](auto vector, int64_t i) {
      vector.write(dst + i, sum.at(vector, first + i));
    });
  }

 private:
  // Scalars, not arrays: what a loop indexes may alias what it stores.
  const S *from0_, *from1_, *from2_;
  Divisor<T> by0_, by1_, by2_;
};

// No row takes part: where a large stride skips it, in the backward.
template <class S>
struct NoRows {
  using T = Compute<S>;
  const S* last_row;
  const S* last() const { return last_row; }
  template <class Vector>
  Vec<T> at(Vector, int64_t) const {
    return zero<T>();
  }
  template <class D>
  void write(int64_t, int64_t count, D* dst) const {
    std::fill(dst, dst + count, D{});
  }
};

// Calls body(sum) with the class that fits the rows: here of one divisor, as in every forward.
template <class S, class Body>
inline void with_mean(const S* src, int64_t row_step, const DividedRows& rows, Body&& body) {
  switch (rows.count) {
    case 1:
      return body(DividedSum<1, true, S>(src, row_step, rows));
    case 2:
      return body(DividedSum<2, true, S>(src, row_step, rows));
    default:
      return body(DividedSum<3, true, S>(src, row_step, rows));
  }
}
template <class S, class Body>
inline void with_sum(const S* src, int64_t row_step, const DividedRows& rows, Body&& body) {
  if (rows.count == 0) return body(NoRows<S>{src});
  const bool equal = std::all_of(rows.divisor, rows.divisor + rows.count,
                                 [&](int64_t divisor) { return divisor == rows.divisor[0]; });
  if (equal) return with_mean(src, row_step, rows, body);
  rows.count == 2 ? body(DividedSum<2, false, S>(src, row_step, rows))
                  : body(DividedSum<3, false, S>(src, row_step, rows));
}
template <class S, class D>
inline void combine_rows(const S* src, int64_t row_step, const DividedRows& rows, D* dst, int64_t n) {
  with_sum(src, row_step, rows, [&](const auto& sum) { sum.write(0, n, dst); });
}

// Output past the caches, in whole lines straight from registers, so that reads and writes of memory overlap:
// through a buffer of 8 KiB they took turns, at three quarters of the rate. Rows that follow each other in
// memory share a line, whatever their length and dtype: the line that is not complete yet waits here.
template <class S>
class StreamedRows {
 public:
  ~StreamedRows() {
    flush();
    stream_fence();
  }

  // A row of n values that begins at `dst`; `next`: how far behind its begin the values lie, of the sum's
  // last row, that will be read after it.
  template <class Sum>
  void write(const Sum& sum, S* dst, int64_t n, int64_t next) {
    if (dst != first_ + end_) {
      flush();
      const auto offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(dst) % kLine) / kSize;
      first_ = dst - offset, begin_ = end_ = offset;
    }
    int64_t done = 0;
    if (end_ > 0) done = collect(sum, 0, std::min(n, kValues - end_));
    // Four places at once, up to a page apart: each core then has more of its reads under way, as in a copy.
    // Meanwhile what the next block of lines reads is asked for.
    for (int64_t lines; (lines = std::min((n - done) / (kPlaces * kValues), kPage / kLine)) >= kLeastLines;) {
      const int64_t values = kPlaces * lines * kValues, ahead = n - done >= 2 * values ? values : next - done;
      stream<kPlaces>(sum, done, lines, ahead);
      done += values;
    }
    stream<1>(sum, done, (n - done) / kValues, next - done);
    done += (n - done) / kValues * kValues;
    if (done < n) collect(sum, done, n - done);
  }

 private:
  static constexpr int64_t kPage = 4096, kPlaces = 4, kLeastLines = 32, kSize = sizeof(S),
                           kValues = kLine / kSize;

  // kCount runs of lines, one behind the other, in turns of two lines.
  template <int kCount, class Sum>
  void stream(const Sum& sum, int64_t at, int64_t lines, int64_t ahead) {
    constexpr int64_t kTurn = 2;
    char* to = reinterpret_cast<char*>(first_);
    const S* wanted = sum.last() + at + ahead;
    for (int64_t line = 0; line < lines; line += kTurn)
#pragma GCC unroll 4
      for (int place = 0; place < kCount; ++place)
        for (int64_t i = place * lines + line; i < place * lines + std::min(line + kTurn, lines); ++i) {
          alignas(kLine) S values[kValues];
#pragma GCC unroll 8
          for (int64_t v = 0; v < kValues; v += kLanes)
            FullVector<T>{}.write(values + v, sum.at(FullVector<T>{}, at + i * kValues + v));
          stream_line(values, to + i * kLine);
          __builtin_prefetch(wanted + i * kValues, 0, 2);
        }
    first_ += kCount * lines * kValues;
  }
  // Into the line that waits.
  template <class Sum>
  int64_t collect(const Sum& sum, int64_t at, int64_t count) {
    sum.write(at, count, line_ + end_);
    end_ += count;
    if (end_ == kValues) flush();
    return count;
  }
  void flush() {
    if (end_ - begin_ == kValues) {
      stream_line(line_, first_);
    } else {
      std::copy(line_ + begin_, line_ + end_, first_ + begin_);
    }
    first_ += end_ == kValues ? kValues : 0;
    begin_ = end_ = 0;
  }

  using T = Compute<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  alignas(kLine) S line_[kValues];
  S* first_ = nullptr;           // where the line belongs
  int64_t begin_ = 0, end_ = 0;  // of its values those that are there
};

// Output row `at` of each image from `rows_of(at)` of the input. With stride 1 all rows but `edge` at either
// end combine the rows around them alike: where rows follow each other in memory, they are one long row.
template <class S, class RowsOf>
void combine_image_rows(const RowAverageParams& p, const Parallel& parallel, int64_t edge, RowsOf&& rows_of) {
  using T = Compute<S>;
  const Image &x = p.input, &y = p.output;
  const S* src = static_cast<const S*>(x.data);
  S* dst = static_cast<S*>(p.output.data);
  const bool nhwc =
      channels_are_adjacent(x) && channels_are_adjacent(y) && x.stride_w == x.c && y.stride_w == y.c;
  const bool nchw = x.stride_w == 1 && y.stride_w == 1;
  if (nhwc || nchw) {
    // Channels of a pixel and pixels of a row are one span; in NCHW each channel has spans of its own.
    const int64_t planes = nhwc ? 1 : x.c, span = nhwc ? x.w * x.c : x.w;
    const bool streamed = bypasses_caches(y.n * y.c * y.h * y.w * sizeof(S), cache_sizes());
    const bool rows_join = p.row_stride == 1 && x.stride_h == span && y.stride_h == span;
    parallel.run(y.n * planes * y.h, [&](int64_t begin, int64_t end) {
      // body(sum, where to, values)
      const auto for_each_sum = [&](auto&& body) {
        int64_t at = begin % y.h, plane = begin / y.h % planes, n = begin / y.h / planes;
        for (int64_t left = end - begin; left > 0; at = 0) {
          const S* from = src + n * x.stride_n + plane * x.stride_c;
          S* to = dst + n * y.stride_n + plane * y.stride_c;
          const int64_t stop = std::min(y.h, at + left);
          left -= stop - at;
          for (int64_t count; at < stop; at += count) {
            count = rows_join && at >= edge ? std::max<int64_t>(1, std::min(stop, y.h - edge) - at) : 1;
            with_sum(from, x.stride_h, rows_of(at),
                     [&](const auto& sum) { body(sum, to + at * y.stride_h, count * span); });
          }
          if (++plane == planes) plane = 0, ++n;
        }
      };
      if (!streamed)
        return for_each_sum([](const auto& sum, S* to, int64_t count) { sum.write(0, count, to); });
      StreamedRows<S> output;
      const int64_t row = p.row_stride * x.stride_h;
      for_each_sum([&](const auto& sum, S* to, int64_t count) {
        output.write(sum, to, count, rows_join ? std::max(count, row) : row);
      });
    });
    return;
  }
  parallel.run(y.n * y.h, [&](int64_t begin, int64_t end) {
    constexpr int64_t kRows = 3;
    const int64_t ld = round_up(x.c, Vec<T>::kLanes), row_size = x.w * ld;
    Scratch task(ScratchUse::kTask);
    const size_t staged_slot = task.add<T>(kRows * row_size), result_slot = task.add<T>(row_size);
    T* staged = task.get<T>(staged_slot);
    T* result = task.get<T>(result_slot);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t at = index % y.h, n = index / y.h;
      DividedRows rows = rows_of(at);
      for (int64_t r = 0; r < rows.count; ++r) {
        load_pixels<S>(x, (n * x.h + rows.row[r]) * x.w, x.w, 0, x.c, staged + r * row_size, ld);
        rows.row[r] = r;
      }
      combine_rows(static_cast<const T*>(staged), row_size, rows, result, row_size);
      store_pixels<S>(result, ld, y, (n * y.h + at) * y.w, y.w, 0, y.c);
    }
  });
}

template <class S>
void row_average(const RowAverageParams& p, const Parallel& parallel) {
  combine_image_rows<S>(p, parallel, 1, [&](int64_t r) { return forward_rows(r, p.row_stride, p.input.h); });
}

template <class S>
void row_average_backward(const RowAverageParams& p, const Parallel& parallel) {
  combine_image_rows<S>(p, parallel, 2,
                        [&](int64_t h) { return backward_rows(h, p.row_stride, p.output.h); });
}
