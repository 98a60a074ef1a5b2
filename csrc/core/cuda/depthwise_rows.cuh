// Depthwise convolutions of 3x3, 5x5 and 7x7 kernels in NHWC: a thread walks down some rows with a few
// columns of a vector of channels. Each row is read once (of halves, while the one before is computed) and
// added to all results that it is part of; their sums are in registers.
#pragma once
#include "core/cuda/depthwise.cuh"
#include "core/cuda/prologue.cuh"

namespace sepconv::cuda {

inline constexpr int kRowsThreads = 128;  // of a block, three of which leave each thread 168 registers
inline constexpr int kRowsLanes = 4;      // 16 bytes of floats, 8 of half precision

// Columns of a thread: sums of larger kernels leave room for fewer.
template <int kSize>
inline constexpr int kRowsRun = kSize == 3 ? 4 : 2;

// The bands of rows that threads walk down.
struct Bands {
  int rows;          // of a band; the last of an image may have fewer
  unsigned bands;    // of an image
  unsigned columns;  // groups of as many as a thread has, of a row
  unsigned items;    // columns of all bands of all images
};

struct BandPlace {
  int n, y, x, rows;  // rows from y on
};
template <int kRun>
__device__ __forceinline__ BandPlace place_of(unsigned item, const Bands& b, int height) {
  const unsigned band = item / b.columns, n = band / b.bands;
  const int y = static_cast<int>(band - n * b.bands) * b.rows;
  return {static_cast<int>(n), y, static_cast<int>(item - band * b.columns) * kRun,
          height - y < b.rows ? height - y : b.rows};
}

// All weights of a small kernel are in registers for as long as the thread lives: those of a vector of
// channels follow one another where they lie. As floats: the compiler would spare registers and convert them
// at every use.
template <class T, int kSize>
struct WeightsInRegisters {
  static constexpr int kTaps = kSize * kSize;
  Compute<T> weight[kTaps][kRowsLanes];

  __device__ __forceinline__ WeightsInRegisters(const T* first, bool flipped) {
    Compute<T> stored[kTaps * kRowsLanes];
    if (reinterpret_cast<uintptr_t>(first) % (kRowsLanes * sizeof(T)) == 0) {
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        Compute<T> vector[kRowsLanes];
        load<T, kRowsLanes>(first + i * kRowsLanes, vector);
#pragma unroll
        for (int j = 0; j < kRowsLanes; ++j) stored[i * kRowsLanes + j] = vector[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kTaps * kRowsLanes; ++i) stored[i] = widen(first[i]);
    }
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap)
#pragma unroll
      for (int i = 0; i < kRowsLanes; ++i) {
        const Compute<T>* const of_channel = stored + i * kTaps;
        weight[tap][i] = flipped ? of_channel[kTaps - 1 - tap] : of_channel[tap];
        device::keep(weight[tap][i]);
      }
  }
  __device__ __forceinline__ void read(int tap, Compute<T> (&to)[kRowsLanes]) const {
#pragma unroll
    for (int i = 0; i < kRowsLanes; ++i) to[i] = weight[tap][i];
  }
};

// Weights of larger kernels stay in shared memory. Every thread of the block calls this.
template <class T, int kSize>
__device__ __forceinline__ auto weights_for_rows(const T* weight, int channels, int block_channel,
                                                 bool flipped) {
  if constexpr (kSize == 3) {
    const int channel = block_channel + static_cast<int>(threadIdx.x) * kRowsLanes;
    return WeightsInRegisters<T, kSize>(
        weight + (channel < channels ? static_cast<int64_t>(channel) * kSize * kSize : 0), flipped);
  } else {
    return weights_of_block<T, kRowsLanes, true>(weight, channels, block_channel, 1, kSize * kSize, flipped);
  }
}

// Whether the next row is read before this one is computed, which takes more registers than floats leave.
template <class T>
inline constexpr bool kReadsAhead = sizeof(T) == 2;

// One row as it is stored: kReads columns from `first` on, those of them that exist.
template <class T, int kReads>
struct StoredRow {
  Vector<T, kRowsLanes> column[kReads];

  // `from` is where column `first` would be.
  __device__ __forceinline__ void read(const T* from, int step, int first, int width, bool inside) {
#pragma unroll
    for (int r = 0; r < kReads; ++r) {
      if (inside || static_cast<unsigned>(first + r) < static_cast<unsigned>(width))
        column[r] = load<T, kRowsLanes>(from + r * step);
    }
  }
  __device__ __forceinline__ void widen_to(Compute<T> (&to)[kReads][kRowsLanes]) const {
#pragma unroll
    for (int r = 0; r < kReads; ++r) {
      widen(column[r], to[r]);
      if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < kRowsLanes; ++i) device::keep(to[r][i]);
      }
    }
  }
};

template <class T>
__device__ __forceinline__ void multiply_add(const Compute<T> (&a)[kRowsLanes],
                                             const Compute<T> (&b)[kRowsLanes],
                                             Compute<T> (&sum)[kRowsLanes]) {
#pragma unroll
  for (int i = 0; i < kRowsLanes; ++i) sum[i] += a[i] * b[i];
}

// The sums of a walk: of kSlots rows of the result, of which row r has slot r % kSlots. The walk repeats
// after kPeriod rows of the input; `place` is a row's place in that period, known when the loop is unrolled.
template <class T, int kRun, int kSize, int kStep>
struct RowsSum {
  static constexpr int kReads = (kRun - 1) * kStep + kSize;
  static constexpr int kSlots = (kSize + kStep - 1) / kStep, kPeriod = kSlots * kStep;
  Compute<T> sum[kSlots][kRun][kRowsLanes];

  // Whether a row of the result begins with kernel row ky at this place, and its slot.
  static __device__ __forceinline__ constexpr bool meets(int place, int ky) {
    return (place - ky + kPeriod) % kStep == 0;
  }
  static __device__ __forceinline__ constexpr int slot(int place, int ky) {
    return (place - ky + kPeriod) / kStep % kSlots;
  }

  __device__ __forceinline__ void begin(int at, const Compute<T> (&bias)[kRowsLanes]) {
#pragma unroll
    for (int o = 0; o < kRun; ++o)
#pragma unroll
      for (int i = 0; i < kRowsLanes; ++i) sum[at][o][i] = bias[i];
  }

  // Products of columns that do not exist are left out: with a zero in their place, an infinite weight would
  // make NaN of them.
  template <bool kInside, class Weights>
  __device__ __forceinline__ void add(const Compute<T> (&in)[kReads][kRowsLanes], int place,
                                      const Weights& weights, int first, int width) {
#pragma unroll
    for (int ky = 0; ky < kSize; ++ky) {
      if (!meets(place, ky)) continue;
#pragma unroll
      for (int kx = 0; kx < kSize; ++kx) {
        Compute<T> weight[kRowsLanes];
        weights.read(ky * kSize + kx, weight);
#pragma unroll
        for (int o = 0; o < kRun; ++o) {
          const int r = o * kStep + kx;
          if (kInside || static_cast<unsigned>(first + r) < static_cast<unsigned>(width))
            multiply_add<T>(weight, in[r], sum[slot(place, ky)][o]);
        }
      }
    }
  }
};

// What a row's columns become on load. Those that do not exist are never added: whatever they become.
template <class C, int kReads, class Prologue>
__device__ __forceinline__ void apply(const Prologue& prologue, C (&in)[kReads][kRowsLanes]) {
#pragma unroll
  for (int r = 0; r < kReads; ++r) prologue.apply(in[r]);
}

// Calls store(sums) for `rows` rows of the result from (y, x) on, one after the other; `image` points at the
// vector's first channel.
template <class T, int kRun, int kSize, int kStep, class Weights, class Prologue, class Store>
__device__ __forceinline__ void depthwise_rows(const Geometry& g, const T* image, const Strides& s,
                                               const Weights& weights, const Compute<T> (&bias)[kRowsLanes],
                                               const Prologue& prologue, int y, int x, int rows,
                                               const Store& store) {
  using Sum = RowsSum<T, kRun, kSize, kStep>;
  constexpr bool kAhead = kReadsAhead<T>;
  const int first_row = y * kStep - g.padding[0], first = x * kStep - g.padding[1];
  const bool inside = first >= 0 && first + Sum::kReads <= g.width;
  const int reads = (rows - 1) * kStep + kSize, step = static_cast<int>(s.w);
  const T* from = image + first_row * s.h + first * s.w;
  StoredRow<T, Sum::kReads> next;
  bool next_exists = false;
  const auto read = [&](int t) {
    next_exists = t < reads && static_cast<unsigned>(first_row + t) < static_cast<unsigned>(g.height);
    if (next_exists) next.read(from, step, first, g.width, inside);
    from += s.h;
  };

  Sum sum;
#pragma unroll
  for (int at = 0; at < Sum::kSlots; ++at) sum.begin(at, bias);
  if (kAhead) read(0);
  for (int begin = 0; begin < reads; begin += Sum::kPeriod) {
#pragma unroll
    for (int place = 0; place < Sum::kPeriod; ++place) {
      const int t = begin + place;
      if (!kAhead) read(t);
      Compute<T> in[Sum::kReads][kRowsLanes];
      next.widen_to(in);
      const bool exists = next_exists;
      if (kAhead) read(t + 1);
      if (exists) {
        apply(prologue, in);
        if (inside)
          sum.template add<true>(in, place, weights, first, g.width);
        else
          sum.template add<false>(in, place, weights, first, g.width);
      }
      if (!Sum::meets(place, kSize - 1)) continue;
      const int at = Sum::slot(place, kSize - 1);
      if (t >= kSize - 1 && t < reads) store(sum.sum[at]);
      sum.begin(at, bias);
    }
  }
}

template <class T>
struct DepthwiseRowsArguments {
  const T* input;
  T* output;
  const T *weight, *bias;  // (channels, 1, kSize, kSize); (channels) or null
  Strides in, out;
  Geometry geometry;
  Bands bands;
  PrologueArguments<Compute<T>> prologue;
  int channels, first_channel;
  bool flipped;  // the kernel is read from its end
};

template <class T, int kSize, int kStep, bool kPrologue>
__global__ void __launch_bounds__(kRowsThreads, kSize == 7 ? 2 : 3)
    depthwise_rows_kernel(const DepthwiseRowsArguments<T> a) {
  constexpr int kRun = kRowsRun<kSize>;
  const int block_channel = a.first_channel + static_cast<int>(blockIdx.y * blockDim.x) * kRowsLanes;
  const auto weights = weights_for_rows<T, kSize>(a.weight, a.channels, block_channel, a.flipped);
  const int channel = block_channel + static_cast<int>(threadIdx.x) * kRowsLanes;
  const unsigned item = blockIdx.x * blockDim.y + threadIdx.y;
  if (channel >= a.channels || item >= a.bands.items) return;
  Compute<T> bias[kRowsLanes];
  load_bias(a.bias, channel, bias);
  const LoadedPrologueIf<T, kRowsLanes, kPrologue> prologue(a.prologue, channel);

  const BandPlace at = place_of<kRun>(item, a.bands, a.geometry.out_height);
  const int width = a.geometry.out_width - at.x, step = static_cast<int>(a.out.w);
  T* to = a.output + at.n * a.out.n + channel + at.y * a.out.h + at.x * a.out.w;
  const auto write = [&](const auto& sums) {
#pragma unroll
    for (int o = 0; o < kRun; ++o)
      if (o < width) store<T, kRowsLanes>(sums[o], to + o * step);
    to += a.out.h;
  };
  depthwise_rows<T, kRun, kSize, kStep>(a.geometry, a.input + at.n * a.in.n + channel, a.in, weights, bias,
                                        prologue, at.y, at.x, at.rows, write);
}

// --- Back to the input at stride 2 ---

inline constexpr int kRunOfInputGradient = 2;  // columns of grad_output

// Rows and columns of grad_output in the walk's own count, which begins where input row -padding does: row t
// of grad_output is part of the input's rows 2 t, ..., 2 t + kSize - 1 of that count.
template <class T, int kSize>
__global__ void __launch_bounds__(kRowsThreads, kSize == 3 ? 3 : 2)
    depthwise_rows_input_gradient_kernel(const DepthwiseRowsArguments<T> a) {
  constexpr int kRun = kRunOfInputGradient;
  constexpr int kBefore = (kSize - 1) / 2;  // rows of grad_output before t that are part of row 2 t
  constexpr int kReads = kBefore + kRun, kColumns = 2 * kRun;
  constexpr int kSlots = (kSize + 1) / 2 * 2, kPeriod = kSlots / 2;
  constexpr bool kAhead = kReadsAhead<T>;
  const Geometry& g = a.geometry;
  const int block_channel = a.first_channel + static_cast<int>(blockIdx.y * blockDim.x) * kRowsLanes;
  const auto weights = weights_for_rows<T, kSize>(a.weight, a.channels, block_channel, false);
  const int channel = block_channel + static_cast<int>(threadIdx.x) * kRowsLanes;
  const unsigned item = blockIdx.x * blockDim.y + threadIdx.y;
  if (channel >= a.channels || item >= a.bands.items) return;

  const BandPlace at = place_of<kRun>(item, a.bands, (g.height + g.padding[0] + 1) / 2);
  const int first = at.x - kBefore, first_row = at.y - kBefore;
  const bool inside = first >= 0 && first + kReads <= g.out_width;
  const int reads = at.rows + kBefore, step = static_cast<int>(a.in.w), to_step = static_cast<int>(a.out.w);
  const T* from = a.input + at.n * a.in.n + channel + first_row * a.in.h + first * a.in.w;
  int y = 2 * at.y - g.padding[0];
  const int x = 2 * at.x - g.padding[1];
  T* to = a.output + at.n * a.out.n + channel + y * a.out.h + x * a.out.w;
  StoredRow<T, kReads> next;
  bool next_exists = false;
  const auto read = [&](int t) {
    next_exists = t < reads && static_cast<unsigned>(first_row + t) < static_cast<unsigned>(g.out_height);
    if (next_exists) next.read(from, step, first, g.out_width, inside);
    from += a.in.h;
  };

  Compute<T> sum[kSlots][kColumns][kRowsLanes] = {};
  if (kAhead) read(0);
  for (int begin = 0; begin < reads; begin += kPeriod) {
#pragma unroll
    for (int place = 0; place < kPeriod; ++place) {
      const int t = begin + place;
      if (!kAhead) read(t);
      Compute<T> in[kReads][kRowsLanes];
      next.widen_to(in);
      const bool exists = next_exists;
      if (kAhead) read(t + 1);
      const auto add = [&](auto all) {
#pragma unroll
        for (int ky = 0; ky < kSize; ++ky)
#pragma unroll
          for (int kx = 0; kx < kSize; ++kx) {
            Compute<T> weight[kRowsLanes];
            weights.read(ky * kSize + kx, weight);
#pragma unroll
            for (int d = kx % 2; d < kColumns; d += 2) {
              const int r = kBefore + (d - kx) / 2;
              if (decltype(all)::value ||
                  static_cast<unsigned>(first + r) < static_cast<unsigned>(g.out_width))
                multiply_add<T>(weight, in[r], sum[(2 * place + ky) % kSlots][d]);
            }
          }
      };
      if (exists && inside)
        add(std::true_type{});
      else if (exists)
        add(std::false_type{});
      const bool stored = t >= kBefore && t < reads;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = (2 * place + half) % kSlots;
        const bool row_exists = stored && static_cast<unsigned>(y) < static_cast<unsigned>(g.height);
#pragma unroll
        for (int d = 0; d < kColumns; ++d) {
          if (row_exists && static_cast<unsigned>(x + d) < static_cast<unsigned>(g.width))
            store<T, kRowsLanes>(sum[slot][d], to + d * to_step);
#pragma unroll
          for (int i = 0; i < kRowsLanes; ++i) sum[slot][d][i] = 0;
        }
        if (stored) {
          ++y;
          to += a.out.h;
        }
      }
    }
  }
}

// --- Gradient of the weight ---

template <class T>
struct RowsWeightGradientArguments {
  const T* grad_output;
  const T* input;
  Compute<T>* partial;  // (splits, taps, channels)
  Strides grad_out, in;
  Geometry geometry;
  Bands bands;
  PrologueArguments<Compute<T>> prologue;
  int channels;
  unsigned items_of_split;
};

// A block sums over the items of one split for blockDim.x vectors of channels; grad_output's rows stay in
// registers while rows of the input meet them.
template <class T, int kSize, int kStep, bool kPrologue>
__global__ void __launch_bounds__(kRowsThreads, 3)
    depthwise_rows_weight_gradient_kernel(const RowsWeightGradientArguments<T> a) {
  constexpr int kRun = kRowsRun<kSize>;
  using Walk = RowsSum<T, kRun, kSize, kStep>;
  constexpr int kReads = Walk::kReads, kTaps = kSize * kSize;
  SEPCONV_SHARED(Compute<T>, shared);  // (blockDim.y, taps, channels of the block)
  const Geometry& g = a.geometry;
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * kRowsLanes;

  const SharedPrologueIf<T, kRowsLanes, kPrologue> prologue(
      a.prologue, static_cast<int>(blockIdx.x * blockDim.x) * kRowsLanes, a.channels, shared);
  Compute<T> sum[kTaps][kRowsLanes] = {};
  const unsigned begin = blockIdx.y * a.items_of_split;
  const unsigned end = begin + a.items_of_split < a.bands.items ? begin + a.items_of_split : a.bands.items;
  for (unsigned item = begin + threadIdx.y; item < end && channel < a.channels; item += blockDim.y) {
    const BandPlace at = place_of<kRun>(item, a.bands, g.out_height);
    const int first_row = at.y * kStep - g.padding[0], first = at.x * kStep - g.padding[1];
    const bool inside = first >= 0 && first + kReads <= g.width && at.x + kRun <= g.out_width;
    const int reads = (at.rows - 1) * kStep + kSize;
    const int step = static_cast<int>(a.in.w), grad_step = static_cast<int>(a.grad_out.w);
    const T* from = a.input + at.n * a.in.n + channel + first_row * a.in.h + first * a.in.w;
    const T* from_grad =
        a.grad_output + at.n * a.grad_out.n + channel + at.y * a.grad_out.h + at.x * a.grad_out.w;
    const auto exists = [&](int t) {
      return t < reads && static_cast<unsigned>(first_row + t) < static_cast<unsigned>(g.height);
    };
    StoredRow<T, kReads> next;
    StoredRow<T, kRun> next_grad;
    const auto read = [&](int t) {
      if (exists(t)) next.read(from, step, first, g.width, inside);
      from += a.in.h;
      if (t % kStep != 0) return;
      if (t <= (at.rows - 1) * kStep) next_grad.read(from_grad, grad_step, at.x, g.out_width, inside);
      from_grad += a.grad_out.h;
    };

    Compute<T> grad[Walk::kSlots][kRun][kRowsLanes];
    constexpr bool kAhead = kReadsAhead<T>;
    if (kAhead) read(0);
    for (int begin_row = 0; begin_row < reads; begin_row += Walk::kPeriod) {
#pragma unroll
      for (int place = 0; place < Walk::kPeriod; ++place) {
        const int t = begin_row + place;
        if (!kAhead) read(t);
        Compute<T> in[kReads][kRowsLanes];
        next.widen_to(in);
        if (place % kStep == 0) {
          auto& widened = grad[Walk::slot(place, 0)];
          next_grad.widen_to(widened);
        }
        if (kAhead) read(t + 1);
        if (!exists(t)) continue;
        apply(prologue, in);
        const auto meet = [&](auto all) {
#pragma unroll
          for (int ky = 0; ky < kSize; ++ky) {
            // Rows of grad_output that are not this item's meet nothing.
            if (!Walk::meets(place, ky) || t < ky || t - ky > (at.rows - 1) * kStep) continue;
#pragma unroll
            for (int kx = 0; kx < kSize; ++kx)
#pragma unroll
              for (int o = 0; o < kRun; ++o) {
                const int r = o * kStep + kx;
                if (decltype(all)::value ||
                    (static_cast<unsigned>(first + r) < static_cast<unsigned>(g.width) &&
                     at.x + o < g.out_width))
                  multiply_add<T>(grad[Walk::slot(place, ky)][o], in[r], sum[ky * kSize + kx]);
              }
          }
        };
        if (inside)
          meet(std::true_type{});
        else
          meet(std::false_type{});
      }
    }
  }

  const int block_channels = blockDim.x * kRowsLanes;
  if constexpr (kPrologue) device::synchronize();  // its memory is free now
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap)
    store<Compute<T>, kRowsLanes>(sum[tap],
                                  shared + (static_cast<int>(threadIdx.y) * kTaps + tap) * block_channels +
                                      static_cast<int>(threadIdx.x) * kRowsLanes);
  device::synchronize();
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  for (int i = thread; i < kTaps * block_channels; i += threads) {
    const int tap = i / block_channels, own = blockIdx.x * block_channels + i - tap * block_channels;
    Compute<T> total = 0;
    for (int y = 0; y < static_cast<int>(blockDim.y); ++y) total += shared[y * kTaps * block_channels + i];
    if (own < a.channels)
      a.partial[(static_cast<int64_t>(blockIdx.y) * kTaps + tap) * a.channels + own] = total;
  }
}

}  // namespace sepconv::cuda
