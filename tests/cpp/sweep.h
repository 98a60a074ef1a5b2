// Random calls against a naive reference in float64: all dtypes, instruction sets, layouts and stages, with
// any number of threads. Buffers are exactly as large as their tensors and every call has buffers of its own,
// so that a sanitizer build (-fsanitize=address,undefined or thread) sees a single element too many. What is
// called is an `Entry`: the core itself, or an interface above it.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/isa.h"
#include "core/plan.h"
#include "core/row_average.h"
#include "core/row_average_conv2d.h"
#include "core/separable_conv2d.h"

using namespace sepconv;

namespace {

struct Entry {
  void (*separable_conv2d)(const SeparableConv2dParams&, const Parallel&);
  void (*separable_conv2d_backward)(const SeparableConv2dBackwardParams&, const Parallel&);
  void (*row_average)(const RowAverageParams&, const Parallel&);
  void (*row_average_backward)(const RowAverageParams&, const Parallel&);
  void (*row_average_conv2d)(const RowAverageConv2dParams&, const Parallel&);
  void (*row_average_conv2d_backward)(const RowAverageConv2dBackwardParams&, const Parallel&);
  int64_t (*packed_bytes)(const SeparableConv2dParams&);
  void (*pack)(const SeparableConv2dParams&, void*);
  // Whether it takes dense images only, of one layout in a call, and both convolutions of a separable one.
  bool plain;
};
Entry entry;
bool channels_last;  // of a plain entry's images

std::mt19937_64 generator;
int64_t pick(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator);
}
bool chance(double probability) {
  return std::bernoulli_distribution(probability)(generator);
}

// --- Storage ---------------------------------------------------------------------------------------------

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                    : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  if (exponent == 31) return mantissa == 0 ? (bits >> 15 ? -INFINITY : INFINITY) : NAN;
  return bits >> 15 ? -value : value;
}

double get(const void* data, int64_t at, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[at];
    case DType::kFloat64:
      return static_cast<const double*>(data)[at];
    case DType::kBFloat16:
      return std::bit_cast<float>(static_cast<uint32_t>(static_cast<const uint16_t*>(data)[at]) << 16);
    default:
      return half_to_float(static_cast<const uint16_t*>(data)[at]);
  }
}

// Of numbers that every dtype holds exactly: multiples of 1/8 up to 8, infinities and NaN.
void put(void* data, int64_t at, DType dtype, double value) {
  const float narrow = static_cast<float>(value);
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[at] = narrow;
      break;
    case DType::kFloat64:
      static_cast<double*>(data)[at] = value;
      break;
    case DType::kBFloat16:
      static_cast<uint16_t*>(data)[at] = static_cast<uint16_t>(std::bit_cast<uint32_t>(narrow) >> 16);
      break;
    default: {
      const uint32_t bits = std::bit_cast<uint32_t>(narrow);
      const uint32_t magnitude = std::isnan(narrow)   ? 0x7e00
                                 : std::isinf(narrow) ? 0x7c00
                                 : narrow == 0        ? 0
                                                      : ((bits >> 13 & 0x3ffff) - (112u << 10));
      static_cast<uint16_t*>(data)[at] = static_cast<uint16_t>((bits >> 16 & 0x8000) | magnitude);
    }
  }
}

// `count` elements, and a margin on both sides that nobody may write: sanitizers do not see masked stores.
// Their own builds have no margin. New memory is a pattern of ones (NaN in every dtype).
class Buffer {
 public:
  Buffer() = default;
  Buffer(int64_t count, DType dtype)
      : count_(count),
        dtype_(dtype),
        bytes_(static_cast<size_t>(count) * bytes_of(dtype)),
        data_(new char[bytes_ + 2 * kMargin]) {
    std::memset(data_.get(), 0xff, bytes_ + 2 * kMargin);
  }
  static Buffer random(int64_t count, DType dtype) {
    Buffer buffer(count, dtype);
    for (int64_t i = 0; i < count; ++i) put(buffer.data(), i, dtype, static_cast<double>(pick(-8, 8)) / 8);
    return buffer;
  }
  void* data() { return data_.get() + kMargin; }
  Buffer unwritten() const { return Buffer(count_, dtype_); }
  bool same_bits(const Buffer& other) const {
    return std::memcmp(data_.get() + kMargin, other.data_.get() + kMargin, bytes_) == 0;
  }
  double operator[](int64_t at) const { return get(data_.get() + kMargin, at, dtype_); }
  int64_t size() const { return count_; }
  bool margin_is_intact() const {
    const auto untouched = [](char byte) { return byte == static_cast<char>(0xff); };
    return std::all_of(data_.get(), data_.get() + kMargin, untouched) &&
           std::all_of(data_.get() + kMargin + bytes_, data_.get() + 2 * kMargin + bytes_, untouched);
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kMargin = 0;
#else
  static constexpr size_t kMargin = 128;
#endif
  int64_t count_ = 0;
  DType dtype_ = DType::kFloat32;
  size_t bytes_ = 0;
  std::unique_ptr<char[]> data_;
};

struct Sizes {
  int64_t n, c, h, w;
  int64_t count() const { return n * c * h * w; }
};

// An image in a random layout. Outputs may have gaps, inputs may also repeat elements (strides of zero).
struct Tensor {
  Image image;
  Buffer buffer;

  int64_t offset(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return n * image.stride_n + c * image.stride_c + h * image.stride_h + w * image.stride_w;
  }
  double at(int64_t n, int64_t c, int64_t h, int64_t w) const { return buffer[offset(n, c, h, w)]; }
};

Tensor make(Sizes s, DType dtype, bool input) {
  Tensor t;
  t.image = {nullptr, s.n, s.c, s.h, s.w, 0, 0, 0, 0};
  const int64_t sizes[4] = {s.n, s.c, s.h, s.w};
  int64_t* strides[4] = {&t.image.stride_n, &t.image.stride_c, &t.image.stride_h, &t.image.stride_w};
  std::vector<int> order = {0, 1, 2, 3};  // outermost first
  if (chance(0.4)) order = {0, 2, 3, 1};
  if (chance(0.2)) std::shuffle(order.begin(), order.end(), generator);
  if (entry.plain) order = channels_last ? std::vector<int>{0, 2, 3, 1} : std::vector<int>{0, 1, 2, 3};
  const bool gaps = !entry.plain && chance(0.3), repeats = !entry.plain && input && chance(0.2);
  int64_t stride = 1, last = 0;
  for (int i = 3; i >= 0; --i) {
    const int axis = order[static_cast<size_t>(i)];
    *strides[axis] = repeats && chance(0.4) ? 0 : stride;
    last += *strides[axis] * std::max<int64_t>(0, sizes[axis] - 1);
    stride = std::max<int64_t>(stride, *strides[axis] * sizes[axis]) + (gaps && chance(0.5) ? pick(1, 3) : 0);
    // Strides of axes with one element mean nothing.
    if (!entry.plain && sizes[axis] == 1 && chance(0.2)) *strides[axis] = pick(0, 100);
  }
  const int64_t count = s.count() == 0 ? 0 : last + 1;
  t.buffer = input ? Buffer::random(count, dtype) : Buffer(count, dtype);
  t.image.data = t.buffer.data();
  return t;
}

// --- The reference ---------------------------------------------------------------------------------------

double activation(double x, Activation kind) {
  switch (kind) {
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kRelu6:
      return std::clamp(x, 0.0, 6.0);
    case Activation::kHardSwish:
      return x * std::clamp(x + 3, 0.0, 6.0) / 6;
    default:
      return x;
  }
}

// One pass computes values; another, on absolute values and without activations, the sum of magnitudes that
// bounds their rounding errors.
struct Stage {
  Buffer scale, shift;
  Activation kind = Activation::kNone;
  bool wide = false;

  static Stage random(int64_t channels, DType dtype, bool affine) {
    Stage stage;
    stage.wide = chance(0.3);
    const DType type = !stage.wide ? dtype : dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    if (affine && chance(0.5)) stage.scale = Buffer::random(channels, type);
    if (chance(0.5)) stage.shift = Buffer::random(channels, type);
    if (affine) stage.kind = static_cast<Activation>(pick(0, 3));
    return stage;
  }
  // One that the backward takes; shifts up to 7, so that ReLU6 clamps on both sides.
  static Stage differentiable(int64_t channels, DType dtype) {
    Stage stage = random(channels, dtype, true);
    stage.kind = static_cast<Activation>(pick(0, 2));
    if (stage.kind == Activation::kRelu6 && stage.shift.size())
      for (int64_t c = 0; c < channels; ++c)
        if (chance(0.5))
          put(stage.shift.data(), c, stage.wide && dtype != DType::kFloat64 ? DType::kFloat32 : dtype,
              stage.shift[c] + 6);
    return stage;
  }
  ChannelStage params() {
    return {scale.size() ? scale.data() : nullptr, shift.size() ? shift.data() : nullptr, kind, wide};
  }
  // The derivative of the activation at affine(x).
  double slope(double x, int64_t c) const {
    const double at = affine(x, c, false);
    return kind == Activation::kNone ? 1 : at > 0 && (kind == Activation::kRelu || at < 6);
  }
  double affine(double x, int64_t c, bool magnitude) const {
    const double a = scale.size() ? scale[c] : 1, b = shift.size() ? shift[c] : 0;
    return magnitude ? std::abs(a) * x + std::abs(b) : a * x + b;
  }
  double operator()(double x, int64_t c, bool magnitude) const {
    return magnitude ? affine(x, c, true) : activation(affine(x, c, false), kind);
  }
};

// Dense float64 images, (n, c, h, w).
struct Values {
  Sizes s{};
  std::vector<double> data;
  explicit Values(Sizes sizes) : s(sizes), data(static_cast<size_t>(sizes.count())) {}
  Values(const Tensor& t, bool magnitude) : Values(Sizes{t.image.n, t.image.c, t.image.h, t.image.w}) {
    for (int64_t n = 0; n < s.n; ++n)
      for (int64_t c = 0; c < s.c; ++c)
        for (int64_t h = 0; h < s.h; ++h)
          for (int64_t w = 0; w < s.w; ++w)
            (*this)(n, c, h, w) = magnitude ? std::abs(t.at(n, c, h, w)) : t.at(n, c, h, w);
  }
  double& operator()(int64_t n, int64_t c, int64_t h, int64_t w) {
    return data[static_cast<size_t>(((n * s.c + c) * s.h + h) * s.w + w)];
  }
  double operator()(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return const_cast<Values&>(*this)(n, c, h, w);
  }
};

double weight(const Buffer& weights, int64_t at, bool magnitude) {
  return magnitude ? std::abs(weights[at]) : weights[at];
}

// body(output row, input row, weight of the input row in the mean)
template <class Body>
void for_each_averaged(int64_t height, int64_t stride, Body&& body) {
  for (int64_t r = 0; r < row_average_size(height, stride); ++r) {
    int64_t count = 0;
    for (int64_t d = -1; d <= 1; ++d) count += r * stride + d >= 0 && r * stride + d < height;
    for (int64_t d = -1; d <= 1; ++d)
      if (r * stride + d >= 0 && r * stride + d < height)
        body(r, r * stride + d, 1.0 / static_cast<double>(count));
  }
}

Values averaged(const Values& x, int64_t stride) {
  if (stride == 0) return x;
  Values y({x.s.n, x.s.c, row_average_size(x.s.h, stride), x.s.w});
  for_each_averaged(x.s.h, stride, [&](int64_t r, int64_t from, double part) {
    for (int64_t n = 0; n < x.s.n; ++n)
      for (int64_t c = 0; c < x.s.c; ++c)
        for (int64_t w = 0; w < x.s.w; ++w) y(n, c, r, w) += part * x(n, c, from, w);
  });
  return y;
}

Values averaged_backward(const Values& g, int64_t height, int64_t stride) {
  if (stride == 0) return g;
  Values y({g.s.n, g.s.c, height, g.s.w});
  for_each_averaged(height, stride, [&](int64_t r, int64_t from, double part) {
    for (int64_t n = 0; n < g.s.n; ++n)
      for (int64_t c = 0; c < g.s.c; ++c)
        for (int64_t w = 0; w < g.s.w; ++w) y(n, c, from, w) += part * g(n, c, r, w);
  });
  return y;
}

// body(oh, ow, tap, ih, iw) for all contacts of outputs and inputs.
template <class Body>
void for_each_contact(const Window& v, int64_t out_h, int64_t out_w, int64_t in_h, int64_t in_w,
                      Body&& body) {
  for (int64_t oh = 0; oh < out_h; ++oh)
    for (int64_t ow = 0; ow < out_w; ++ow)
      for (int64_t kh = 0; kh < v.kernel[0]; ++kh)
        for (int64_t kw = 0; kw < v.kernel[1]; ++kw) {
          const int64_t ih = oh * v.stride[0] - v.padding[0] + kh * v.dilation[0],
                        iw = ow * v.stride[1] - v.padding[1] + kw * v.dilation[1];
          if (ih >= 0 && ih < in_h && iw >= 0 && iw < in_w) body(oh, ow, kh * v.kernel[1] + kw, ih, iw);
        }
}

// --- Comparison ------------------------------------------------------------------------------------------

double unit(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-52;
    case DType::kFloat32:
      return 0x1p-23;
    case DType::kBFloat16:
      return 0x1p-7;
    default:
      return 0x1p-10;
  }
}

std::string context;  // the case, printed with the first failure

// Of the bits of all reference values so far. They are the same on every machine that draws random numbers as
// libstdc++ does, as the tests are compiled without contraction to multiply-adds: an emulator that computes
// wrongly, reference and kernel alike, is noticed.
uint64_t fingerprint = 0xcbf29ce484222325;
void take_fingerprint(double value) {
  fingerprint = std::rotl(fingerprint ^ std::bit_cast<uint64_t>(value), 29) * 0x100000001b3;
}

// Where the CPU multiplies bfloat16 itself, the values between the two convolutions are rounded to it.
bool rounds_between(DType dtype) {
  const Isa isa = current_isa();
  return dtype == DType::kBFloat16 && (isa == Isa::kAvx512Bf16 || isa == Isa::kAmx || isa == Isa::kNeonBf16);
}

// `magnitude` is the sum of |x||w|; `rounded` says that its terms were rounded to the dtype once more, to
// nearest.
void require_near(const char* what, int64_t at, double actual, double expected, double magnitude, DType dtype,
                  bool rounded) {
  take_fingerprint(expected), take_fingerprint(magnitude);
  const double compute = dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
  // Hard-swish has a slope of up to 1.5, and stages multiply errors: hence 16 and not 4.
  const double bound = 16 * compute * magnitude + (rounded ? 1.5 * unit(dtype) / 2 * magnitude : 0) +
                       (compute < unit(dtype) ? unit(dtype) * std::abs(expected) : 0) + 1e-7 * unit(dtype) +
                       (dtype == DType::kFloat16 ? 0x1p-25 : 0);  // half of its smallest number
  if (std::abs(actual - expected) <= bound) return;
  std::printf("%s\n  %s, element %ld: got %.9g, expected %.9g, bound %.3g\n", context.c_str(), what,
              static_cast<long>(at), actual, expected, bound);
  std::exit(1);
}

void require(bool holds, const char* what, const char* problem) {
  if (holds) return;
  std::printf("%s\n  %s: %s\n", context.c_str(), what, problem);
  std::exit(1);
}

void require_near(const char* what, const Tensor& actual, const Values& expected, const Values& magnitude,
                  DType dtype, bool rounded = false) {
  int64_t at = 0;
  std::vector<bool> belongs(static_cast<size_t>(actual.buffer.size()));
  for (int64_t n = 0; n < expected.s.n; ++n)
    for (int64_t c = 0; c < expected.s.c; ++c)
      for (int64_t h = 0; h < expected.s.h; ++h)
        for (int64_t w = 0; w < expected.s.w; ++w, ++at) {
          belongs[static_cast<size_t>(actual.offset(n, c, h, w))] = true;
          require_near(what, at, actual.at(n, c, h, w), expected(n, c, h, w), magnitude(n, c, h, w), dtype,
                       rounded);
        }
  for (int64_t i = 0; i < actual.buffer.size(); ++i)
    require(belongs[static_cast<size_t>(i)] || std::isnan(actual.buffer[i]), what,
            "written between the elements");
  require(actual.buffer.margin_is_intact(), what, "written outside of the tensor");
}

void require_near(const char* what, const Buffer& actual, const std::vector<double>& expected,
                  const std::vector<double>& magnitude, DType dtype, bool rounded = false) {
  for (size_t i = 0; i < expected.size(); ++i)
    require_near(what, static_cast<int64_t>(i), actual[static_cast<int64_t>(i)], expected[i], magnitude[i],
                 dtype, rounded);
  require(actual.margin_is_intact(), what, "written outside of the tensor");
}

void require_same_bits(const char* what, const Buffer& first, const Buffer& second) {
  require(first.same_bits(second), what, "other bits with another number of threads");
}

// --- Cases -----------------------------------------------------------------------------------------------

// Threads of their own, one for each part of the range: what a sanitizer can see race.
template <int kThreads>
Parallel threads() {
  return {kThreads, [](int64_t count, RangeBody body) {
            std::vector<std::thread> workers;
            for (int t = 0; t < kThreads; ++t) {
              const int64_t begin = count * t / kThreads, end = count * (t + 1) / kThreads;
              if (begin < end) workers.emplace_back([=] { body(begin, end); });
            }
            for (std::thread& worker : workers) worker.join();
          }};
}

Parallel random_parallel() {
  switch (pick(0, 4)) {
    case 0:
      return threads<2>();
    case 1:
      return threads<3>();
    case 2:
      return threads<4>();
    default:
      return {};
  }
}

int64_t random_channels() {
  return chance(0.1) ? pick(60, 140) : chance(0.5) ? pick(1, 9) : pick(10, 40);
}

// The call that gave `first` once more, with another number of threads, into a tensor of the same layout.
template <class Call>
void require_same_bits(const char* what, const Tensor& first, Call&& call) {
  const Parallel others[] = {{}, threads<2>(), threads<3>(), threads<4>()};
  Tensor again{first.image, first.buffer.unwritten()};
  again.image.data = again.buffer.data();
  call(again, others[pick(0, 3)]);
  require_same_bits(what, first.buffer, again.buffer);
}

struct Geometry {
  Window window;
  int64_t in_h, in_w;
};

// Of an input with in_h rows after `row_stride` (0: no average). A window of one tap has no padding.
Geometry random_geometry(int64_t row_stride, int64_t most_taps = 7) {
  while (true) {
    Geometry g{{}, pick(1, 14), chance(0.1) ? pick(30, 150) : pick(1, 20)};
    for (int axis = 0; axis < 2; ++axis) {
      g.window.kernel[axis] = most_taps >= 3 && chance(0.3) ? 3 : pick(1, most_taps);
      g.window.stride[axis] = chance(0.5) ? 1 : pick(1, 4);
      g.window.padding[axis] = chance(0.5) ? g.window.kernel[axis] / 2 : most_taps == 1 ? 0 : pick(0, 5);
      g.window.dilation[axis] = chance(0.6) ? 1 : pick(1, 4);
    }
    const int64_t rows = row_stride == 0 ? g.in_h : row_average_size(g.in_h, row_stride);
    const int64_t input[2] = {rows, g.in_w};
    bool fits = true;
    for (int axis = 0; axis < 2; ++axis)
      fits &=
          input[axis] + 2 * g.window.padding[axis] > g.window.dilation[axis] * (g.window.kernel[axis] - 1);
    if (fits) return g;
  }
}

void describe(const char* op, DType dtype, const Image& x, const Image& y, const Window& v,
              int64_t multiplier, int64_t row_stride, const Parallel& parallel) {
  char text[512];
  std::snprintf(
      text, sizeof text,
      "%s on %s, dtype %d, %d threads: input %ldx%ldx%ldx%ld strides %ld,%ld,%ld,%ld output %ldx%ldx%ldx%ld "
      "strides %ld,%ld,%ld,%ld kernel %ldx%ld stride %ldx%ld padding %ldx%ld dilation %ldx%ld multiplier %ld "
      "row stride %ld",
      op, name_of(current_isa()), static_cast<int>(dtype), parallel.threads, x.n, x.c, x.h, x.w, x.stride_n,
      x.stride_c, x.stride_h, x.stride_w, y.n, y.c, y.h, y.w, y.stride_n, y.stride_c, y.stride_h, y.stride_w,
      v.kernel[0], v.kernel[1], v.stride[0], v.stride[1], v.padding[0], v.padding[1], v.dilation[0],
      v.dilation[1], multiplier, row_stride);
  context = text;
}

// Both convolutions, or one of them alone.
struct SeparableCase {
  DType dtype;
  bool has_depthwise, has_pointwise;
  int64_t row_stride;
  Geometry g;
  int64_t n, channels, m, depth, out, taps, rows, out_h, out_w;
  Tensor x;
  Buffer dw, pw;
  Stage prologue, middle, epilogue;

  SeparableCase(DType type, bool backward) : dtype(type) {
    has_depthwise = entry.plain || chance(0.8);
    has_pointwise = entry.plain || !has_depthwise || chance(0.8);
    row_stride = !backward && chance(0.3) ? pick(1, 3) : 0;
    g = random_geometry(row_stride, has_depthwise ? 7 : 1);
    n = pick(0, 12) == 0 ? 0 : chance(0.1) ? pick(5, 20) : pick(1, 4);
    channels = random_channels();
    m = !has_depthwise || chance(0.6) ? 1 : pick(2, 4), depth = channels * m;
    out = has_pointwise ? random_channels() : depth;
    taps = g.window.kernel[0] * g.window.kernel[1];
    rows = row_stride == 0 ? g.in_h : row_average_size(g.in_h, row_stride);
    out_h = output_size(rows, g.window, 0), out_w = output_size(g.in_w, g.window, 1);
    x = make({n, channels, g.in_h, g.in_w}, dtype, true);
    dw = Buffer::random(depth * taps, dtype), pw = Buffer::random(out * depth, dtype);
    if (!has_depthwise)  // the reference multiplies by it
      for (int64_t c = 0; c < depth; ++c) put(dw.data(), c, dtype, 1);
    prologue = backward ? Stage::differentiable(channels, dtype) : Stage::random(channels, dtype, true);
    middle = Stage::random(depth, dtype, !backward);
    if (has_pointwise) epilogue = Stage::random(out, dtype, !backward);
  }
  SeparableCase(const SeparableCase&) = delete;

  Sizes output() const { return {n, out, out_h, out_w}; }
  SeparableConv2dParams params(const Tensor& y) {
    SeparableConv2dParams p;
    p.dtype = dtype, p.window = g.window, p.depth_multiplier = m, p.input = x.image, p.output = y.image;
    if (has_depthwise) p.depthwise_weight = dw.data();
    if (has_pointwise) p.pointwise_weight = pw.data();
    static_cast<ChannelStage&>(p.prologue) = prologue.params();
    p.prologue.row_average_stride = row_stride;
    p.middle = middle.params();
    static_cast<ChannelStage&>(p.epilogue) = epilogue.params();
    return p;
  }
  void describe(const char* op, const Tensor& y, const Parallel& parallel) const {
    ::describe(op, dtype, x.image, y.image, g.window, m, row_stride, parallel);
    context += std::string(has_depthwise ? "" : ", no depthwise") + (has_pointwise ? "" : ", no pointwise") +
               ", activations " + std::to_string(static_cast<int>(prologue.kind)) + " " +
               std::to_string(static_cast<int>(middle.kind)) + " " +
               std::to_string(static_cast<int>(epilogue.kind));
  }

  // The input of the depthwise.
  Values staged(bool magnitude) const {
    Values a = averaged(Values(x, magnitude), row_stride);
    for (int64_t b = 0; b < n; ++b)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t h = 0; h < rows; ++h)
          for (int64_t w = 0; w < g.in_w; ++w) a(b, c, h, w) = prologue(a(b, c, h, w), c, magnitude);
    return a;
  }
  // The depthwise output after its stage.
  Values depthwise(bool magnitude) const {
    const Values a = staged(magnitude);
    Values z({n, depth, out_h, out_w});
    for (int64_t b = 0; b < n; ++b)
      for (int64_t c = 0; c < depth; ++c) {
        for_each_contact(g.window, out_h, out_w, rows, g.in_w,
                         [&](int64_t oh, int64_t ow, int64_t t, int64_t ih, int64_t iw) {
                           z(b, c, oh, ow) += weight(dw, c * taps + t, magnitude) * a(b, c / m, ih, iw);
                         });
        for (int64_t h = 0; h < out_h; ++h)
          for (int64_t w = 0; w < out_w; ++w) z(b, c, h, w) = middle(z(b, c, h, w), c, magnitude);
      }
    return z;
  }
};

void sweep_separable_conv2d(DType dtype) {
  SeparableCase s(dtype, false);
  const int64_t n = s.n, out = s.out, out_h = s.out_h, out_w = s.out_w;
  Tensor y = make(s.output(), dtype, false), residual = make(s.output(), dtype, true);
  const bool has_residual = s.has_pointwise && chance(0.4);
  const Parallel parallel = random_parallel();
  s.describe("separable_conv2d", y, parallel);

  SeparableConv2dParams p = s.params(y);
  if (has_residual) p.epilogue.residual = residual.image;
  std::unique_ptr<char, decltype(&std::free)> packed(nullptr, std::free);
  if (s.has_pointwise && chance(0.3)) {
    const auto bytes = static_cast<size_t>(entry.packed_bytes(p));
    packed.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    entry.pack(p, packed.get());
    p.packed_weights = packed.get();
    p.depthwise_weight = p.pointwise_weight = nullptr;
  }
  entry.separable_conv2d(p, parallel);
  require_same_bits("output", y, [&](Tensor& again, const Parallel& other) {
    p.output = again.image;
    entry.separable_conv2d(p, other);
  });

  const auto reference = [&](bool magnitude) {
    const Values z = s.depthwise(magnitude);
    if (!s.has_pointwise) return z;
    Values result({n, out, out_h, out_w});
    for (int64_t b = 0; b < n; ++b)
      for (int64_t o = 0; o < out; ++o)
        for (int64_t h = 0; h < out_h; ++h)
          for (int64_t w = 0; w < out_w; ++w) {
            double sum = 0;
            for (int64_t c = 0; c < s.depth; ++c)
              sum += weight(s.pw, o * s.depth + c, magnitude) * z(b, c, h, w);
            sum = s.epilogue.affine(sum, o, magnitude);
            if (has_residual) sum += magnitude ? std::abs(residual.at(b, o, h, w)) : residual.at(b, o, h, w);
            result(b, o, h, w) = magnitude ? sum : activation(sum, s.epilogue.kind);
          }
    return result;
  };
  require_near("output", y, reference(false), reference(true), dtype,
               s.has_pointwise && rounds_between(dtype));
}

struct SeparableGradients {
  Values x;
  std::vector<double> dw, pw, db, pb;
};

SeparableGradients reference_gradients(const SeparableCase& s, const Tensor& y, bool magnitude) {
  const Values z = s.depthwise(magnitude), a = s.staged(magnitude), gy(y, magnitude);
  const auto zeros = [](int64_t count) { return std::vector<double>(static_cast<size_t>(count)); };
  SeparableGradients r{Values(a.s), zeros(s.depth * s.taps), zeros(s.out * s.depth), zeros(s.depth),
                       zeros(s.out)};
  for (int64_t b = 0; b < s.n; ++b) {
    for (int64_t o = 0; o < s.out; ++o)
      for (int64_t h = 0; h < s.out_h; ++h)
        for (int64_t w = 0; w < s.out_w; ++w) {
          r.pb[static_cast<size_t>(o)] += gy(b, o, h, w);
          for (int64_t c = 0; s.has_pointwise && c < s.depth; ++c)
            r.pw[static_cast<size_t>(o * s.depth + c)] += gy(b, o, h, w) * z(b, c, h, w);
        }
    for (int64_t c = 0; c < s.depth; ++c) {
      Values gz({1, 1, s.out_h, s.out_w});
      for (int64_t h = 0; h < s.out_h; ++h)
        for (int64_t w = 0; w < s.out_w; ++w) {
          for (int64_t o = 0; s.has_pointwise && o < s.out; ++o)
            gz(0, 0, h, w) += weight(s.pw, o * s.depth + c, magnitude) * gy(b, o, h, w);
          if (!s.has_pointwise) gz(0, 0, h, w) = gy(b, c, h, w);
          r.db[static_cast<size_t>(c)] += gz(0, 0, h, w);
        }
      for_each_contact(
          s.g.window, s.out_h, s.out_w, s.rows, s.g.in_w,
          [&](int64_t oh, int64_t ow, int64_t t, int64_t ih, int64_t iw) {
            r.x(b, c / s.m, ih, iw) += weight(s.dw, c * s.taps + t, magnitude) * gz(0, 0, oh, ow);
            r.dw[static_cast<size_t>(c * s.taps + t)] += a(b, c / s.m, ih, iw) * gz(0, 0, oh, ow);
          });
    }
    for (int64_t c = 0; c < s.channels; ++c)
      for (int64_t h = 0; h < s.rows; ++h)
        for (int64_t w = 0; w < s.g.in_w; ++w) r.x(b, c, h, w) *= s.prologue.slope(s.x.at(b, c, h, w), c);
  }
  return r;
}

// The sums over g, the gradient of the input, and over g times the input's distance from its mean.
std::vector<double> sums_for_batch_norm(const SeparableCase& s, const Values& g, const Buffer& mean,
                                        bool magnitude) {
  std::vector<double> sums(static_cast<size_t>(2 * s.channels));
  for (int64_t b = 0; b < s.n; ++b)
    for (int64_t c = 0; c < s.channels; ++c)
      for (int64_t h = 0; h < s.g.in_h; ++h)
        for (int64_t w = 0; w < s.g.in_w; ++w) {
          const double distance = s.x.at(b, c, h, w) - mean[c];
          sums[static_cast<size_t>(c)] += g(b, c, h, w);
          sums[static_cast<size_t>(s.channels + c)] +=
              g(b, c, h, w) * (magnitude ? std::abs(distance) : distance);
        }
  return sums;
}

void sweep_separable_conv2d_backward(DType dtype) {
  SeparableCase s(dtype, true);
  Tensor y = make(s.output(), dtype, true);
  const Parallel parallel = random_parallel();
  s.describe("separable_conv2d_backward", y, parallel);

  Tensor gx = make({s.n, s.channels, s.g.in_h, s.g.in_w}, dtype, false);
  struct Vectors {
    Buffer dw, pw, db, pb, sums;
    Vectors(const SeparableCase& s, DType dtype)
        : dw(s.depth * s.taps, dtype),
          pw(s.out * s.depth, dtype),
          db(s.depth, dtype),
          pb(s.out, dtype),
          sums(2 * s.channels, DType::kFloat64) {}
  } of(s, dtype);
  const bool wants[5] = {chance(0.7), s.has_depthwise && chance(0.7), s.has_pointwise && chance(0.7),
                         chance(0.7), s.has_pointwise && chance(0.7)};
  const bool sums_up = !entry.plain && wants[0] && chance(0.3);
  const DType wide = dtype == DType::kFloat64 ? dtype : DType::kFloat32;
  Buffer mean = sums_up ? Buffer::random(s.channels, wide) : Buffer();
  const auto run = [&](Tensor& grad_input, Vectors& to, const Parallel& on) {
    SeparableConv2dBackwardParams q;
    q.forward = s.params(y);
    if (wants[0]) q.grad_input = grad_input.image;
    if (wants[1]) q.grad_depthwise_weight = to.dw.data();
    if (wants[2]) q.grad_pointwise_weight = to.pw.data();
    if (wants[3]) q.grad_depthwise_bias = to.db.data();
    if (wants[4]) q.grad_pointwise_bias = to.pb.data();
    if (sums_up) q.prologue_mean = mean.data(), q.gradient_sums = static_cast<double*>(to.sums.data());
    entry.separable_conv2d_backward(q, on);
  };
  run(gx, of, parallel);
  require_same_bits("grad_input", gx, [&](Tensor& again, const Parallel& other) {
    Vectors of_again(s, dtype);
    run(again, of_again, other);
    require_same_bits("grad_depthwise_weight", of.dw, of_again.dw);
    require_same_bits("grad_pointwise_weight", of.pw, of_again.pw);
    require_same_bits("grad_depthwise_bias", of.db, of_again.db);
    require_same_bits("grad_pointwise_bias", of.pb, of_again.pb);
    require_same_bits("gradient_sums", of.sums, of_again.sums);
  });

  const SeparableGradients exact = reference_gradients(s, y, false),
                           magnitude = reference_gradients(s, y, true);
  if (wants[0]) require_near("grad_input", gx, exact.x, magnitude.x, dtype);
  if (wants[1]) require_near("grad_depthwise_weight", of.dw, exact.dw, magnitude.dw, dtype);
  if (wants[2])
    require_near("grad_pointwise_weight", of.pw, exact.pw, magnitude.pw, dtype, rounds_between(dtype));
  if (wants[3]) require_near("grad_depthwise_bias", of.db, exact.db, magnitude.db, dtype);
  if (wants[4]) require_near("grad_pointwise_bias", of.pb, exact.pb, magnitude.pb, dtype);
  if (sums_up)
    require_near("gradient_sums", of.sums, sums_for_batch_norm(s, exact.x, mean, false),
                 sums_for_batch_norm(s, magnitude.x, mean, true), wide);
}

// What a prologue's activation lets through where its derivative is a matter of convention.
void check_derivative_at_special_values(DType dtype, Activation kind) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double values[] = {0, 1, -1, 6, 5, 7, kInfinity, -kInfinity, std::nan("")};
  const double relu[] = {0, 1, 0, 1, 1, 1, 1, 0, 1}, relu6[] = {0, 1, 0, 0, 1, 0, 0, 0, 1};
  const auto count = static_cast<int64_t>(std::size(values));
  Buffer x(count, dtype), gy(count, dtype), gx(count, dtype), one(1, dtype);
  put(one.data(), 0, dtype, 1);
  for (int64_t i = 0; i < count; ++i) put(x.data(), i, dtype, values[i]), put(gy.data(), i, dtype, 1);
  const auto image = [&](Buffer& buffer) { return Image{buffer.data(), 1, 1, 1, count, count, 1, count, 1}; };
  SeparableConv2dBackwardParams q;
  q.forward.dtype = dtype, q.forward.input = image(x), q.forward.output = image(gy);
  q.forward.depthwise_weight = one.data(), q.forward.prologue.activation = kind;
  q.grad_input = image(gx);
  context = std::string("derivatives of activation ") + std::to_string(static_cast<int>(kind)) + " on " +
            name_of(current_isa()) + ", dtype " + std::to_string(static_cast<int>(dtype));
  entry.separable_conv2d_backward(q, {});
  for (int64_t i = 0; i < count; ++i)
    require(gx[i] == (kind == Activation::kRelu ? relu : relu6)[i], "grad_input",
            ("wrong at " + std::to_string(values[i])).c_str());
}

// A grad_input of whole lines goes past the caches where it is large for them, with the same bits.
void check_streamed_gradient(DType dtype) {
  constexpr int64_t kImages = 2, kChannels = 64, kHeight = 14, kWidth = 20, kLineBytes = 64;
  constexpr int64_t kCount = kImages * kHeight * kWidth * kChannels;
  Buffer x = Buffer::random(kCount, dtype), gy = Buffer::random(kCount, dtype),
         depthwise = Buffer::random(9 * kChannels, dtype),
         pointwise = Buffer::random(kChannels * kChannels, dtype);
  context = std::string("grad_input past the caches on ") + name_of(current_isa()) + ", dtype " +
            std::to_string(static_cast<int>(dtype));
  const auto image = [](void* data) {
    return Image{
        data,     kImages, kChannels, kHeight, kWidth, kHeight * kWidth * kChannels, 1, kWidth * kChannels,
        kChannels};
  };
  const auto gradient = [&](int64_t last_level) {
    pretend_cache_sizes({1 << 20, last_level});
    const int64_t bytes = kCount * bytes_of(dtype);
    std::vector<char> memory(static_cast<size_t>(bytes + kLineBytes), static_cast<char>(0xff));
    char* line =
        memory.data() + (kLineBytes - reinterpret_cast<uintptr_t>(memory.data()) % kLineBytes) % kLineBytes;
    SeparableConv2dBackwardParams q;
    q.forward.dtype = dtype, q.forward.input = image(x.data()), q.forward.output = image(gy.data());
    q.forward.window = {{3, 3}, {1, 1}, {1, 1}, {1, 1}};
    q.forward.depthwise_weight = depthwise.data(), q.forward.pointwise_weight = pointwise.data();
    q.grad_input = image(line);
    entry.separable_conv2d_backward(q, threads<2>());
    return std::vector<char>(line, line + bytes);
  };
  require(gradient(0) == gradient(int64_t{1} << 40), "grad_input", "differs from what stays in the caches");
}

void sweep_row_average(DType dtype) {
  const int64_t n = pick(0, 3), channels = random_channels(), height = pick(1, 14), width = pick(1, 40),
                stride = pick(1, 5), rows = row_average_size(height, stride);
  const bool backward = chance(0.5);
  const Sizes whole{n, channels, height, width}, reduced{n, channels, rows, width};
  Tensor x = make(backward ? reduced : whole, dtype, true),
         y = make(backward ? whole : reduced, dtype, false);
  const Parallel parallel = random_parallel();
  describe(backward ? "row_average_backward" : "row_average", dtype, x.image, y.image, {}, 1, stride,
           parallel);
  const RowAverageParams p{dtype, stride, x.image, y.image};
  (backward ? entry.row_average_backward : entry.row_average)(p, parallel);
  const auto reference = [&](bool magnitude) {
    const Values in(x, magnitude);
    return backward ? averaged_backward(in, height, stride) : averaged(in, stride);
  };
  require_near("result", y, reference(false), reference(true), dtype);
}

void sweep_row_average_conv2d(DType dtype) {
  const bool backward = chance(0.5);
  const int64_t row_stride = pick(0, 3);
  const Geometry g = random_geometry(row_stride);
  const Window& v = g.window;
  const int64_t n = pick(0, 12) == 0 ? 0 : pick(1, 4), channels = pick(1, 20), out = random_channels(),
                taps = v.kernel[0] * v.kernel[1],
                rows = row_stride == 0 ? g.in_h : row_average_size(g.in_h, row_stride),
                out_h = output_size(rows, v, 0), out_w = output_size(g.in_w, v, 1), depth = channels * taps;
  Tensor x = make({n, channels, g.in_h, g.in_w}, dtype, true),
         y = make({n, out, out_h, out_w}, dtype, backward);
  Buffer weights = Buffer::random(out * depth, dtype);
  Stage prologue = backward ? Stage{} : Stage::random(channels, dtype, true);
  Stage epilogue = Stage::random(out, dtype, !backward);
  Tensor residual = make({n, out, out_h, out_w}, dtype, true);
  const bool has_residual = !backward && chance(0.4);
  const Parallel parallel = random_parallel();
  describe(backward ? "row_average_conv2d_backward" : "row_average_conv2d", dtype, x.image, y.image, v, 1,
           row_stride, parallel);

  RowAverageConv2dParams p;
  p.dtype = dtype, p.window = v, p.input = x.image, p.output = y.image, p.weight = weights.data();
  static_cast<ChannelStage&>(p.prologue) = prologue.params();
  p.prologue.row_average_stride = row_stride;
  static_cast<ChannelStage&>(p.epilogue) = epilogue.params();
  if (has_residual) p.epilogue.residual = residual.image;

  const auto staged = [&](bool magnitude) {
    Values a = averaged(Values(x, magnitude), row_stride);
    for (int64_t b = 0; b < n; ++b)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t h = 0; h < rows; ++h)
          for (int64_t w = 0; w < g.in_w; ++w) a(b, c, h, w) = prologue(a(b, c, h, w), c, magnitude);
    return a;
  };

  if (!backward) {
    entry.row_average_conv2d(p, parallel);
    const auto reference = [&](bool magnitude) {
      const Values a = staged(magnitude);
      Values result({n, out, out_h, out_w});
      for (int64_t b = 0; b < n; ++b)
        for (int64_t o = 0; o < out; ++o) {
          for_each_contact(
              v, out_h, out_w, rows, g.in_w, [&](int64_t oh, int64_t ow, int64_t t, int64_t ih, int64_t iw) {
                for (int64_t c = 0; c < channels; ++c)
                  result(b, o, oh, ow) +=
                      weight(weights, (o * channels + c) * taps + t, magnitude) * a(b, c, ih, iw);
              });
          for (int64_t h = 0; h < out_h; ++h)
            for (int64_t w = 0; w < out_w; ++w) {
              double sum = epilogue.affine(result(b, o, h, w), o, magnitude);
              if (has_residual)
                sum += magnitude ? std::abs(residual.at(b, o, h, w)) : residual.at(b, o, h, w);
              result(b, o, h, w) = magnitude ? sum : activation(sum, epilogue.kind);
            }
        }
      return result;
    };
    require_near("output", y, reference(false), reference(true), dtype);
    return;
  }

  Tensor gx = make({n, channels, g.in_h, g.in_w}, dtype, false);
  Buffer gw(out * depth, dtype), gb(out, dtype);
  const bool wants[3] = {chance(0.7), chance(0.7), chance(0.7)};
  RowAverageConv2dBackwardParams q;
  q.forward = p;
  if (wants[0]) q.grad_input = gx.image;
  if (wants[1]) q.grad_weight = gw.data();
  if (wants[2]) q.grad_bias = gb.data();
  entry.row_average_conv2d_backward(q, parallel);

  struct Gradients {
    Values x;
    std::vector<double> weight, bias;
  };
  const auto reference = [&](bool magnitude) {
    const Values a = staged(magnitude), gy(y, magnitude);
    Values ga(a.s);
    std::vector<double> of_weight(static_cast<size_t>(out * depth)), of_bias(static_cast<size_t>(out));
    for (int64_t b = 0; b < n; ++b)
      for (int64_t o = 0; o < out; ++o) {
        for (int64_t h = 0; h < out_h; ++h)
          for (int64_t w = 0; w < out_w; ++w) of_bias[static_cast<size_t>(o)] += gy(b, o, h, w);
        for_each_contact(v, out_h, out_w, rows, g.in_w,
                         [&](int64_t oh, int64_t ow, int64_t t, int64_t ih, int64_t iw) {
                           for (int64_t c = 0; c < channels; ++c) {
                             const int64_t at = (o * channels + c) * taps + t;
                             ga(b, c, ih, iw) += weight(weights, at, magnitude) * gy(b, o, oh, ow);
                             of_weight[static_cast<size_t>(at)] += a(b, c, ih, iw) * gy(b, o, oh, ow);
                           }
                         });
      }
    return Gradients{averaged_backward(ga, g.in_h, row_stride), of_weight, of_bias};
  };
  const Gradients exact = reference(false), magnitude = reference(true);
  if (wants[0]) require_near("grad_input", gx, exact.x, magnitude.x, dtype);
  if (wants[1]) require_near("grad_weight", gw, exact.weight, magnitude.weight, dtype);
  if (wants[2]) require_near("grad_bias", gb, exact.bias, magnitude.bias, dtype);
}

// `cases` random calls, the same ones for the same seed, and some with special values.
void sweep(const Entry& of, int64_t cases, uint64_t seed, const std::vector<Isa>& isas = available_isas()) {
  entry = of;
  const CacheSizes machine = cache_sizes();
  for (int64_t index = 0; index < cases; ++index) {
    generator.seed(seed * 1000003 + static_cast<uint64_t>(index));
    set_isa(isas[static_cast<size_t>(index) % isas.size()]);
    const DType dtype = static_cast<DType>(pick(0, 3));
    if (entry.plain) channels_last = chance(0.5);
    // Small caches: other tiles, and outputs that bypass them.
    pretend_cache_sizes(chance(0.5) ? machine : CacheSizes{pick(1, 64) << 10, pick(0, 8) << 10});
    switch (pick(0, 5)) {
      case 0:
        sweep_row_average(dtype);
        break;
      case 1:
        sweep_row_average_conv2d(dtype);
        break;
      case 2:
      case 3:
        sweep_separable_conv2d(dtype);
        break;
      default:
        sweep_separable_conv2d_backward(dtype);
    }
  }
  for (const Isa isa : entry.plain ? std::vector<Isa>{} : isas)
    for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16})
      for (const Activation kind : {Activation::kRelu, Activation::kRelu6}) {
        set_isa(isa);
        check_derivative_at_special_values(dtype, kind);
      }
  for (const Isa isa : entry.plain ? std::vector<Isa>{} : isas)
    for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
      set_isa(isa);
      check_streamed_gradient(dtype);
    }
  pretend_cache_sizes(machine);
  std::printf("%ld random calls agree with the reference %016llx, on", static_cast<long>(cases),
              static_cast<unsigned long long>(fingerprint));
  for (const Isa isa : isas) std::printf(" %s", name_of(isa));
  std::printf("\n");
}

}  // namespace
