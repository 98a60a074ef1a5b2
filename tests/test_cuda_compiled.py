"""What the compiler made of the CUDA kernels in the library: registers, local memory, tensor cores."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sepconv import _loader
from sepconv.ops import has_backend

if not has_backend("CUDA"):
    pytest.skip("the library was built without CUDA kernels", allow_module_level=True)


def _cuobjdump() -> str | None:
    """Return CUDA's own, or the one that Triton brings."""
    if found := shutil.which("cuobjdump"):
        return found
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    own = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(own) if own.is_file() else None


CUOBJDUMP = _cuobjdump()
if CUOBJDUMP is None:
    pytest.skip("there is no cuobjdump: neither CUDA's nor Triton's", allow_module_level=True)

REGISTERS = 65536  # of a multiprocessor, in every family since sm_80
BLOCK_THREADS = {
    "depthwise_rows_kernel": 128,
    "depthwise_rows_input_gradient_kernel": 128,
    "depthwise_rows_weight_gradient_kernel": 128,
}  # others: 256
# Blocks that run side by side on a multiprocessor, by registers, at least: kernels for wide or strided
# windows hold more columns, and run fewer.
BLOCKS = {
    "separable_conv2d_kernel": 1,
    "depthwise_rows_kernel": 2,
    "depthwise_rows_input_gradient_kernel": 2,
    "depthwise_rows_weight_gradient_kernel": 3,
    "depthwise_kernel": 2,
    "depthwise_input_gradient_kernel": 2,
    "depthwise_weight_gradient_kernel": 1,
    "sum_of_splits_kernel": 4,
    "row_average_kernel": 1,
    "row_average_conv2d_kernel": 1,
    "row_average_conv2d_weight_gradient_kernel": 1,
    "row_average_conv2d_merge_kernel": 2,
}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    architecture: str
    symbol: str
    registers: int
    stack: int
    local: int

    @property
    def name(self) -> str:
        return re.findall(r"7sepconv4cuda\d+(\w+?_kernel)", self.symbol)[0]


def _dump(option: str) -> str:
    command = [str(CUOBJDUMP), option, str(_loader.load().path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _compiled() -> Iterator[Compiled]:
    architecture = symbol = ""
    for line in _dump("-res-usage").splitlines():
        if found := re.search(r"arch = (sm_\w+)", line):
            architecture = found[1]
        elif found := re.search(r"Function (\S+):", line):
            symbol = found[1]
        elif found := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            yield Compiled(architecture, symbol, *map(int, found.groups()))


KERNELS = list(_compiled())


def test_every_kernel_is_there_for_every_architecture() -> None:
    assert {kernel.name for kernel in KERNELS} == set(BLOCKS)
    of_each = {
        architecture: {kernel.symbol for kernel in KERNELS if kernel.architecture == architecture}
        for architecture in {kernel.architecture for kernel in KERNELS}
    }
    assert len({frozenset(symbols) for symbols in of_each.values()}) == 1


# Bytes of stack, at most. The compiler for sm_100 and later needs a few registers more, most of all for wide
# windows, than those that leave room for the planned blocks.
STACK = {"sm_100": 80, "sm_120": 80}


def test_no_kernel_spills_registers() -> None:
    spilled = [
        kernel for kernel in KERNELS if kernel.stack > STACK.get(kernel.architecture, 0) or kernel.local
    ]
    assert not spilled


def test_registers_leave_room_for_the_planned_blocks() -> None:
    crowded = [
        kernel
        for kernel in KERNELS
        if kernel.registers * BLOCK_THREADS.get(kernel.name, 256) * BLOCKS[kernel.name] > REGISTERS
    ]
    assert not crowded


def test_the_fused_kernels_multiply_on_tensor_cores() -> None:
    functions = _dump("-sass").split("Function : ")[1:]
    fused = [function for function in functions if "separable_conv2d_kernel" in function.partition("\n")[0]]
    assert fused
    assert all("HMMA" in function and "LDSM" in function for function in fused)
