// Backward of batch norm: one pass for the sums that are the gradients of weight and bias, and one that makes
// of them the gradient of the input,
//   weight * inverse_std * (g - mean(g) - normalized * mean(g * normalized)),
// g being grad_output past the activation.

// The vectors of a call, from some channel on; scale and shift are null where there is no activation.
template <class T>
struct NormVectors {
  const T *mean, *scale, *shift;
  NormVectors from(int64_t channel) const {
    return scale == nullptr ? NormVectors{mean + channel, nullptr, nullptr}
                            : NormVectors{mean + channel, scale + channel, shift + channel};
  }
};

// The same in registers, and with them of each pixel the gradient past the activation and the input's
// distance from its mean.
template <int kVectors, Activation kActivation, class T>
struct NormRegisters {
  static constexpr bool kActive = kActivation != Activation::kNone;
  Vec<T> minus_mean[kVectors], scale[kVectors], shift[kVectors];

  // read(p, i): vector i of the values at p.
  template <class Read>
  NormRegisters(const NormVectors<T>& from, Read&& read) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      minus_mean[i] = mul(read(from.mean, i), broadcast(T(-1)));
      if (kActive) scale[i] = read(from.scale, i), shift[i] = read(from.shift, i);
    }
  }
  template <class Vector, class S>
  Factors<T> factors(Vector vector, const S* input, const S* gradient, int i) const {
    const Vec<T> x = vector.read(input);
    Vec<T> g = vector.read(gradient);
    if (kActive) g = activate_backward(g, fma(x, scale[i], shift[i]), kActivation);
    return {g, add(x, minus_mean[i])};
  }
};

// Of rows of channels: the sums of gradients past the activation, and of those times the input's distance
// from its mean.
template <Activation kActivation, class T>
inline void sum_gradient_rows(const T* x, int64_t x_ld, const T* g, int64_t g_ld, int64_t count,
                              int64_t channels, const NormVectors<T>& norm, T* sum, T* product) {
  constexpr int kLanes = Vec<T>::kLanes;
  for_each_vector_group<T>(channels, [&](auto vectors, auto vector, int64_t c) {
    constexpr int kVectors = decltype(vectors)::value;
    const NormRegisters<kVectors, kActivation, T> registers(
        norm, [&](const T* p, int i) { return vector.read(p + c + i * kLanes); });
    sum_products<kVectors>(count, sum + c, product + c, [&](int64_t p, int i) {
      const int64_t at = c + i * kLanes;
      return registers.factors(vector, x + p * x_ld + at, g + p * g_ld + at, i);
    });
  });
}
// The same of the spans of one channel.
template <Activation kActivation, class S>
inline void sum_gradient_spans(const PixelSpans& spans, const Image& input, const Image& gradient,
                               int64_t channel, const NormVectors<Compute<S>>& norm, Compute<S>* sum,
                               Compute<S>* product) {
  using T = Compute<S>;
  const NormRegisters<1, kActivation, T> registers(norm,
                                                   [&](const T* p, int) { return broadcast(p[channel]); });
  sum_span_products<T>(spans, sum, product, [&](const Span& span) {
    return [&registers, x = span.of<S>(input, channel), g = span.of<S>(gradient, channel)](
               auto vector, int64_t i) { return registers.factors(vector, x + i, g + i, 0); };
  });
}

// The two sums over blocks of rows or chunks of spans, in double. Their order is the caller's, who cuts
// pixels by the shape alone. Another pass that holds rows of both in its caches may add them up on the way:
// the sums over all pixels are `gradient_sums` of the backward then.
template <Activation kActivation, class T>
class GradientSums {
 public:
  GradientSums(int64_t channels, Scratch& task) : padded_(round_up(channels, Vec<T>::kLanes)), task_(task) {
    slot_ = task.add<T>(2 * padded_);
  }

  // Of the channels that `norm` begins with; sums start from zero.
  void begin(const NormVectors<T>& norm, int64_t channels, double* sum, double* product) {
    norm_ = norm, channels_ = channels, sum_ = sum, product_ = product;
    std::fill(sum, sum + channels, 0.0);
    std::fill(product, product + channels, 0.0);
  }

  void add_rows(const T* x, int64_t x_ld, const T* g, int64_t g_ld, int64_t count) {
    for (int64_t first = 0; first < count; first += kMostRows)
      add([&](T* sum, T* product) {
        sum_gradient_rows<kActivation>(x + first * x_ld, x_ld, g + first * g_ld, g_ld,
                                       std::min(kMostRows, count - first), channels_, norm_, sum, product);
      });
  }

  // add_up(sum, product) writes the sums of a chunk.
  template <class AddUp>
  void add(AddUp&& add_up) {
    T *sum = task_.get<T>(slot_), *product = sum + padded_;
    add_up(sum, product);
    for (int64_t c = 0; c < channels_; ++c) sum_[c] += sum[c], product_[c] += product[c];
  }

 private:
  int64_t padded_, channels_ = 0;
  Scratch& task_;
  size_t slot_;
  NormVectors<T> norm_{};
  double *sum_ = nullptr, *product_ = nullptr;
};

// gradient = weight * g + offset + slope * (x - mean)
template <class T>
struct InputGradient {
  T *weight, *offset, *slope;
  InputGradient from(int64_t channel) const { return {weight + channel, offset + channel, slope + channel}; }
};
template <int kVectors, class T>
struct InputGradientRegisters {
  Vec<T> weight[kVectors], offset[kVectors], slope[kVectors];
  template <class Read>
  InputGradientRegisters(const InputGradient<T>& from, Read&& read) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i)
      weight[i] = read(from.weight, i), offset[i] = read(from.offset, i), slope[i] = read(from.slope, i);
  }
  Vec<T> gradient(const Factors<T>& f, int i) const {
    return fma(f.factor, slope[i], fma(f.value, weight[i], offset[i]));
  }
};

template <Activation kActivation, class T>
inline void write_gradient_rows(const T* x, int64_t x_ld, const T* g, int64_t g_ld, T* to, int64_t to_ld,
                                int64_t count, int64_t channels, const NormVectors<T>& norm,
                                const InputGradient<T>& of) {
  constexpr int kLanes = Vec<T>::kLanes;
  for_each_row_group<T>(
      count, channels, [&](auto vectors, auto vector, int64_t c, int64_t begin, int64_t end) {
        constexpr int kVectors = decltype(vectors)::value;
        const auto read = [&](const T* p, int i) { return vector.read(p + c + i * kLanes); };
        const NormRegisters<kVectors, kActivation, T> registers(norm, read);
        const InputGradientRegisters<kVectors, T> result(of, read);
        for (int64_t p = begin; p < end; ++p) {
#pragma GCC unroll 4
          for (int i = 0; i < kVectors; ++i) {
            const int64_t at = c + i * kLanes;
            vector.write(
                to + p * to_ld + at,
                result.gradient(registers.factors(vector, x + p * x_ld + at, g + p * g_ld + at, i), i));
          }
        }
      });
}
template <Activation kActivation, class S>
inline void write_gradient_spans(const PixelSpans& spans, const Image& input, const Image& gradient,
                                 const Image& to, int64_t channel, const NormVectors<Compute<S>>& norm,
                                 const InputGradient<Compute<S>>& of) {
  using T = Compute<S>;
  const auto read = [&](const T* p, int) { return broadcast(p[channel]); };
  const NormRegisters<1, kActivation, T> registers(norm, read);
  const InputGradientRegisters<1, T> result(of, read);
  for (const Span& span : spans)
    for_each_vector<T>(span.length, [&, x = span.of<S>(input, channel), g = span.of<S>(gradient, channel),
                                     y = span.of<S>(to, channel)](auto vector, int64_t i) {
      vector.write(y + i, result.gradient(registers.factors(vector, x + i, g + i, 0), 0));
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

// First pass: sum and product of split s at data + 2 * s * channels, `channels` of each; of all, at `data`.
template <class S, Activation kActivation>
const double* sum_gradients(const BatchNormBackwardParams& b, const PixelSums& sums,
                            const NormVectors<Compute<S>>& norm, double* data, const Parallel& parallel) {
  using T = Compute<S>;
  const int64_t channels = b.input.c;
  parallel.share(sums.tasks(), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    PixelRows<S> input(b.input, sums.row_chunk(), sums.channel_block(), task),
        gradient(b.grad_output, sums.row_chunk(), sums.channel_block(), task);
    GradientSums<kActivation, T> gradient_sums(sums.channel_block(), task);
    PixelSpans spans({&b.input, &b.grad_output});
    for (int64_t index; tasks.previous(index);) {
      const PixelSums::Task t = sums.task(index);
      double* sum = data + 2 * t.split * channels + t.channel;
      gradient_sums.begin(norm.from(t.channel), t.channels, sum, sum + channels);
      sums.for_each_chunk_backward(t, [&](int64_t first, int64_t count) {
        if (!sums.in_spans()) {
          const T *x = input.read(first, count, t.channel, t.channels),
                  *g = gradient.read(first, count, t.channel, t.channels);
          return gradient_sums.add_rows(x, input.ld(), g, gradient.ld(), count);
        }
        spans.select(first, count);
        gradient_sums.add([&](T* chunk_sum, T* chunk_product) {
          for (int64_t c = 0; c < t.channels; ++c)
            sum_gradient_spans<kActivation, S>(spans, b.input, b.grad_output, t.channel + c, norm,
                                               chunk_sum + c, chunk_product + c);
        });
      });
    }
  });
  for (int64_t split = 1; split < sums.splits(); ++split)
    for (int64_t i = 0; i < 2 * channels; ++i) data[i] += data[2 * split * channels + i];
  return data;
}

template <class S, Activation kActivation>
void write_gradients(const BatchNormBackwardParams& b, const PixelSums& sums,
                     const NormVectors<Compute<S>>& norm, const InputGradient<Compute<S>>& of,
                     const Parallel& parallel) {
  using T = Compute<S>;
  const bool in_place = b.grad_input.data == b.input.data || b.grad_input.data == b.grad_output.data;
  const bool streamed = !in_place && bypasses_caches(sums.pixels() * b.input.c * sizeof(S), cache_sizes());
  parallel.share(sums.tasks(), [&](Tasks& tasks) {
    Scratch task(ScratchUse::kTask);
    PixelRows<S> input(b.input, sums.row_chunk(), sums.channel_block(), task),
        gradient(b.grad_output, sums.row_chunk(), sums.channel_block(), task),
        result(b.grad_input, sums.row_chunk(), sums.channel_block(), task, streamed);
    PixelSpans spans({&b.input, &b.grad_output, &b.grad_input});
    for (int64_t index; tasks.next(index);) {
      const PixelSums::Task t = sums.task(index);
      sums.for_each_chunk(t, [&](int64_t first, int64_t count) {
        if (sums.in_spans()) {
          spans.select(first, count);
          for (int64_t c = t.channel; c < t.channel + t.channels; ++c)
            write_gradient_spans<kActivation, S>(spans, b.input, b.grad_output, b.grad_input, c, norm, of);
          return;
        }
        const T *x = input.read(first, count, t.channel, t.channels),
                *g = gradient.read(first, count, t.channel, t.channels);
        result.write(first, count, t.channel, t.channels, [&](T* to) {
          write_gradient_rows<kActivation>(x, input.ld(), g, gradient.ld(), to, result.ld(), count,
                                           t.channels, norm.from(t.channel), of.from(t.channel));
        });
      });
    }
  });
}

// As the statistics, the sums start with the last pixels; the second pass begins with those they ended with.
template <class S>
void batch_norm_backward(const BatchNormBackwardParams& b, const Parallel& parallel) {
  using T = Compute<S>;
  const bool writes = b.grad_input.data != nullptr;
  const PixelSums sums({&b.input, &b.grad_output, writes ? &b.grad_input : &b.input}, Vec<T>::kLanes);
  const int64_t channels = b.input.c, padded = round_up(channels, Vec<T>::kLanes);
  Scratch call(ScratchUse::kCall);
  const bool sums_up = b.gradient_sums == nullptr;
  const size_t sums_slot = call.add<double>(sums_up ? 2 * sums.splits() * channels : 0),
               factors_slot = call.add<T>(3 * padded);
  T* factors = call.get<T>(factors_slot);
  const InputGradient<T> of{factors, factors + padded, factors + 2 * padded};
  const NormVectors<T> norm{static_cast<const T*>(b.mean), static_cast<const T*>(b.scale),
                            static_cast<const T*>(b.shift)};
  with_activation(b.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    if constexpr (kActivation != Activation::kHardSwish) {  // dispatch.cpp refuses it
      const double* found = b.gradient_sums;
      if (sums_up)
        found = sum_gradients<S, kActivation>(b, sums, norm, call.get<double>(sums_slot), parallel);
      finish_gradient_sums<T>(b, static_cast<double>(sums.pixels()), found, found + channels, of);
      if (writes) write_gradients<S, kActivation>(b, sums, norm, of, parallel);
    }
  });
}
