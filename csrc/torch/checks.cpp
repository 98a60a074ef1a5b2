#include "torch/checks.h"

#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

#include "core/shapes.h"

namespace sepconv::binding {
namespace {

const char* name_of(torch::headeronly::DeviceType type) {
  using torch::headeronly::DeviceType;
  switch (type) {
    case DeviceType::CPU:
      return "cpu";
    case DeviceType::CUDA:
      return "cuda";
    case DeviceType::Meta:
      return "meta";
    default:
      return "another device";
  }
}

const char* name_of(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(type);
  }
}

}  // namespace

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    default:
      return "float32";
  }
}

DType Checks::dtype(torch::headeronly::ScalarType type, const char* name) const {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      require(false, name, " must be float32, float64, bfloat16 or float16, got ", name_of(type));
      return DType::kFloat32;  // never reached: require throws
  }
}

void Checks::like_input(const Tensor& tensor, const char* name, const Tensor& input,
                        const char* first) const {
  const auto type = tensor.scalar_type(), expected = input.scalar_type();
  require(type == expected, name, " must have the dtype of ", first, ", ", name_of(expected), ", got ",
          name_of(type));
  on_device_of(tensor, name, input, first);
}

void Checks::on_device_of(const Tensor& tensor, const char* name, const Tensor& input,
                          const char* first) const {
  const auto device = tensor.device(), expected = input.device();
  // "cpu" and "cpu:0" are one device.
  require(device.type() == expected.type() && (input.is_cpu() || device.index() == expected.index()), name,
          " must be on the device of ", first, ", ", name_of(expected.type()), ", got ",
          name_of(device.type()));
}

Window Checks::window(std::array<int64_t, 2> kernel, const Ints& stride, const Ints& padding,
                      const Ints& dilation) const {
  Window window;
  const auto take = [&](const char* name, const Ints& values, int64_t least, int64_t (&into)[2]) {
    length(name, values, 2);
    for (int axis = 0; axis < 2; ++axis) {
      require(values[axis] >= least && values[axis] <= kLargestWindowValue, name, " must be between ", least,
              " and ", kLargestWindowValue, ", got ", Listed{values});
      into[axis] = values[axis];
    }
  };
  require(kernel[0] > 0 && kernel[1] > 0, "kernel size must be at least 1, got ", Listed{kernel});
  std::copy(kernel.begin(), kernel.end(), window.kernel);
  take("stride", stride, 1, window.stride);
  take("padding", padding, 0, window.padding);
  take("dilation", dilation, 1, window.dilation);
  return window;
}

std::array<int64_t, 2> Checks::output_size(int64_t height, int64_t width, const Window& window) const {
  const int64_t input[2] = {height, width};
  int64_t output[2] = {};
  require(sepconv::output_size(input, window, output),
          "the dilated kernel must not be larger than the padded input, got input ", Listed{input},
          ", kernel ", Listed{window.kernel}, ", padding ", Listed{window.padding}, ", dilation ",
          Listed{window.dilation});
  return {output[0], output[1]};
}

void Checks::countable(const char* name, torch::headeronly::IntHeaderOnlyArrayRef sizes, DType dtype) const {
  int64_t bytes = 0;
  require(count_bytes(sizes, dtype, bytes), name, " of shape ", Listed{sizes},
          " would need more than 2^63 bytes");
}

}  // namespace sepconv::binding
