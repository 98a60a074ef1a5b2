#include "capi/checks.h"

#include <cstdarg>
#include <cstdio>

#include "core/shapes.h"

namespace sepconv::capi {
namespace {

thread_local char message[512] = "";

}  // namespace

const char* last_error() {
  return message;
}

bool Checks::require(bool holds, sepconv_status otherwise, const char* format, ...) {
  if (holds || !passed()) return holds;
  status_ = otherwise;
  int length = std::snprintf(message, sizeof(message), "%s: ", function_);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message + length, sizeof(message) - static_cast<size_t>(length), format, arguments);
  va_end(arguments);
  return false;
}

bool Checks::between(const char* name, int64_t value, int64_t least, int64_t most) {
  return require(value >= least && value <= most, SEPCONV_INVALID_ARGUMENT,
                 "%s must be between %lld and %lld, got %lld", name, static_cast<long long>(least),
                 static_cast<long long>(most), static_cast<long long>(value));
}

bool Checks::at_least(const char* name, int64_t value, int64_t least) {
  return require(value >= least, SEPCONV_INVALID_ARGUMENT, "%s must be at least %lld, got %lld", name,
                 static_cast<long long>(least), static_cast<long long>(value));
}

bool Checks::dtype(const sepconv_dtype& value) {
  const int dtype = number(value);
  bool built = true;
#ifdef SEPCONV_WITHOUT_FLOAT64
  built &= dtype != SEPCONV_FLOAT64;
#endif
#ifdef SEPCONV_WITHOUT_BFLOAT16
  built &= dtype != SEPCONV_BFLOAT16;
#endif
#ifdef SEPCONV_WITHOUT_FLOAT16
  built &= dtype != SEPCONV_FLOAT16;
#endif
  return between("dtype", dtype, 0, SEPCONV_FLOAT16) &&
         require(built, SEPCONV_NOT_BUILT, "dtype must be one that this build has (SEPCONV_DTYPES), got %d",
                 dtype);
}

bool Checks::backward() {
#ifdef SEPCONV_WITHOUT_TRAINING
  return require(false, SEPCONV_NOT_BUILT, "this build has no backward (SEPCONV_TRAINING)");
#else
  return true;
#endif
}

bool Checks::window(const sepconv_window& window) {
  const auto pair = [&](const char* name, const int64_t (&values)[2], int64_t least) {
    bool holds = true;
    for (const int64_t value : values) holds &= value >= least && value <= kLargestWindowValue;
    return require(holds, SEPCONV_INVALID_ARGUMENT,
                   "window.%s must be between %lld and %lld, got (%lld, %lld)", name,
                   static_cast<long long>(least), static_cast<long long>(kLargestWindowValue),
                   static_cast<long long>(values[0]), static_cast<long long>(values[1]));
  };
  return pair("kernel", window.kernel, 1) && pair("stride", window.stride, 1) &&
         pair("padding", window.padding, 0) && pair("dilation", window.dilation, 1);
}

bool Checks::stage(const char* name, const sepconv_stage& stage) {
  const int activation = number(stage.activation);
  return require(activation >= 0 && activation <= SEPCONV_HARD_SWISH, SEPCONV_INVALID_ARGUMENT,
                 "%s.activation must be between 0 and %d, got %d", name, SEPCONV_HARD_SWISH, activation) &&
         require(((stage.has_scale | stage.has_shift | stage.wide) & ~1) == 0, SEPCONV_INVALID_ARGUMENT,
                 "%s.has_scale, has_shift and wide must be 0 or 1, got %d, %d and %d", name, stage.has_scale,
                 stage.has_shift, stage.wide);
}

bool Checks::shift_only(const char* name, const sepconv_stage& stage) {
  return require(
      stage.has_scale == 0 && stage.activation == SEPCONV_NO_ACTIVATION, SEPCONV_INVALID_ARGUMENT,
      "%s must have neither scale nor activation in a backward, got has_scale %d and activation %d", name,
      stage.has_scale, static_cast<int>(stage.activation));
}

bool Checks::vectors(const char* name, const sepconv_stage& stage, const void* scale, const void* shift) {
  const auto vector = [&](const char* which, const void* pointer, bool wanted) {
    char full[64];
    std::snprintf(full, sizeof(full), "%s_%s", name, which);
    return matches_plan(full, pointer, wanted);
  };
  return vector("scale", scale, stage.has_scale) && vector("shift", shift, stage.has_shift);
}

bool Checks::images(const Images& of, const Window& window, int64_t (&output)[2]) {
  const int64_t input[2] = {of.rows, of.width};
  if (!countable("input", {of.batch, of.channels, of.height, of.width}, of.dtype) ||
      !require(output_size(input, window, output), SEPCONV_INVALID_ARGUMENT,
               "the dilated kernel must not be larger than the padded input, got input (%lld, %lld), "
               "kernel (%lld, %lld), padding (%lld, %lld), dilation (%lld, %lld)",
               static_cast<long long>(input[0]), static_cast<long long>(input[1]),
               static_cast<long long>(window.kernel[0]), static_cast<long long>(window.kernel[1]),
               static_cast<long long>(window.padding[0]), static_cast<long long>(window.padding[1]),
               static_cast<long long>(window.dilation[0]), static_cast<long long>(window.dilation[1])))
    return false;
  int64_t operations = 0, kept = 0;
  const int64_t factors[] = {of.batch, output[0], output[1], of.depth, of.out_channels};
  const int64_t padded[2] = {of.height + 2 * window.padding[0], of.width + 2 * window.padding[1]};
  // Rows of a gradient, which tiles of rows and panels of columns may round up.
  const int64_t ring[] = {1024, of.depth, padded[0], output[1]};
  return countable("the padded input", {1, of.channels, padded[0], padded[1]}, of.dtype) &&
         countable("the input with all its depthwise channels", {1, of.depth, of.height, of.width},
                   of.dtype) &&
         countable("output", {of.batch, of.out_channels, output[0], output[1]}, of.dtype) &&
         countable("what the output is a product of", {of.batch, of.depth, output[0], output[1]}, of.dtype) &&
         require(count_bytes(ring, of.dtype, kept), SEPCONV_OVERFLOW,
                 "the padded rows with all their depthwise channels must be far below 2^63 bytes") &&
         require(count_bytes(factors, of.dtype, operations), SEPCONV_OVERFLOW,
                 "the convolution must have fewer than 2^63 multiply-adds times bytes of a value");
}

bool Checks::countable(const char* name, const int64_t (&sizes)[4], DType dtype) {
  constexpr int64_t kMostBytes = int64_t{1} << 48;  // above what a process can address today
  int64_t bytes = 0;
  const bool fits = count_bytes(sizes, dtype, bytes) && bytes <= kMostBytes && bytes <= PTRDIFF_MAX;
  return require(fits, SEPCONV_OVERFLOW, "%s of shape (%lld, %lld, %lld, %lld) must have at most %lld bytes",
                 name, static_cast<long long>(sizes[0]), static_cast<long long>(sizes[1]),
                 static_cast<long long>(sizes[2]), static_cast<long long>(sizes[3]),
                 static_cast<long long>(kMostBytes));
}

}  // namespace sepconv::capi
