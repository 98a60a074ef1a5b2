// The depthwise convolution alone, and its gradients: what the separable convolution is made of where one
// kernel cannot do both stages.
#pragma once
#include <string>

#include "core/cuda/launch.h"
#include "core/params.h"

namespace sepconv::cuda {

struct DepthwiseParams {
  DType dtype = DType::kFloat32;
  Window window;
  int64_t multiplier = 1;        // output channels of one input channel
  const void* weight = nullptr;  // (channels * multiplier, 1, kh, kw), contiguous
  const void* bias = nullptr;    // of the forward, or null
  // On load of the input, by the forward and the weight gradient; vectors of the compute type. Only where
  // loads_prologue says so may it be more than the identity.
  ChannelStage prologue;
  Image input;   // or grad_input
  Image output;  // or grad_output
};

// Whether there are kernels for this call that apply a prologue on load: those for 3x3 windows of NHWC
// images.
bool loads_prologue(const DepthwiseParams& params);

void depthwise(const DepthwiseParams& params, Stream stream);

// What would run for these shapes and strides, in words: the forward, and the gradient of the weight.
std::string describe_depthwise(const DepthwiseParams& params);

// Writes params.input from params.output.
void depthwise_input_gradient(const DepthwiseParams& params, Stream stream);

// Writes grad_weight, as contiguous as the weight, from params.input and params.output.
int64_t workspace_of_depthwise_weight_gradient(const DepthwiseParams& params);  // bytes
void depthwise_weight_gradient(const DepthwiseParams& params, void* grad_weight, void* workspace,
                               Stream stream);

}  // namespace sepconv::cuda
