#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "core/cuda/row_average.h"
#include "core/cuda/row_average_conv2d.h"
#include "torch/cuda.h"
#include "torch/library.h"
#include "torch/row_average_conv2d.h"

namespace sepconv::binding {
namespace {

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Ints stride,
               Ints padding, Ints dilation, int64_t row_stride) {
  const RowAverageConv2dCall call =
      row_average_conv2d_call(input, weight, bias, stride, padding, dilation, row_stride);
  if (input.size(0) != 0) cuda::row_average_conv2d(call.params, OnDevice(input).stream);
  return call.output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                            const Tensor& weight, Ints stride, Ints padding, Ints dilation,
                                            int64_t row_stride, std::vector<bool> output_mask) {
  const Checks checks("row_average_conv2d_backward");
  const RowAverageConv2dCall call = row_average_conv2d_backward_call(
      checks, grad_output, input, weight, stride, padding, dilation, row_stride, output_mask);
  const bool empty = input.size(0) == 0;
  const OnDevice device(input);

  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) {
    grad_input = empty_image(checks, "grad_input", sizes_of(input), input);
    if (!empty) {
      Sizes sizes = sizes_of(input);
      sizes[2] = row_average_size(sizes[2], row_stride);
      // A plain convolution's, whose input torch asks for its shape alone.
      const auto [averaged, none] =
          library::convolution_backward(grad_output, empty_image(checks, "averaged", sizes, input),
                                        call.weight, true, false, {stride, padding, dilation});
      RowAverageParams params;
      params.dtype = call.params.dtype;
      params.row_stride = row_stride;
      params.input = read_from(averaged);
      params.output = write_to(grad_input);
      cuda::row_average_backward(params, device.stream);
    }
  }
  if (output_mask[1]) {
    grad_weight = empty_weight(checks, "grad_weight", sizes_of(weight), input);
    if (empty) {
      zero(grad_weight);
    } else {
      const Tensor workspace = empty_bytes(
          checks, "workspace", cuda::workspace_of_row_average_conv2d_weight_gradient(call.params), input);
      cuda::row_average_conv2d_weight_gradient(call.params, grad_weight.mutable_data_ptr(),
                                               workspace.mutable_data_ptr(), device.stream);
    }
  }
  if (output_mask[2]) {
    grad_bias = library::sum_of_channels(grad_output);
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace sepconv::binding

STABLE_TORCH_LIBRARY_IMPL(sepconv, SEPCONV_CUDA_KEY, m) {
  m.impl("row_average_conv2d", TORCH_BOX(&sepconv::binding::forward));
  m.impl("row_average_conv2d_backward", TORCH_BOX(&sepconv::binding::backward));
}
