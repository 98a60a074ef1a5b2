// Instruction sets: which exist in this build, which this CPU has, and which one the kernels use.
#pragma once
#include <string>
#include <vector>

namespace sepconv {

enum class Isa : int { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx, kNeon, kNeonBf16 };

const char* name_of(Isa isa);  // "scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon", "neon_bf16"
bool parse_isa(const std::string& name, Isa& isa);
std::vector<Isa> available_isas();  // built for this architecture and supported by this CPU, weakest first
Isa current_isa();                  // the fastest available one, capped by SEPCONV_CPU_CAPABILITY or set_isa
void set_isa(Isa isa);              // throws std::runtime_error when it is not available

}  // namespace sepconv
