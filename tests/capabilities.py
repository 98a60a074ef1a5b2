"""The instruction sets that sepconv has kernels for; a machine runs some of them."""

ALL = ("scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon", "neon_bf16")
# These differ from the level below in separable convolutions of bfloat16 alone.
BFLOAT16 = ("avx512_bf16", "amx", "neon_bf16")
