// The calls of test_core_sweep on the AMX kernels alone, on a CPU without AMX (see amx_host.h):
//   test_amx_sweep [cases] [seed]
// Exits with 77 where the CPU lacks what else these kernels need.
#include "amx_host.h"
#include "cpp/sweep.h"

namespace {

int64_t products_of_forward = 0, products_of_backward = 0;

void forward(const SeparableConv2dParams& p, const Parallel& parallel) {
  const int64_t before = amx_host::products();
  separable_conv2d(p, parallel);
  products_of_forward += amx_host::products() - before;
}
void backward(const SeparableConv2dBackwardParams& q, const Parallel& parallel) {
  const int64_t before = amx_host::products();
  separable_conv2d_backward(q, parallel);
  products_of_backward += amx_host::products() - before;
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  const Isa strongest = available_isas().back();
  if (strongest != Isa::kAmx) {
    std::printf("SKIPPED: beside tiles the kernels need avx512_bf16, and this CPU has no more than %s\n",
                name_of(strongest));
    return kSkipped;
  }
  sweep({forward, backward, row_average, row_average_backward, row_average_conv2d,
         row_average_conv2d_backward, packed_bytes_of_separable_conv2d, pack_separable_conv2d, false},
        argc > 1 ? std::atoll(argv[1]) : 600, argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1,
        {Isa::kAmx});
  std::printf("products of tiles: %ld in forwards, %ld in backwards\n",
              static_cast<long>(products_of_forward), static_cast<long>(products_of_backward));
  return products_of_forward > 0 && products_of_backward > 0 ? 0 : 1;
}
