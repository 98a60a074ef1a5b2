// Backward of batch norm: one pass for the sums that are the gradients of weight and bias, and one that makes
// of them the gradient of the input,
//   weight * inverse_std * (g - mean(g) - normalized * mean(g * normalized)),
// g being grad_output past the activation.

// The vectors of a call, from some channel on.
template <class T>
struct NormVectors {
  const T *mean, *scale, *shift;
  NormVectors from(int64_t channel) const {
    return scale == nullptr ? NormVectors{mean + channel, nullptr, nullptr}
                            : NormVectors{mean + channel, scale + channel, shift + channel};
  }
};

// The same in registers: of each pixel the gradient past the activation and the input's distance from its
// mean.
template <int kVectors, Activation kActivation, class T, class Vector>
struct NormRegisters {
  static constexpr int kLanes = Vec<T>::kLanes;
  static constexpr bool kActive = kActivation != Activation::kNone;
  Vector vector;
  Vec<T> minus_mean[kVectors], scale[kVectors], shift[kVectors];

  NormRegisters(Vector policy, const NormVectors<T>& from, int64_t c) : vector(policy) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      minus_mean[i] = mul(vector.read(from.mean + c + i * kLanes), broadcast(T(-1)));
      if (kActive) {
        scale[i] = vector.read(from.scale + c + i * kLanes);
        shift[i] = vector.read(from.shift + c + i * kLanes);
      }
    }
  }
  Factors<T> operator()(const T* input, const T* gradient, int i) const {
    const Vec<T> x = vector.read(input);
    Vec<T> g = vector.read(gradient);
    if (kActive) g = activate_backward(g, fma(x, scale[i], shift[i]), kActivation);
    return {g, add(x, minus_mean[i])};
  }
};

// Adds to sum[c] the gradients past the activation, of `count` rows, and to product[c] those times the
// input's distance from its mean. `buffer` has room for two rounded-up rows.
template <Activation kActivation, class T>
inline void add_gradient_sums(const T* x, int64_t x_ld, const T* g, int64_t g_ld, int64_t count,
                              int64_t channels, const NormVectors<T>& norm, T* buffer, double* sum,
                              double* product) {
  constexpr int kLanes = Vec<T>::kLanes;
  T *sums = buffer, *products = buffer + round_up(channels, kLanes);
  for_each_vector_group<T>(channels, [&](auto vectors, auto vector, int64_t c) {
    constexpr int kVectors = decltype(vectors)::value;
    const NormRegisters<kVectors, kActivation, T, decltype(vector)> registers(vector, norm, c);
    sum_products<kVectors>(count, sums + c, products + c, [&](int64_t p, int i) {
      return registers(x + p * x_ld + c + i * kLanes, g + p * g_ld + c + i * kLanes, i);
    });
  });
  for (int64_t c = 0; c < channels; ++c) sum[c] += sums[c], product[c] += products[c];
}

// gradient = weight * g + offset + slope * (x - mean)
template <class T>
struct InputGradient {
  T *weight, *offset, *slope;
};

template <Activation kActivation, class T>
inline void write_input_gradient(const T* x, int64_t x_ld, const T* g, int64_t g_ld, T* to, int64_t to_ld,
                                 int64_t count, int64_t channels, const NormVectors<T>& norm,
                                 const InputGradient<T>& of) {
  constexpr int kLanes = Vec<T>::kLanes;
  for_each_row_group<T>(
      count, channels, [&](auto vectors, auto vector, int64_t c, int64_t begin, int64_t end) {
        constexpr int kVectors = decltype(vectors)::value;
        const NormRegisters<kVectors, kActivation, T, decltype(vector)> registers(vector, norm, c);
        Vec<T> weight[kVectors], offset[kVectors], slope[kVectors];
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) {
          weight[i] = vector.read(of.weight + c + i * kLanes);
          offset[i] = vector.read(of.offset + c + i * kLanes);
          slope[i] = vector.read(of.slope + c + i * kLanes);
        }
        for (int64_t p = begin; p < end; ++p) {
#pragma GCC unroll 4
          for (int i = 0; i < kVectors; ++i) {
            const Factors<T> f = registers(x + p * x_ld + c + i * kLanes, g + p * g_ld + c + i * kLanes, i);
            vector.write(to + p * to_ld + c + i * kLanes,
                         fma(f.factor, slope[i], fma(f.value, weight[i], offset[i])));
          }
        }
      });
}

// grad_weight, grad_bias and the factors of the second pass, of the sums over all pixels.
template <class T>
void finish_gradient_sums(const BatchNormBackwardParams& b, double pixels, const double* sum,
                          const double* product, const InputGradient<T>& factors) {
  const auto *weight = static_cast<const T*>(b.weight), *inverse_std = static_cast<const T*>(b.inverse_std);
  T *grad_weight = static_cast<T*>(b.grad_weight), *grad_bias = static_cast<T*>(b.grad_bias);
  for (int64_t c = 0; c < b.input.c; ++c) {
    const double inverse = inverse_std[c], scale = (weight == nullptr ? 1 : weight[c]) * inverse,
                 normalized = product[c] * inverse;
    if (grad_weight != nullptr) grad_weight[c] = static_cast<T>(normalized);
    if (grad_bias != nullptr) grad_bias[c] = static_cast<T>(sum[c]);
    factors.weight[c] = static_cast<T>(scale);
    factors.offset[c] = static_cast<T>(-scale * sum[c] / pixels);
    factors.slope[c] = static_cast<T>(-scale * inverse * normalized / pixels);
  }
}

// As the statistics, the sums start with the last pixels; the second pass begins with those they ended with.
template <class S>
void batch_norm_backward(const BatchNormBackwardParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  const PixelSums sums(b.input);
  const int64_t channels = b.input.c, padded = round_up(channels, Vec<T>::kLanes);
  Scratch call(ScratchUse::kCall);
  const size_t sums_slot = call.add<double>(2 * sums.splits() * channels),
               factors_slot = call.add<T>(3 * padded);
  double* data = call.get<double>(sums_slot);
  T* factors = call.get<T>(factors_slot);
  const InputGradient<T> input_gradient{factors, factors + padded, factors + 2 * padded};
  const NormVectors<T> norm{static_cast<const T*>(b.mean), static_cast<const T*>(b.scale),
                            static_cast<const T*>(b.shift)};

  with_activation(b.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    parallel.run(sums.tasks(), [&](int64_t begin, int64_t end) {
      Scratch task(ScratchUse::kTask);
      PixelRows<S> input(b.input, sums.chunk(), sums.channel_block(), task),
          gradient(b.grad_output, sums.chunk(), sums.channel_block(), task);
      const size_t buffer_slot = task.add<T>(2 * round_up(sums.channel_block(), Vec<T>::kLanes));
      for (int64_t index = end - 1; index >= begin; --index) {
        const PixelSums::Task t = sums.task(index);
        double *sum = data + 2 * t.split * channels + t.channel, *product = sum + channels;
        std::fill(sum, sum + t.channels, 0.0);
        std::fill(product, product + t.channels, 0.0);
        for (int64_t at = (t.count - 1) / sums.chunk() * sums.chunk(); at >= 0; at -= sums.chunk()) {
          const int64_t first = t.first + at, count = std::min(sums.chunk(), t.count - at);
          const T *x = input.read(first, count, t.channel, t.channels),
                  *g = gradient.read(first, count, t.channel, t.channels);
          add_gradient_sums<kActivation>(x, input.ld(), g, gradient.ld(), count, t.channels,
                                         norm.from(t.channel), task.get<T>(buffer_slot), sum, product);
        }
      }
    });
    for (int64_t split = 1; split < sums.splits(); ++split)
      for (int64_t i = 0; i < 2 * channels; ++i) data[i] += data[2 * split * channels + i];
    finish_gradient_sums<T>(b, static_cast<double>(sums.pixels()), data, data + channels, input_gradient);
    if (b.grad_input.data == nullptr) return;

    const bool in_place = b.grad_input.data == b.input.data || b.grad_input.data == b.grad_output.data;
    const bool streamed = !in_place && bypasses_caches(sums.pixels() * channels * sizeof(S), cache_sizes());
    parallel.run(sums.tasks(), [&](int64_t begin, int64_t end) {
      Scratch task(ScratchUse::kTask);
      PixelRows<S> input(b.input, sums.chunk(), sums.channel_block(), task),
          gradient(b.grad_output, sums.chunk(), sums.channel_block(), task),
          result(b.grad_input, sums.chunk(), sums.channel_block(), task, streamed);
      for (int64_t index = begin; index < end; ++index) {
        const PixelSums::Task t = sums.task(index);
        for (int64_t at = 0; at < t.count; at += sums.chunk()) {
          const int64_t first = t.first + at, count = std::min(sums.chunk(), t.count - at);
          const T *x = input.read(first, count, t.channel, t.channels),
                  *g = gradient.read(first, count, t.channel, t.channels);
          result.write(first, count, t.channel, t.channels, [&](T* to) {
            write_input_gradient<kActivation>(
                x, input.ld(), g, gradient.ld(), to, result.ld(), count, t.channels, norm.from(t.channel),
                InputGradient<T>{input_gradient.weight + t.channel, input_gradient.offset + t.channel,
                                 input_gradient.slope + t.channel});
          });
        }
      }
    });
  });
}
