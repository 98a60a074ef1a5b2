// The 3-row average as an op of its own, forward and backward: every output row is a weighted sum of at most
// three rows.

struct DividedRows {
  int64_t count = 0;
  int64_t row[3];
  int64_t divisor[3];  // what each row is divided by

  // Whether `next` are the rows below these: then the two combinations are one of rows twice as long, where
  // rows follow each other in memory.
  bool precede(const DividedRows& next) const {
    bool result = count == next.count;
    for (int64_t r = 0; result && r < count; ++r)
      result = next.row[r] == row[r] + 1 && next.divisor[r] == divisor[r];
    return result;
  }
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

// dst[i] = sum over rows of src[i] / divisor, where row r starts at src + r * row_step. Rows of one divisor,
// all of a forward, are summed and divided once: one rounding, as the definition has it. `ahead` > 0 asks for
// memory that far behind the last row, which the hardware's prefetcher cannot guess.
template <int kRows, bool kEqual, class S, class D>
inline void combine_rows(const S* src, int64_t row_step, const DividedRows& rows, D* dst, int64_t n,
                         int64_t ahead) {
  using T = Compute<S>;
  // Scalars, not arrays: what a lambda indexes may alias what it stores.
  const S *from0 = src + rows.row[0] * row_step, *from1 = kRows > 1 ? src + rows.row[1] * row_step : nullptr,
          *from2 = kRows > 2 ? src + rows.row[2] * row_step : nullptr;
  const Divisor<T> by0 = divisor_of<T>(rows.divisor[0]),
                   by1 = kEqual || kRows < 2 ? by0 : divisor_of<T>(rows.divisor[1]),
                   by2 = kEqual || kRows < 3 ? by0 : divisor_of<T>(rows.divisor[2]);
  const S* last = kRows == 1 ? from0 : kRows == 2 ? from1 : from2;
  for_each_vector<T>(n, [=](auto vector, int64_t i) {
    Vec<T> sum = vector.read(from0 + i);
    if (!kEqual) sum = by0.divide(sum);
    if (kRows > 1)
      sum = kEqual ? add(sum, vector.read(from1 + i)) : by1.divide_add(vector.read(from1 + i), sum);
    if (kRows > 2)
      sum = kEqual ? add(sum, vector.read(from2 + i)) : by2.divide_add(vector.read(from2 + i), sum);
    vector.write(dst + i, kEqual ? by0.divide(sum) : sum);
    if (ahead > 0) __builtin_prefetch(last + ahead + i, 0, 2);
  });
}
template <class S, class D>
inline void combine_rows(const S* src, int64_t row_step, const DividedRows& rows, D* dst, int64_t n,
                         int64_t ahead = 0) {
  const bool equal = std::all_of(rows.divisor, rows.divisor + rows.count,
                                 [&](int64_t divisor) { return divisor == rows.divisor[0]; });
  switch (rows.count) {
    case 0:
      return std::fill(dst, dst + n, D{});
    case 1:
      return combine_rows<1, true>(src, row_step, rows, dst, n, ahead);
    case 2:
      return equal ? combine_rows<2, true>(src, row_step, rows, dst, n, ahead)
                   : combine_rows<2, false>(src, row_step, rows, dst, n, ahead);
    default:
      return equal ? combine_rows<3, true>(src, row_step, rows, dst, n, ahead)
                   : combine_rows<3, false>(src, row_step, rows, dst, n, ahead);
  }
}

// Output past the caches: collected in a buffer that stays in L1 and streamed to memory from there, a line at
// a time. Rows that follow each other in memory share lines, whatever their length and dtype.
template <class S>
class StreamedRows {
 public:
  explicit StreamedRows(Scratch& task) : task_(task), slot_(task.add<char>(kBytes + kLine)) {}
  ~StreamedRows() {
    flush();
    stream_fence();
  }

  // make(offset, count, to) writes that part of a row of n values that begins at `dst`.
  template <class Make>
  void write(S* dst, int64_t n, Make&& make) {
    for (int64_t done = 0; done < n;) {
      char* to = reinterpret_cast<char*>(dst + done);
      if (to != first_ + used_) {
        flush();
        first_ = to, offset_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kLine);
      }
      // A full buffer ends where a line ends.
      const int64_t size = sizeof(S), room = (kBytes - offset_ - used_) / size,
                    count = std::min(room, n - done);
      make(done, count, reinterpret_cast<S*>(buffer() + offset_ + used_));
      used_ += count * size, done += count;
      if (count == room) flush();
    }
  }

 private:
  static constexpr int64_t kLine = 64, kBytes = 8 << 10;

  char* buffer() { return task_.get<char>(slot_); }
  void flush() {
    const char* from = buffer() + offset_;
    char *to = first_, *end = first_ + used_;
    const int64_t head = std::min(used_, (kLine - offset_) % kLine);
    std::memcpy(to, from, static_cast<size_t>(head));
    for (to += head, from += head; end - to >= kLine; to += kLine, from += kLine) stream_line(from, to);
    std::memcpy(to, from, static_cast<size_t>(end - to));
    first_ = end, used_ = 0;
    offset_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(end) % kLine);
  }

  Scratch& task_;
  size_t slot_;
  char* first_ = nullptr;  // where the buffered bytes belong
  int64_t offset_ = 0, used_ = 0;
};

// Output row `at` of each image from `rows_of(at)` of the input.
template <class S, class RowsOf>
void combine_image_rows(const RowAverageParams& p, const Parallel& parallel, RowsOf&& rows_of) {
  using T = Compute<S>;
  const Image &x = p.input, &y = p.output;
  const S* src = static_cast<const S*>(x.data);
  S* dst = static_cast<S*>(p.output.data);
  constexpr int64_t kAheadBytes = 2 << 10;
  const bool nhwc =
      channels_are_adjacent(x) && channels_are_adjacent(y) && x.stride_w == x.c && y.stride_w == y.c;
  const bool nchw = x.stride_w == 1 && y.stride_w == 1;
  if (nhwc || nchw) {
    // Channels of a pixel and pixels of a row are one span; in NCHW each channel has spans of its own.
    const int64_t planes = nhwc ? 1 : x.c, span = nhwc ? x.w * x.c : x.w;
    const bool streamed = bypasses_caches(y.n * y.c * y.h * y.w * sizeof(S), cache_sizes());
    const bool rows_join = x.stride_h == span && y.stride_h == span;
    parallel.run(y.n * planes * y.h, [&](int64_t begin, int64_t end) {
      // body(input plane, rows of it, output row, values)
      const auto for_each_row = [&](auto&& body) {
        int64_t at = begin % y.h, plane = begin / y.h % planes, n = begin / y.h / planes;
        for (int64_t left = end - begin; left > 0;) {
          const S* from = src + n * x.stride_n + plane * x.stride_c;
          S* to = dst + n * y.stride_n + plane * y.stride_c;
          for (const int64_t stop = std::min(y.h, at + left); at < stop;) {
            const DividedRows rows = rows_of(at);
            DividedRows last = rows;
            const int64_t first = at++;
            for (--left; rows_join && at < stop; ++at, --left) {
              const DividedRows next = rows_of(at);
              if (!last.precede(next)) break;
              last = next;
            }
            body(from, rows, to + first * y.stride_h, (at - first) * span);
          }
          at = 0;
          if (++plane == planes) plane = 0, ++n;
        }
      };
      if (!streamed)
        return for_each_row([&](const S* from, const DividedRows& rows, S* to, int64_t count) {
          combine_rows(from, x.stride_h, rows, to, count);
        });
      Scratch task(ScratchUse::kTask);
      StreamedRows<S> output(task);
      const int64_t ahead = std::max<int64_t>(kAheadBytes / sizeof(S), p.row_stride * x.stride_h);
      for_each_row([&](const S* from, const DividedRows& rows, S* to, int64_t count) {
        output.write(to, count, [&](int64_t offset, int64_t part, S* buffer) {
          combine_rows(from + offset, x.stride_h, rows, buffer, part, ahead);
        });
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
  combine_image_rows<S>(p, parallel, [&](int64_t r) { return forward_rows(r, p.row_stride, p.input.h); });
}

template <class S>
void row_average_backward(const RowAverageParams& p, const Parallel& parallel) {
  combine_image_rows<S>(p, parallel, [&](int64_t h) { return backward_rows(h, p.row_stride, p.output.h); });
}
