// NumPy arrays as the C library wants them: of one dtype, dense, of the shape that the others ask for. What
// does not fit is refused with a ValueError: "function: argument must be ..., got ...".
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sepconv.h>

#include <array>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace sepconv::edge {

namespace py = pybind11;

using Pair = std::array<int64_t, 2>;  // (height, width)
using Sizes = std::vector<int64_t>;
using MaybeArray = std::optional<py::array>;

inline Sizes sizes_of(const py::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

// "(2, 3)", as NumPy writes shapes.
struct Written {
  const Sizes& sizes;
};
inline std::ostream& operator<<(std::ostream& out, const Written& shape) {
  out << "(";
  for (size_t i = 0; i < shape.sizes.size(); ++i) out << (i == 0 ? "" : ", ") << shape.sizes[i];
  return out << (shape.sizes.size() == 1 ? ",)" : ")");
}

// An array of images, in either order.
struct Images {
  py::array array;
  int64_t batch, channels, height, width;
};

// The arguments of one call. The first image settles dtype and layout.
class Arguments {
 public:
  Arguments(const char* function, const char* name, const py::array& input, bool nhwc)
      : function_(function), layout_(nhwc ? SEPCONV_NHWC : SEPCONV_NCHW) {
    const std::string dtype = name_of(input.dtype());
    for (const auto& [known, value] : kDtypes)
      if (dtype == known) dtype_ = value, found_ = true;
    require(found_ && native(input), name, " must be float32, float64, float16 or bfloat16, got ",
            py::str(input.dtype()).cast<std::string>());
    numpy_dtype_ = input.dtype();
  }

  template <class... Parts>
  void require(bool holds, const Parts&... parts) const {
    if (holds) return;
    std::ostringstream message;
    message << function_ << ": ";
    (message << ... << parts);
    throw py::value_error(message.str());
  }

  sepconv_dtype dtype() const { return dtype_; }
  sepconv_layout layout() const { return layout_; }

  // In C order and aligned, copied where it is not.
  py::array dense(const char* name, const py::array& array) const {
    require(array.dtype().equal(numpy_dtype_), name, " must be of dtype ", name_of(numpy_dtype_), ", got ",
            py::str(array.dtype()).cast<std::string>());
    return py::module_::import("numpy").attr("require")(array, py::none(), "CAE").cast<py::array>();
  }
  py::array dense(const char* name, const py::array& array, const Sizes& shape) const {
    const Sizes got = sizes_of(array);
    require(got == shape, name, " must have shape ", Written{shape}, ", got ", Written{got});
    return dense(name, array);
  }
  py::array vector(const char* name, const py::array& array, int64_t count) const {
    return dense(name, array, {count});
  }
  Images images(const char* name, const py::array& array) const {
    const Sizes s = sizes_of(array);
    const bool nhwc = layout_ == SEPCONV_NHWC;
    require(s.size() == 4, name, " must have 4 dimensions, ", nhwc ? "(N, H, W, C)" : "(N, C, H, W)",
            ", got shape ", Written{s});
    const py::array whole = dense(name, array);
    return nhwc ? Images{whole, s[0], s[3], s[1], s[2]} : Images{whole, s[0], s[1], s[2], s[3]};
  }
  // Of a gradient that comes with a plan's output size.
  py::array images(const char* name, const py::array& array, int64_t batch, int64_t channels,
                   const sepconv_plan& plan) const {
    return dense(name, array, shape(batch, channels, plan.output_height, plan.output_width));
  }

  py::array empty_images(int64_t batch, int64_t channels, int64_t height, int64_t width) const {
    return py::array(numpy_dtype_, shape(batch, channels, height, width));
  }
  MaybeArray empty_if(bool wanted, const Sizes& shape) const {
    if (!wanted) return {};
    return py::array(numpy_dtype_, shape);
  }

  // What the C library said about this call, as an exception.
  void must(sepconv_status status) const {
    if (status == SEPCONV_OK) return;
    std::string said = sepconv_last_error();
    // Without the function of the C library, and its structure.
    if (const size_t colon = said.find(": "); colon != std::string::npos) said.erase(0, colon + 2);
    if (const std::string window = "window."; said.rfind(window, 0) == 0) said.erase(0, window.size());
    const std::string message = std::string(function_) + ": " + said;
    switch (status) {
      case SEPCONV_INVALID_ARGUMENT:
      case SEPCONV_OVERFLOW:
      case SEPCONV_NOT_BUILT:
        throw py::value_error(message);
      case SEPCONV_OUT_OF_MEMORY:
        PyErr_SetString(PyExc_MemoryError, message.c_str());
        throw py::error_already_set();
      default:
        throw std::runtime_error(message);
    }
  }

 private:
  static constexpr std::pair<const char*, sepconv_dtype> kDtypes[] = {{"float32", SEPCONV_FLOAT32},
                                                                      {"float64", SEPCONV_FLOAT64},
                                                                      {"bfloat16", SEPCONV_BFLOAT16},
                                                                      {"float16", SEPCONV_FLOAT16}};
  // By name: bfloat16 is none of NumPy's own (ml_dtypes brings it).
  static std::string name_of(const py::dtype& dtype) { return dtype.attr("name").cast<std::string>(); }
  static bool native(const py::array& array) { return array.dtype().attr("isnative").cast<bool>(); }

  Sizes shape(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return layout_ == SEPCONV_NHWC ? Sizes{n, h, w, c} : Sizes{n, c, h, w};
  }

  const char* function_;
  sepconv_layout layout_;
  sepconv_dtype dtype_ = SEPCONV_FLOAT32;
  bool found_ = false;
  py::dtype numpy_dtype_;
};

inline sepconv_window window_of(const Sizes& kernel, const Pair& stride, const Pair& padding,
                                const Pair& dilation) {
  return {
      {kernel[0], kernel[1]}, {stride[0], stride[1]}, {padding[0], padding[1]}, {dilation[0], dilation[1]}};
}

inline const void* read(const MaybeArray& array) {
  return array ? array->data() : nullptr;
}
inline void* written(MaybeArray& array) {
  return array ? array->mutable_data() : nullptr;
}

}  // namespace sepconv::edge
