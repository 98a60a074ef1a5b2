"""What the compiler made of the CUDA kernels: registers, local memory, tensor cores."""

from __future__ import annotations

from pathlib import Path

import cuda_kernels
import pytest
from profiles import nightly_only

from sepconv import _loader
from sepconv.ops import has_backend

if not has_backend("CUDA"):
    pytest.skip("the library was built without CUDA kernels", allow_module_level=True)
if cuda_kernels.cuobjdump() is None:
    pytest.skip("there is no cuobjdump: neither CUDA's nor Triton's", allow_module_level=True)

LIBRARY = Path(str(_loader.load().path))
KERNELS = list(cuda_kernels.kernels_of(LIBRARY))


def _assert_as_planned(kernels: list[cuda_kernels.Compiled]) -> None:
    """Nothing spills, and as many blocks as planned run side by side; prints what there is."""
    print(cuda_kernels.table(kernels))
    assert not [kernel for kernel in kernels if kernel.spills]
    assert not [kernel for kernel in kernels if kernel.blocks < cuda_kernels.BLOCKS[kernel.name]]


def test_every_kernel_is_there_for_every_architecture() -> None:
    assert {kernel.name for kernel in KERNELS} == set(cuda_kernels.BLOCKS)
    of_each = {
        architecture: {kernel.symbol for kernel in KERNELS if kernel.architecture == architecture}
        for architecture in {kernel.architecture for kernel in KERNELS}
    }
    assert len({frozenset(symbols) for symbols in of_each.values()}) == 1


def test_no_kernel_spills_and_the_planned_blocks_have_room() -> None:
    _assert_as_planned(KERNELS)


@nightly_only
@pytest.mark.parametrize("architecture", ["sm_86", "sm_89"])
def test_the_same_of_families_that_run_the_code_of_another(architecture: str) -> None:
    """GPUs of sm_86 and sm_89 run what is compiled for sm_80, or for them where a user asks for that."""
    from cuda_host import build

    nvcc = build.nvcc()
    if nvcc is None or not (cuda_kernels.ROOT / "csrc").is_dir():
        pytest.skip("needs nvcc and a checkout")
    _assert_as_planned(cuda_kernels.compile_for(architecture, nvcc))


def test_the_fused_kernels_multiply_on_tensor_cores() -> None:
    functions = cuda_kernels.dump(LIBRARY, "-sass").split("Function : ")[1:]
    fused = [function for function in functions if "separable_conv2d_kernel" in function.partition("\n")[0]]
    assert fused
    assert all("HMMA" in function and "LDSM" in function for function in fused)
