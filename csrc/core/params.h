// What a caller hands to the core: shapes, strides, pointers and the three stages of a separable convolution,
//   prologue -> depthwise -> middle -> pointwise -> epilogue.
// Plain data: no torch, no ownership. Strides count elements, not bytes; axes of two are (height, width).
#pragma once
#include <cstdint>

#include "core/dtypes.h"

namespace sepconv {

// A 4-D tensor of logical shape (n, c, h, w) with any strides, zero and overlapping ones included.
struct Image {
  void* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
};

enum class Activation : int { kNone, kRelu, kRelu6, kHardSwish };

// y = activation(scale[channel] * x + shift[channel]); a null scale is 1, a null shift is 0.
// Batch norm folds into scale and shift; a bias is a shift.
struct ChannelStage {
  const void* scale = nullptr;
  const void* shift = nullptr;
  Activation activation = Activation::kNone;
  bool wide =
      false;  // vectors of the compute type (float, or double for float64), else of the tensors' dtype
};

// Applied to each input element when its row is loaded: the row average first, then the affine and the
// activation. Zero padding is added after it.
struct Prologue : ChannelStage {
  int64_t row_average_stride =
      0;  // 0: rows as they are; s > 0: row r is the mean of rows r*s-1, r*s, r*s+1 that exist
};

// Applied to each output element before its only store; `residual` (shape of the output) is added before the
// activation.
struct Epilogue : ChannelStage {
  Image residual;
};

struct Window {
  int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
};

// Output size of one axis of a convolution; at least 1 for every size the callers let through.
inline int64_t output_size(int64_t input, const Window& window, int axis) {
  return (input + 2 * window.padding[axis] - window.dilation[axis] * (window.kernel[axis] - 1) - 1) /
             window.stride[axis] +
         1;
}

// Rows after the 3-row average with this row stride: avg_pool2d's size for kernel 3, padding 1.
inline int64_t row_average_size(int64_t rows, int64_t row_stride) {
  return rows > 0 ? (rows - 1) / row_stride + 1 : 0;
}

// depthwise_weight: (c * depth_multiplier, 1, kh, kw), pointwise_weight: (c_out, c * depth_multiplier),
// contiguous. Either may be null, unless both come packed:
//   no depthwise weight: a 1x1 window without padding, the pointwise convolution alone with the window's
//     stride; depth_multiplier 1;
//   no pointwise weight: the output is the middle's, with c * depth_multiplier channels, and the epilogue is
//     empty.
struct SeparableConv2dParams {
  DType dtype = DType::kFloat32;
  Window window;
  int64_t depth_multiplier = 1;
  Image input;
  const void* depthwise_weight = nullptr;
  const void* pointwise_weight = nullptr;
  // Both weights as pack_separable_conv2d left them, for this instruction set; null: packed inside the call.
  const void* packed_weights = nullptr;
  Prologue prologue;
  ChannelStage middle;  // its shift is the depthwise bias
  Epilogue epilogue;    // its shift is the pointwise bias
  Image output;

  bool has_depthwise() const { return depthwise_weight != nullptr || packed_weights != nullptr; }
  bool has_pointwise() const { return pointwise_weight != nullptr || packed_weights != nullptr; }
};

// Null gradient pointers are not computed. Of the stages it takes middle.shift, epilogue.shift and a prologue
// without row average whose activation is none, ReLU or ReLU6. grad_input is the gradient of the affine part
// of the prologue: what reaches the activation's output times the activation's derivative (0 at its kinks, 1
// at NaN), not yet times the prologue's scale.
struct SeparableConv2dBackwardParams {
  SeparableConv2dParams forward;  // `output` carries the shape and strides of grad_output, and its data
  Image grad_input;
  void* grad_depthwise_weight = nullptr;
  void* grad_pointwise_weight = nullptr;
  void* grad_depthwise_bias = nullptr;
  void* grad_pointwise_bias = nullptr;
  // For a batch norm that is the prologue's affine part: its mean, of the compute type, and room for the
  // `gradient_sums` of its backward, added up from grad_input, which must be wanted then, before it is
  // rounded to its dtype.
  const void* prologue_mean = nullptr;
  double* gradient_sums = nullptr;
};

struct RowAverageParams {
  DType dtype = DType::kFloat32;
  int64_t row_stride = 1;
  Image input;   // of the forward, or grad_output of the backward
  Image output;  // of the forward, or grad_input of the backward
};

// Dense convolution whose input rows pass the prologue (row average); weight: (c_out, c, kh, kw), contiguous.
struct RowAverageConv2dParams {
  DType dtype = DType::kFloat32;
  Window window;
  Image input;
  const void* weight = nullptr;
  Prologue prologue;
  Epilogue epilogue;  // its shift is the bias
  Image output;
};

struct RowAverageConv2dBackwardParams {
  RowAverageConv2dParams forward;  // `output` carries grad_output
  Image grad_input;
  void* grad_weight = nullptr;
  void* grad_bias = nullptr;
};

}  // namespace sepconv
