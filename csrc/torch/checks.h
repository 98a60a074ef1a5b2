// What a caller may get wrong, said before any kernel runs: "op: argument must be ..., got ...".
// Plain std::runtime_error: STD_TORCH_CHECK would put the build machine's path and line before the message.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "core/params.h"

namespace sepconv::binding {

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;
using Sizes = std::array<int64_t, 4>;

const char* name_of(DType dtype);  // as Python names it

// Written into messages; nothing is formatted unless a check fails.
template <class Range>
struct Listed {
  const Range& range;
};
template <class Range>
std::ostream& operator<<(std::ostream& out, const Listed<Range>& list) {
  // As Python writes tuples: (2, 3), and (2,) for a single element.
  int64_t count = 0;
  out << '(';
  for (const int64_t value : list.range) out << (count++ ? ", " : "") << value;
  if (count == 1) out << ',';
  return out << ')';
}

class Checks {
 public:
  explicit Checks(const char* op) : op_(op) {}

  template <class... Parts>
  void require(bool holds, const Parts&... parts) const {
    if (holds) return;
    std::ostringstream message;
    message << op_ << ": ";
    (message << ... << parts);
    throw std::runtime_error(message.str());
  }

  void at_least(const char* name, int64_t value, int64_t least) const {
    require(value >= least, name, " must be at least ", least, ", got ", value);
  }

  // The dispatcher checks the length of neither int[2] nor bool[n]: a shorter list would be read past its
  // end.
  template <class List>
  void length(const char* name, const List& list, size_t expected) const {
    require(list.size() == expected, name, " must have ", expected, " elements, got ", list.size());
  }

  DType dtype(torch::headeronly::ScalarType type, const char* name) const;

  void dimensions(const Tensor& tensor, const char* name, int64_t expected, const char* meaning) const {
    require(tensor.dim() == expected, name, " must have ", expected, " dimensions ", meaning, ", got shape ",
            Listed{tensor.sizes()});
  }

  // (N, C, H, W): the batch may be empty, nothing else may.
  void image(const Tensor& tensor, const char* name) const {
    dimensions(tensor, name, 4, "(N, C, H, W)");
    const auto sizes = tensor.sizes();
    require(sizes[1] > 0 && sizes[2] > 0 && sizes[3] > 0, name,
            " must have at least one channel, row and column, got shape ", Listed{sizes});
  }

  void shape(const Tensor& tensor, const char* name, const Sizes& expected) const {
    const auto sizes = tensor.sizes();
    require(sizes.size() == 4 && std::equal(sizes.begin(), sizes.end(), expected.begin()), name,
            " must have shape ", Listed{expected}, ", got ", Listed{sizes});
  }

  // A bias, when there is one: a vector of `channels` elements.
  void vector(const std::optional<Tensor>& tensor, const char* name, int64_t channels) const {
    if (!tensor) return;
    require(tensor->dim() == 1 && tensor->size(0) == channels, name, " must have shape (", channels,
            ",), got ", Listed{tensor->sizes()});
  }

  // One call, one dtype and one device: those of `input`, or of the argument called `first`.
  void like_input(const Tensor& tensor, const char* name, const Tensor& input,
                  const char* first = "input") const;
  void like_input(const std::optional<Tensor>& tensor, const char* name, const Tensor& input) const {
    if (tensor) like_input(*tensor, name, input);
  }
  void on_device_of(const Tensor& tensor, const char* name, const Tensor& input,
                    const char* first = "input") const;

  Window window(std::array<int64_t, 2> kernel, const Ints& stride, const Ints& padding,
                const Ints& dilation) const;

  // (height, width) of a convolution's output.
  std::array<int64_t, 2> output_size(int64_t height, int64_t width, const Window& window) const;

  void countable(const char* name, torch::headeronly::IntHeaderOnlyArrayRef sizes, DType dtype) const;

 private:
  const char* op_;
};

}  // namespace sepconv::binding
