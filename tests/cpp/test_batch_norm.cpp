// Random batch norms against loops in long double: all dtypes, instruction sets, layouts and aliases, and the
// same bits with any number of threads.
//   test_batch_norm [cases] [seed]
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/batch_norm.h"
#include "core/isa.h"
#include "core/plan.h"

using namespace sepconv;

namespace {

std::mt19937_64 generator;
int64_t pick(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator);
}
bool chance(double probability) {
  return std::bernoulli_distribution(probability)(generator);
}
double normal() {
  return std::normal_distribution<double>()(generator);
}

std::string context;  // the case, printed with the first failure

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n  %s\n", context.c_str(), what);
  std::exit(1);
}
// NaN is near NaN.
void require_near(const char* what, int64_t at, double actual, double expected, double bound) {
  if (std::abs(actual - expected) <= bound || (std::isnan(actual) && std::isnan(expected))) return;
  std::printf("%s\n  %s, element %ld: got %.9g, expected %.9g, bound %.3g\n", context.c_str(), what,
              static_cast<long>(at), actual, expected, bound);
  std::exit(1);
}

// --- Storage ---------------------------------------------------------------------------------------------

double unit(DType dtype) {
  return dtype == DType::kFloat64    ? 0x1p-52
         : dtype == DType::kFloat32  ? 0x1p-23
         : dtype == DType::kBFloat16 ? 0x1p-7
                                     : 0x1p-10;
}
// What the smallest results are rounded to.
double least(DType dtype) {
  return dtype == DType::kFloat16 ? 0x1p-24 : 1e-30;
}
DType compute(DType dtype) {
  return dtype == DType::kFloat64 ? dtype : DType::kFloat32;
}

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                    : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  if (exponent == 31) return mantissa == 0 ? (bits >> 15 ? -INFINITY : INFINITY) : NAN;
  return bits >> 15 ? -value : value;
}
// Toward zero, of values that are normal in a half or zero.
uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000;
  if (std::isnan(value)) return 0x7e00;
  if (std::abs(value) < 0x1p-14f) return static_cast<uint16_t>(sign);
  return static_cast<uint16_t>(sign | ((bits >> 13 & 0x3ffff) - (112u << 10)));
}

// Elements of a dtype; new ones are NaN in every dtype.
class Buffer {
 public:
  Buffer() = default;
  Buffer(int64_t count, DType dtype)
      : dtype_(dtype), bytes_(static_cast<size_t>(count) * bytes_of(dtype), static_cast<char>(0xff)) {}
  void* data() { return bytes_.empty() ? nullptr : bytes_.data(); }
  int64_t size() const { return static_cast<int64_t>(bytes_.size() / bytes_of(dtype_)); }
  DType dtype() const { return dtype_; }
  bool operator==(const Buffer& other) const { return bytes_ == other.bytes_; }

  double operator[](int64_t at) const {
    if (dtype_ == DType::kFloat64) return load<double>(at);
    if (dtype_ == DType::kFloat32) return load<float>(at);
    const uint16_t bits = load<uint16_t>(at);
    return dtype_ == DType::kFloat16 ? half_to_float(bits)
                                     : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
  void put(int64_t at, double value) {
    const float narrow = static_cast<float>(value);
    if (dtype_ == DType::kFloat64) return store(at, value);
    if (dtype_ == DType::kFloat32) return store(at, narrow);
    store(at, dtype_ == DType::kFloat16 ? float_to_half(narrow)
                                        : static_cast<uint16_t>(std::bit_cast<uint32_t>(narrow) >> 16));
  }

 private:
  template <class V>
  V load(int64_t at) const {
    V value;
    std::memcpy(&value, bytes_.data() + static_cast<size_t>(at) * sizeof(V), sizeof(V));
    return value;
  }
  template <class V>
  void store(int64_t at, V value) {
    std::memcpy(bytes_.data() + static_cast<size_t>(at) * sizeof(V), &value, sizeof(V));
  }
  DType dtype_ = DType::kFloat32;
  std::vector<char> bytes_;
};

struct Shape {
  int64_t n, c, h, w;
  int64_t pixels() const { return n * h * w; }
  int64_t count() const { return pixels() * c; }
};

// An image and its memory; element i counts pixels in the order of (n, h, w) and channels within them.
struct Tensor {
  Image image;
  Buffer buffer;

  Image view() {
    Image result = image;
    result.data = buffer.data();
    return result;
  }
  int64_t offset(int64_t pixel, int64_t c) const {
    const Image& x = image;
    return pixel / x.w / x.h * x.stride_n + pixel / x.w % x.h * x.stride_h + pixel % x.w * x.stride_w +
           c * x.stride_c;
  }
  double at(int64_t pixel, int64_t c) const { return buffer[offset(pixel, c)]; }
  void put(int64_t pixel, int64_t c, double value) { buffer.put(offset(pixel, c), value); }
};

// In a random layout: channels last more often than NCHW, at times with gaps.
Tensor make(const Shape& s, DType dtype) {
  Tensor t;
  t.image = {nullptr, s.n, s.c, s.h, s.w, 0, 0, 0, 0};
  const int64_t sizes[4] = {s.n, s.c, s.h, s.w};
  int64_t* strides[4] = {&t.image.stride_n, &t.image.stride_c, &t.image.stride_h, &t.image.stride_w};
  std::vector<int> order = {0, 2, 3, 1};  // outermost first
  if (chance(0.3)) order = {0, 1, 2, 3};
  if (chance(0.2)) std::shuffle(order.begin(), order.end(), generator);
  const bool gaps = chance(0.3);
  int64_t stride = 1;
  for (int i = 3; i >= 0; --i) {
    const int axis = order[static_cast<size_t>(i)];
    *strides[axis] = stride;
    stride = stride * sizes[axis] + (gaps && chance(0.5) ? pick(1, 3) : 0);
    if (sizes[axis] == 1 && chance(0.2)) *strides[axis] = pick(0, 100);  // means nothing
  }
  t.buffer = Buffer(stride, dtype);
  return t;
}

Buffer random_vector(int64_t count, DType dtype, double middle, double spread) {
  Buffer v(count, dtype);
  for (int64_t i = 0; i < count; ++i) v.put(i, middle + spread * normal());
  return v;
}

template <int kThreads>
Parallel threads() {
  return {kThreads, [](int64_t count, RangeBody body) {
            std::vector<std::thread> workers;
            for (int64_t i = 0; i < kThreads; ++i)
              if (count * i / kThreads < count * (i + 1) / kThreads)
                workers.emplace_back([=] { body(count * i / kThreads, count * (i + 1) / kThreads); });
            for (std::thread& worker : workers) worker.join();
          }};
}
const Parallel kParallel[] = {threads<1>(), threads<2>(), threads<3>(), threads<4>()};

// --- Cases -----------------------------------------------------------------------------------------------

double activate(double x, Activation kind) {
  switch (kind) {
    case Activation::kRelu:
      return x > 0 || std::isnan(x) ? x : 0;
    case Activation::kRelu6:
      return std::isnan(x) ? x : std::clamp(x, 0.0, 6.0);
    case Activation::kHardSwish:
      return x * std::clamp(x + 3, 0.0, 6.0) / 6;
    default:
      return x;
  }
}
// Stock's derivatives: 0 at the kinks, 1 at NaN.
bool passes(double x, Activation kind) {
  return kind == Activation::kNone || !(x <= 0 || (kind == Activation::kRelu6 && x >= 6));
}

struct Case {
  Shape shape;
  DType dtype, vectors;
  Tensor x;
  Buffer weight, bias;  // empty: null
  double eps = 1e-5;
  Buffer mean, inverse_std, scale, shift;     // results
  std::vector<double> exact_mean, exact_var;  // biased
};

// The mean is corrected once: not even sums in long double are exact enough for float64.
void find_moments(Case& c) {
  const auto pixels = static_cast<long double>(c.shape.pixels());
  c.exact_mean.clear(), c.exact_var.clear();
  for (int64_t k = 0; k < c.shape.c; ++k) {
    long double sum = 0, difference = 0, squares = 0;
    for (int64_t p = 0; p < c.shape.pixels(); ++p) sum += c.x.at(p, k);
    for (int64_t p = 0; p < c.shape.pixels(); ++p) difference += c.x.at(p, k) - sum / pixels;
    const long double mean = sum / pixels + difference / pixels;
    for (int64_t p = 0; p < c.shape.pixels(); ++p) squares += (c.x.at(p, k) - mean) * (c.x.at(p, k) - mean);
    c.exact_mean.push_back(static_cast<double>(mean));
    c.exact_var.push_back(static_cast<double>(squares / pixels));
  }
}

Case random_case(DType dtype, double offset) {
  Case c{};
  static constexpr int64_t kChannels[] = {1, 3, 8, 16, 17, 31, 32, 47, 64, 100, 256, 300, 520};
  const int64_t channels = kChannels[pick(0, std::size(kChannels) - 1)];
  // Up to a few tasks.
  const int64_t most = std::max<int64_t>(4, (chance(0.2) ? 200000 : 20000) / channels);
  const int64_t n = pick(1, 5), h = pick(1, std::max<int64_t>(1, std::min<int64_t>(most / n, 60))),
                w = pick(n * h == 1 ? 2 : 1, std::max<int64_t>(2, most / n / h));
  c.shape = {n, channels, h, w}, c.dtype = dtype, c.vectors = compute(dtype);
  c.x = make(c.shape, dtype);
  // Every channel has a mean and a spread of its own; a constant one has no variance at all.
  for (int64_t k = 0; k < channels; ++k) {
    const double middle = offset + normal(), spread = chance(0.05) ? 0 : std::exp(normal());
    for (int64_t p = 0; p < c.shape.pixels(); ++p) c.x.put(p, k, middle + spread * normal());
  }
  if (chance(0.7)) c.weight = random_vector(channels, c.vectors, 1, 0.5);
  if (chance(0.7)) c.bias = random_vector(channels, c.vectors, 0.5, 1);
  find_moments(c);
  context = "isa " + std::string(name_of(current_isa())) + ", dtype " +
            std::to_string(static_cast<int>(dtype)) + ", shape " + std::to_string(n) + " x " +
            std::to_string(channels) + " x " + std::to_string(h) + " x " + std::to_string(w) + ", strides " +
            std::to_string(c.x.image.stride_n) + " " + std::to_string(c.x.image.stride_c) + " " +
            std::to_string(c.x.image.stride_h) + " " + std::to_string(c.x.image.stride_w) + ", offset " +
            std::to_string(offset);
  return c;
}

void check_statistics(Case& c) {
  const int64_t channels = c.shape.c;
  const double momentum = 0.1, pixels = static_cast<double>(c.shape.pixels());
  const Buffer old_mean = random_vector(channels, c.vectors, 0, 1),
               old_var = random_vector(channels, c.vectors, 3, 0.5);
  const bool running = chance(0.7);
  Buffer first[6];
  for (const Parallel& parallel : kParallel) {
    Buffer running_mean = old_mean, running_var = old_var;
    for (Buffer* b : {&c.mean, &c.inverse_std, &c.scale, &c.shift}) *b = Buffer(channels, c.vectors);
    BatchNormStatisticsParams p;
    p.dtype = c.dtype, p.input = c.x.view(), p.weight = c.weight.data(), p.bias = c.bias.data();
    p.eps = c.eps, p.momentum = momentum;
    if (running) p.running_mean = running_mean.data(), p.running_var = running_var.data();
    p.mean = c.mean.data(), p.inverse_std = c.inverse_std.data(), p.scale = c.scale.data(),
    p.shift = c.shift.data();
    batch_norm_statistics(p, parallel);
    const Buffer* results[6] = {&c.mean, &c.inverse_std, &c.scale, &c.shift, &running_mean, &running_var};
    for (int i = 0; i < 6; ++i) {
      if (parallel.threads == 1) first[i] = *results[i];
      require(first[i] == *results[i], "statistics: other bits with another number of threads");
    }
  }
  // The spread counts, not the mean: differences of values are exact enough for a few units of the variance.
  const double u = unit(c.vectors);
  for (int64_t k = 0; k < channels; ++k) {
    const auto at = static_cast<size_t>(k);
    const double mean = c.exact_mean[at], var = c.exact_var[at], std = std::sqrt(var + c.eps),
                 weight = c.weight.size() ? c.weight[k] : 1, bias = c.bias.size() ? c.bias[k] : 0;
    // The running mean of float64 values is rounded itself.
    const double units = 8 + (c.dtype == DType::kFloat64 ? 0.1 * std::abs(mean) / std : 0);
    require_near("mean", k, c.mean[k], mean,
                 (c.dtype == DType::kFloat64 ? 4 : 1) * u * std::abs(mean) + 4 * u * std);
    require_near("inverse_std", k, c.inverse_std[k], 1 / std, units * u / std);
    require_near("scale", k, c.scale[k], weight / std, (units + 2) * u * std::abs(weight) / std);
    require_near("shift", k, c.shift[k], bias - mean * c.scale[k],
                 u * (std::abs(bias) + 4 * std::abs(mean * c.scale[k]) + units * std::abs(weight)));
    require_near("running_mean", k, first[4][k], running ? 0.9 * old_mean[k] + momentum * mean : old_mean[k],
                 running ? u * (std::abs(old_mean[k]) + std::abs(mean) + std) : 0);
    const double new_var = 0.9 * old_var[k] + momentum * var * pixels / std::max(pixels - 1, 1.0);
    require_near("running_var", k, first[5][k], running ? new_var : old_var[k],
                 running ? units * u * new_var : 0);
  }
}

void check_map(Case& c) {
  const auto kind = static_cast<Activation>(pick(0, 3));
  const int alias = static_cast<int>(pick(0, 2));  // 1: the input's memory, 2: the residual's
  const bool has_residual = alias == 2 || chance(0.4);
  Tensor residual = make(c.shape, c.dtype), first;
  if (has_residual)
    for (int64_t p = 0; p < c.shape.pixels(); ++p)
      for (int64_t k = 0; k < c.shape.c; ++k) residual.put(p, k, normal());
  const Tensor separate = make(c.shape, c.dtype);
  for (const Parallel& parallel : kParallel) {
    Tensor input = c.x, other = residual, output = separate;
    Tensor& result = alias == 1 ? input : alias == 2 ? other : output;
    BatchNormParams p;
    p.dtype = c.dtype, p.input = input.view(), p.scale = c.scale.data(), p.shift = c.shift.data();
    p.activation = kind;
    if (has_residual) p.residual = other.view();
    p.output = result.view();
    batch_norm(p, parallel);
    if (parallel.threads == 1) first = result;
    require(first.buffer == result.buffer, "batch_norm: other bits with another number of threads");
  }
  const double u = unit(c.vectors), stored = u < unit(c.dtype) ? unit(c.dtype) : 0;
  for (int64_t p = 0; p < c.shape.pixels(); ++p)
    for (int64_t k = 0; k < c.shape.c; ++k) {
      const double r = has_residual ? residual.at(p, k) : 0, scaled = c.scale[k] * c.x.at(p, k),
                   exact = activate(scaled + c.shift[k] + r, kind);
      require_near("output", p * c.shape.c + k, first.at(p, k), exact,
                   8 * u * (std::abs(scaled) + std::abs(c.shift[k]) + std::abs(r)) +
                       stored * std::abs(exact) + least(c.dtype));
    }
}

void check_backward(Case& c) {
  const auto kind = static_cast<Activation>(pick(0, 2));
  const int alias = static_cast<int>(pick(0, 2));  // 1: the input's memory, 2: that of grad_output
  const bool wants_input = chance(0.9), wants_vectors = chance(0.9);
  Tensor gradient = make(c.shape, c.dtype), first;
  for (int64_t p = 0; p < c.shape.pixels(); ++p)
    for (int64_t k = 0; k < c.shape.c; ++k) gradient.put(p, k, 0.3 + normal());
  const Tensor separate = make(c.shape, c.dtype);
  std::vector<double> sums;  // as another pass would have them
  if (chance(0.3)) {
    sums.resize(static_cast<size_t>(2 * c.shape.c));
    for (int64_t k = 0; k < c.shape.c; ++k) {
      long double sum = 0, product = 0;
      for (int64_t p = 0; p < c.shape.pixels(); ++p) {
        if (!passes(c.scale[k] * c.x.at(p, k) + c.shift[k], kind)) continue;
        sum += gradient.at(p, k);
        product += gradient.at(p, k) * (c.x.at(p, k) - c.mean[k]);
      }
      sums[static_cast<size_t>(k)] = static_cast<double>(sum);
      sums[static_cast<size_t>(c.shape.c + k)] = static_cast<double>(product);
    }
  }
  Buffer first_vectors[2];
  for (const Parallel& parallel : kParallel) {
    Tensor input = c.x, grad_output = gradient, output = separate;
    Tensor& result = alias == 1 ? input : alias == 2 ? grad_output : output;
    Buffer grad_weight(c.shape.c, c.vectors), grad_bias = grad_weight;
    BatchNormBackwardParams p;
    p.dtype = c.dtype, p.input = input.view(), p.grad_output = grad_output.view(), p.weight = c.weight.data(),
    p.mean = c.mean.data(), p.inverse_std = c.inverse_std.data(), p.activation = kind;
    if (kind != Activation::kNone) p.scale = c.scale.data(), p.shift = c.shift.data();
    if (!sums.empty()) p.gradient_sums = sums.data();
    if (wants_input) p.grad_input = result.view();
    if (wants_vectors) p.grad_weight = grad_weight.data(), p.grad_bias = grad_bias.data();
    batch_norm_backward(p, parallel);
    if (parallel.threads == 1) first = result, first_vectors[0] = grad_weight, first_vectors[1] = grad_bias;
    require(first.buffer == result.buffer && first_vectors[0] == grad_weight && first_vectors[1] == grad_bias,
            "batch_norm_backward: other bits with another number of threads");
  }
  const int64_t pixels = c.shape.pixels();
  const double u = unit(c.vectors), stored = u < unit(c.dtype) ? unit(c.dtype) : 0,
               n = static_cast<double>(pixels);
  for (int64_t k = 0; k < c.shape.c; ++k) {
    const double mean = c.mean[k], inverse = c.inverse_std[k], weight = c.weight.size() ? c.weight[k] : 1;
    std::vector<double> g, xhat;
    long double sum = 0, product = 0;
    double sum_size = 0, product_size = 0, kink = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      const double x = c.x.at(p, k), before = c.scale[k] * x + c.shift[k];
      g.push_back(passes(before, kind) ? gradient.at(p, k) : 0);
      xhat.push_back((x - mean) * inverse);
      // A value this near a kink may fall on either side.
      const double slack = 4 * u * (std::abs(c.scale[k] * x) + std::abs(c.shift[k]));
      if (kind != Activation::kNone && (std::abs(before) <= slack || std::abs(before - 6) <= slack))
        kink += std::abs(gradient.at(p, k)) * (1 + std::abs(xhat.back()));
      sum += g.back(), product += g.back() * xhat.back();
      sum_size += std::abs(g.back());
      // The distance from the mean is rounded.
      product_size += std::abs(g.back()) * (std::abs(xhat.back()) + 0.1 * std::abs(mean) * inverse);
    }
    if (wants_vectors) {
      require_near("grad_bias", k, first_vectors[1][k], static_cast<double>(sum), 8 * u * sum_size + kink);
      require_near("grad_weight", k, first_vectors[0][k], static_cast<double>(product),
                   8 * u * product_size + kink);
    }
    if (!wants_input || kink > 0) continue;
    for (int64_t p = 0; p < pixels; ++p) {
      const auto at = static_cast<size_t>(p);
      const double scale = std::abs(weight) * inverse,
                   exact =
                       weight * inverse *
                       (g[at] - static_cast<double>(sum) / n - xhat[at] * static_cast<double>(product) / n),
                   size = scale * (std::abs(g[at]) + sum_size / n +
                                   (std::abs(xhat[at]) + 0.1 * std::abs(mean) * inverse) * product_size / n);
      require_near("grad_input", p * c.shape.c + k, first.at(p, k), exact,
                   16 * u * size + stored * std::abs(exact) + least(c.dtype));
    }
  }
}

// Values whose spread is a thousandth of their mean and less, some images far from the others, and few values
// far from all: what plain sums of squares lose.
void check_hard_statistics() {
  for (const double offset : {1e3, 1e5})
    for (const int64_t channels : {16, 40}) {
      Case c = random_case(DType::kFloat32, 0);
      c.shape = {3, channels, 40, 41};
      c.x = make(c.shape, DType::kFloat32);
      c.weight = c.bias = Buffer(), c.eps = 0;
      context = "hard statistics, isa " + std::string(name_of(current_isa()));
      for (int64_t k = 0; k < channels; ++k) {
        for (int64_t p = 0; p < c.shape.pixels(); ++p) {
          const double far = k % 3 == 0   ? 0
                             : k % 3 == 1 ? (p < 1640 ? offset : 0)
                                          : (p % 1000 == 0 ? offset : 0);
          c.x.put(p, k, offset + normal() + far);
        }
      }
      find_moments(c);
      check_statistics(c);
    }
}

// Infinity and NaN of one channel reach its statistics and no other; NaN before an activation passes the
// gradient.
void check_special_values() {
  Case c = random_case(DType::kFloat32, 0);
  c.shape = {2, 37, 5, 7};
  c.x = make(c.shape, DType::kFloat32);
  c.weight = c.bias = Buffer();
  context = "special values, isa " + std::string(name_of(current_isa()));
  for (int64_t p = 0; p < c.shape.pixels(); ++p)
    for (int64_t k = 0; k < 37; ++k)
      c.x.put(p, k, p == 33 && k == 5 ? INFINITY : p == 40 && k == 36 ? NAN : normal());
  for (Buffer* b : {&c.mean, &c.inverse_std, &c.scale, &c.shift}) *b = Buffer(37, c.vectors);
  BatchNormStatisticsParams p;
  p.input = c.x.view(), p.eps = c.eps, p.mean = c.mean.data(), p.inverse_std = c.inverse_std.data(),
  p.scale = c.scale.data(), p.shift = c.shift.data();
  batch_norm_statistics(p, kParallel[1]);
  for (int64_t k = 0; k < 37; ++k)
    require(std::isfinite(c.inverse_std[k]) == (k != 5 && k != 36), "special values stay in their channel");

  // The kinks, exactly.
  const double values[] = {-1, 0, 1, 6, 7, NAN, INFINITY};
  for (const Activation kind : {Activation::kRelu, Activation::kRelu6}) {
    Tensor x = make({1, 1, 1, 7}, DType::kFloat32), g = x;
    for (int64_t i = 0; i < 7; ++i) x.put(i, 0, values[i]), g.put(i, 0, 1);
    Buffer one(1, DType::kFloat32), zero = one, grad_bias = one;
    one.put(0, 1), zero.put(0, 0);
    BatchNormBackwardParams b;
    b.input = x.view(), b.grad_output = g.view(), b.mean = zero.data(), b.inverse_std = one.data(),
    b.scale = one.data(), b.shift = zero.data(), b.activation = kind, b.grad_bias = grad_bias.data();
    batch_norm_backward(b, kParallel[0]);
    require_near("gradients past the kinks", 0, grad_bias[0], kind == Activation::kRelu ? 5 : 2, 0);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoll(argv[1]) : 300;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const std::vector<Isa> isas = available_isas();
  const CacheSizes machine = cache_sizes();
  for (const Isa isa : isas) {
    generator.seed(seed);
    set_isa(isa);
    check_hard_statistics();
    check_special_values();
  }
  for (int64_t index = 0; index < cases; ++index) {
    generator.seed(seed * 1000003 + static_cast<uint64_t>(index));
    set_isa(isas[static_cast<size_t>(index) % isas.size()]);
    // Small caches: outputs bypass them.
    pretend_cache_sizes(chance(0.5) ? machine : CacheSizes{32 << 10, 16 << 10});
    Case c = random_case(static_cast<DType>(pick(0, 3)), chance(0.3) ? 30 : 0);
    check_statistics(c);
    check_map(c);
    check_backward(c);
  }
  std::printf("%ld random batch norms agree with the reference\n", static_cast<long>(cases));
}
