// The stages around the two convolutions: per-channel affine and activation.

// Vectors of the compute type, padded to whole vectors; null is 1 for scale and 0 for shift.
template <class T>
struct Stage {
  const T* scale = nullptr;
  const T* shift = nullptr;
  Activation activation = Activation::kNone;

  bool empty() const { return scale == nullptr && shift == nullptr && activation == Activation::kNone; }
  Stage from(int64_t channel) const {
    return {scale == nullptr ? nullptr : scale + channel, shift == nullptr ? nullptr : shift + channel,
            activation};
  }
};

template <class T>
inline Vec<T> activate(Vec<T> x, Activation activation) {
  // The operand order of max and min lets NaN through, as stock activations do.
  switch (activation) {
    case Activation::kRelu:
      return max(zero<T>(), x);
    case Activation::kRelu6:
      return min(broadcast(T(6)), max(zero<T>(), x));
    case Activation::kHardSwish: {
      const Vec<T> gate = min(broadcast(T(6)), max(zero<T>(), add(x, broadcast(T(3)))));
      return mul(mul(x, gate), broadcast(T(1) / T(6)));
    }
    default:
      return x;
  }
}

// Affine part only, on channels c, c + 1, ...; the vectors are padded, so no tail is needed.
template <class T>
inline Vec<T> affine(Vec<T> x, const Stage<T>& stage, int64_t c) {
  if (stage.scale != nullptr)
    return fma(x, load(stage.scale + c), stage.shift != nullptr ? load(stage.shift + c) : zero<T>());
  return stage.shift != nullptr ? add(x, load(stage.shift + c)) : x;
}

// g times the derivative of the activation at x, none, ReLU or ReLU6: 0 at the kinks, 1 at NaN.
template <class T>
inline Vec<T> activate_backward(Vec<T> g, Vec<T> x, Activation activation) {
  if (activation == Activation::kNone) return g;
  const Vec<T> above_zero = keep_above(g, x, T(0));
  if (activation == Activation::kRelu) return above_zero;
  return keep_above(above_zero, mul(x, broadcast(T(-1))), T(-6));
}

// The whole stage on kCount vectors of the same channels. Inlined by force: they are registers, and a call
// would pass them through memory.
template <int kCount, class T>
[[gnu::always_inline]] inline void apply_stage(const Stage<T>& stage, int64_t c, Vec<T>* values) {
  const auto each = [&](auto&& change) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) values[i] = change(values[i]);
  };
  const Vec<T> shift = stage.shift != nullptr ? load(stage.shift + c) : zero<T>();
  if (stage.scale != nullptr) {
    const Vec<T> scale = load(stage.scale + c);
    each([&](Vec<T> x) __attribute__((always_inline)) { return fma(x, scale, shift); });
  } else if (stage.shift != nullptr) {
    each([&](Vec<T> x) __attribute__((always_inline)) { return add(x, shift); });
  }
  switch (stage.activation) {
    case Activation::kNone:
      return;
    case Activation::kHardSwish:
      return each([](Vec<T> x)
                      __attribute__((always_inline)) { return activate(x, Activation::kHardSwish); });
    default: {
      const Vec<T> high =
          broadcast(stage.activation == Activation::kRelu6 ? T(6) : std::numeric_limits<T>::infinity());
      each([&](Vec<T> x) __attribute__((always_inline)) { return min(high, max(zero<T>(), x)); });
    }
  }
}

// A stage's vectors converted into scratch: sizes first, then the copy.
template <class S>
class StageVectors {
 public:
  using T = Compute<S>;
  StageVectors(const ChannelStage& stage, int64_t channels, Scratch& scratch)
      : stage_(stage), channels_(channels), padded_(round_up(channels, Vec<T>::kLanes)) {
    if (stage.scale != nullptr) scale_ = scratch.add<T>(padded_);
    if (stage.shift != nullptr) shift_ = scratch.add<T>(padded_);
  }
  // `repeat` > 1 gives each value to that many consecutive channels (depth multiplier).
  Stage<T> prepare(Scratch& scratch, int64_t repeat = 1) const {
    return {prepare(stage_.scale, scale_, scratch, repeat), prepare(stage_.shift, shift_, scratch, repeat),
            stage_.activation};
  }

 private:
  const T* prepare(const void* from, size_t slot, Scratch& scratch, int64_t repeat) const {
    if (from == nullptr) return nullptr;
    T* to = scratch.get<T>(slot);
    if (scratch.only_counts()) return to;
    std::fill(to + channels_, to + padded_, T(0));
    stage_.wide ? copy(static_cast<const T*>(from), to, repeat)
                : copy(static_cast<const S*>(from), to, repeat);
    return to;
  }
  template <class From>
  void copy(const From* from, T* to, int64_t repeat) const {
    if (repeat == 1) return convert(from, to, channels_);
    for (int64_t c = 0; c < channels_; ++c) convert_one(from + c / repeat, to + c);
  }
  ChannelStage stage_;
  int64_t channels_, padded_;
  size_t scale_ = 0, shift_ = 0;
};
