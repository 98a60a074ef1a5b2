"""What the compiler made of the CUDA kernels: registers, spills, and how many run side by side.

    python tests/cuda_kernels.py                        of the installed library
    python tests/cuda_kernels.py --compile sm_86 sm_89  of this checkout, compiled for these

Occupancy is computed, not measured, from the limits of "Technical Specifications per Compute Capability" in
NVIDIA's CUDA C++ Programming Guide.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

REGISTERS = 65536  # of a multiprocessor, in every family since sm_80
REGISTERS_AT_ONCE = 256  # that a warp's are rounded up to
RESERVED_SHARED = 1024  # bytes of a block


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor."""

    warps: int
    blocks: int
    shared_kib: int


LIMITS = {
    "sm_80": Limits(64, 32, 164),
    "sm_86": Limits(48, 16, 100),
    "sm_89": Limits(48, 24, 100),
    "sm_90": Limits(64, 32, 228),
    "sm_100": Limits(64, 32, 228),
    "sm_120": Limits(48, 24, 100),
}

# Threads of a block, 256 of the others.
BLOCK_THREADS = {
    "depthwise_rows_kernel": 128,
    "depthwise_rows_input_gradient_kernel": 128,
    "depthwise_rows_weight_gradient_kernel": 128,
}
# Blocks that shall run side by side, at least: kernels for wide or strided windows hold more columns, and run
# fewer.
BLOCKS = {
    "separable_conv2d_kernel": 1,
    "depthwise_rows_kernel": 2,
    "depthwise_rows_input_gradient_kernel": 2,
    "depthwise_rows_weight_gradient_kernel": 3,
    "depthwise_kernel": 2,
    "depthwise_input_gradient_kernel": 2,
    "depthwise_weight_gradient_kernel": 1,
    "sum_of_splits_kernel": 4,
    "batch_norm_kernel": 3,
    "batch_norm_sums_kernel": 4,
    "batch_norm_statistics_kernel": 4,
    "batch_norm_gradient_sums_kernel": 3,
    "batch_norm_gradient_totals_kernel": 4,
    "batch_norm_input_gradient_kernel": 2,
    "row_average_kernel": 1,
    "row_average_conv2d_kernel": 1,
    "row_average_conv2d_weight_gradient_kernel": 1,
    "row_average_conv2d_merge_kernel": 2,
}
# Bytes of shared memory, at most, of float32; of the fused kernel, whose bytes follow the channels, at 256 of
# them by tiles of 64 and 128 pixels. The blocks of other kernels are counted by registers and threads alone.
SHARED = {
    "depthwise_rows_weight_gradient_kernel": 18432,
    "depthwise_weight_gradient_kernel": 4096,
    "sum_of_splits_kernel": 1024,
    "batch_norm_sums_kernel": 8320,
    "batch_norm_statistics_kernel": 4096,
    "batch_norm_gradient_sums_kernel": 8320,
    "batch_norm_gradient_totals_kernel": 4096,
    "row_average_conv2d_weight_gradient_kernel": 18432,
    "row_average_conv2d_merge_kernel": 1024,
}
SHARED_OF_FUSED = {"ELi64E": 67072, "ELi128E": 101376}
# Bytes of stack, at most. The compiler for sm_100 and later needs a few registers more, most of all for wide
# windows, than those that leave room for the planned blocks.
STACK = {"sm_100": 80, "sm_120": 80}


@functools.cache
def cuobjdump() -> Path | None:
    """Return CUDA's own, or the one that Triton brings."""
    if found := shutil.which("cuobjdump"):
        return Path(found)
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    own = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return own if own.is_file() else None


def dump(binary: Path, option: str) -> str:
    command = [str(cuobjdump()), option, str(binary)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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

    @property
    def warps(self) -> int:
        """Of a block."""
        return BLOCK_THREADS.get(self.name, 256) // 32

    @property
    def blocks(self) -> int:
        """How many one multiprocessor has room for."""
        limits = LIMITS[self.architecture]
        of_warp = -(-self.registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
        shared = SHARED.get(self.name, 0) + RESERVED_SHARED
        if self.name == "separable_conv2d_kernel":
            shared += next(size for mark, size in SHARED_OF_FUSED.items() if mark in self.symbol)
        return min(
            REGISTERS // of_warp // self.warps,
            limits.warps // self.warps,
            limits.blocks,
            limits.shared_kib * 1024 // shared,
        )

    @property
    def occupancy(self) -> float:
        """Warps over as many as a multiprocessor can hold."""
        return self.blocks * self.warps / LIMITS[self.architecture].warps

    @property
    def spills(self) -> bool:
        return self.stack > STACK.get(self.architecture, 0) or self.local > 0


def kernels_of(binary: Path) -> Iterator[Compiled]:
    """Every kernel in a library or a cubin, for each architecture it was compiled for."""
    architecture = symbol = ""
    for line in dump(binary, "-res-usage").splitlines():
        if found := re.search(r"arch = (sm_\w+)", line):
            architecture = found[1]
        elif found := re.search(r"Function (\S+):", line):
            symbol = found[1]
        elif found := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            yield Compiled(architecture, symbol, *map(int, found.groups()))


def compile_for(architecture: str, nvcc: Path) -> list[Compiled]:
    """The kernels of this checkout, by nvcc and ptxas."""
    found: list[Compiled] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc" / "core" / "cuda").glob("*.cu")):
            cubin = Path(folder, source.with_suffix(".cubin").name)
            command = [
                str(nvcc),
                "-std=c++20",
                "-O3",
                f"-arch={architecture}",
                f"-I{ROOT / 'csrc'}",
                "-cubin",
            ]
            subprocess.run([*command, str(source), "-o", str(cubin)], check=True)
            found += [
                Compiled(architecture, k.symbol, k.registers, k.stack, k.local) for k in kernels_of(cubin)
            ]
    return found


def table(kernels: list[Compiled]) -> str:
    """A row for each name and architecture; of several instances, the range."""
    groups: dict[tuple[str, str], list[Compiled]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.architecture, kernel.name].append(kernel)
    lines = [
        "| architecture | kernel | instances | registers | stack, bytes | blocks side by side | occupancy |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for (architecture, name), group in sorted(groups.items()):

        def span(values: list[int]) -> str:
            least, most = min(values), max(values)
            return str(least) if least == most else f"{least}-{most}"

        lines.append(
            f"| {architecture} | {name} | {len(group)} | {span([k.registers for k in group])} |"
            f" {span([k.stack for k in group])} | {span([k.blocks for k in group])} |"
            f" {span([round(100 * k.occupancy) for k in group])}% |"
        )
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--compile", nargs="+", choices=LIMITS, metavar="sm_XY", help=", ".join(LIMITS))
    arguments = options.parse_args()
    if cuobjdump() is None:
        sys.exit("there is no cuobjdump: neither CUDA's nor Triton's")
    if arguments.compile:
        from cuda_host import build

        nvcc = build.nvcc()
        if nvcc is None:
            sys.exit("there is no nvcc: set CUDA_HOME, or put it on the PATH")
        kernels = [kernel for name in arguments.compile for kernel in compile_for(name, nvcc)]
    else:
        from sepconv import _loader

        library = _loader.load().path
        if library is None:
            sys.exit("sepconv's compiled library is missing")
        kernels = list(kernels_of(library))
    print(table(kernels))


if __name__ == "__main__":
    main()
