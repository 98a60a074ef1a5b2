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

// dst[i] = sum over rows of src[i] / divisor, where row r starts at src + r * row_step.
template <class S, class D>
inline void combine_rows(const S* src, int64_t row_step, const DividedRows& rows, D* dst, int64_t n) {
  using T = Compute<S>;
  const S* from[3] = {src, src, src};
  Divisor<T> divisors[3] = {Divisor<T>(1), Divisor<T>(1), Divisor<T>(1)};
  bool equal = true;  // then the sum is divided, once: one rounding, as the definition has it
  for (int64_t r = 0; r < rows.count; ++r) {
    from[r] = src + rows.row[r] * row_step;
    divisors[r] = Divisor<T>(rows.divisor[r]);
    equal &= rows.divisor[r] == rows.divisor[0];
  }
  for_each_vector<T>(n, [&](auto vector, int64_t i) {
    Vec<T> sum = zero<T>();
    for (int64_t r = 0; r < rows.count; ++r) {
      const Vec<T> x = vector.read(from[r] + i);
      sum = !equal ? divisors[r].divide_add(x, sum) : r == 0 ? x : add(sum, x);
    }
    if (equal && rows.count > 0) sum = divisors[0].divide(sum);
    vector.write(dst + i, sum);
  });
}

// Output row `at` of each image from `rows_of(at)` of the input.
template <class S, class RowsOf>
void combine_image_rows(const RowAverageParams& p, const Parallel& parallel, RowsOf&& rows_of) {
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
    parallel.run(y.n * planes * y.h, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t at = index % y.h, plane = index / y.h % planes, n = index / y.h / planes;
        combine_rows(src + n * x.stride_n + plane * x.stride_c, x.stride_h, rows_of(at),
                     dst + n * y.stride_n + plane * y.stride_c + at * y.stride_h, span);
      }
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
