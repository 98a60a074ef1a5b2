// Batch norm over batch and pixels, as training needs it: statistics of a batch, the affine map they give,
// and the gradient of both. Vectors have one value a channel in the compute type of the images.
#pragma once
#include "core/parallel.h"
#include "core/params.h"

namespace sepconv {

// mean and inverse_std = 1 / sqrt(biased variance + eps) of each channel, and with them
// scale = weight * inverse_std and shift = bias - mean * scale.
struct BatchNormStatisticsParams {
  DType dtype = DType::kFloat32;
  Image input;
  const void *weight = nullptr, *bias = nullptr;  // null: 1 and 0
  double eps = 0, momentum = 0;
  // (1 - momentum) * running + momentum * new, the new variance unbiased; null: left out.
  void *running_mean = nullptr, *running_var = nullptr;
  void *mean = nullptr, *inverse_std = nullptr, *scale = nullptr, *shift = nullptr;
};

// output = activation(scale * input + shift + residual). The output may be the memory of an input.
struct BatchNormParams {
  DType dtype = DType::kFloat32;
  Image input;
  const void *scale = nullptr, *shift = nullptr;
  Activation activation = Activation::kNone;
  Image residual;  // its data may be null
  Image output;
};

// Gradients of activation(batch norm of input) with the statistics of the batch. The activation is none, ReLU
// or ReLU6; without one, scale and shift are not read. What is null is not computed.
struct BatchNormBackwardParams {
  DType dtype = DType::kFloat32;
  Image input, grad_output;
  const void *weight = nullptr, *mean = nullptr, *inverse_std = nullptr, *scale = nullptr, *shift = nullptr;
  Activation activation = Activation::kNone;
  // Where another pass added them up: of every channel the sum of g, of grad_output past the activation, then
  // of every channel that of g * (input - mean). Null: a pass of its own does.
  const double* gradient_sums = nullptr;
  Image grad_input;  // may be the memory of input or of grad_output
  void *grad_weight = nullptr, *grad_bias = nullptr;
};

void batch_norm_statistics(const BatchNormStatisticsParams& params, const Parallel& parallel);
void batch_norm(const BatchNormParams& params, const Parallel& parallel);
void batch_norm_backward(const BatchNormBackwardParams& params, const Parallel& parallel);

}  // namespace sepconv
