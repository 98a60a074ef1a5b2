// Random calls of every entry point of the core against float64 (see sweep.h):
//   test_core_sweep [cases] [seed]
#include <cstdint>
#include <cstdlib>

#include "sweep.h"

int main(int argc, char** argv) {
  sweep({separable_conv2d, separable_conv2d_backward, row_average, row_average_backward, row_average_conv2d,
         row_average_conv2d_backward, packed_bytes_of_separable_conv2d, pack_separable_conv2d, false},
        argc > 1 ? std::atoll(argv[1]) : 600, argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
}
