"""Counts the instructions in the loops of the NEON matrix product, as the cross compiler made them.

    cmake --preset aarch64 && cmake --build --preset aarch64
    python benchmarks/arm_loops.py

The loop of a register tile is where a pointwise convolution spends its time. These are counts, not times: an
instruction counts once, whatever it takes on which core.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import harness

OBJECT = Path("CMakeFiles/sepconv_objects.dir/csrc/core/cpu/kernels_neon.cpp.o")
OBJDUMP = "aarch64-linux-gnu-objdump"

_TILE = re.compile(r"multiply_tile<(\d+), (\d+), (true|false), (float|double)>\(")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$", re.MULTILINE)
_BRANCH = re.compile(r"^(?:b|b\.\w+|cbn?z|tbn?z)$")
_VECTOR_REGISTER = re.compile(r"\b[vqds]\d+\b")


@dataclass(frozen=True)
class TileLoop:
    """The depth loop of one register tile: how many of its instructions are what."""

    rows: int
    vectors: int
    transposed: bool  # of weight gradients: factors of adjacent rows, not of adjacent depth steps
    dtype: str
    fma: int
    load: int
    move: int  # between vector registers, or to the stack
    other: int  # of pointers, counters, prefetches

    @property
    def share(self) -> float:
        """Multiply-adds among the vector instructions."""
        return self.fma / (self.fma + self.load + self.move)


def _depth_loop(code: list[tuple[int, str, str]]) -> list[tuple[str, str]]:
    """The straight loop with the most multiply-adds."""
    best: list[tuple[str, str]] = []
    for last, (address, name, operands) in enumerate(code):
        if not _BRANCH.match(name):
            continue
        target = re.search(r"([0-9a-f]+) <", operands)
        if target is None or not code[0][0] <= int(target[1], 16) <= address:
            continue
        loop = [(n, o) for a, n, o in code[: last + 1] if a >= int(target[1], 16)]
        straight = not any(_BRANCH.match(n) or n == "bl" for n, _ in loop[:-1])
        if straight and sum(n == "fmla" for n, _ in loop) > sum(n == "fmla" for n, _ in best):
            best = loop
    return best


def tile_loops(disassembly: str) -> Iterator[TileLoop]:
    """The loops of every register tile in the output of objdump."""
    for function in re.split(r"\n\n", disassembly):
        tile = _TILE.search(function.split("\n", 1)[0])
        if tile is None:
            continue
        code = [(int(a, 16), name, operands) for a, name, operands in _INSTRUCTION.findall(function)]
        loop = _depth_loop(code)
        if not loop:
            continue  # the part of a function that the compiler moved away
        vector = [name for name, operands in loop if _VECTOR_REGISTER.search(operands)]
        fma = vector.count("fmla")
        load = sum(name.startswith("ld") for name in vector)
        yield TileLoop(
            rows=int(tile[1]),
            vectors=int(tile[2]),
            transposed=tile[3] == "true",
            dtype=tile[4],
            fma=fma,
            load=load,
            move=len(vector) - fma - load,
            other=len(loop) - len(vector),
        )


def loops_of(build: Path) -> list[TileLoop]:
    """The loops in a build folder of the aarch64 preset, the widest tiles of each kind first."""
    if not (build / OBJECT).is_file():
        raise FileNotFoundError(f"{build / OBJECT}: no such file; build the aarch64 preset first")
    if shutil.which(OBJDUMP) is None:
        raise FileNotFoundError(f"{OBJDUMP} is not on the PATH (Debian: binutils-aarch64-linux-gnu)")
    dump = subprocess.run(
        [OBJDUMP, "--disassemble", "--demangle", "--no-show-raw-insn", build / OBJECT],
        capture_output=True,
        text=True,
        check=True,
    )
    loops = list(tile_loops(dump.stdout))
    return sorted(loops, key=lambda loop: (loop.transposed, loop.dtype != "float", -loop.vectors, -loop.rows))


def table(loops: list[TileLoop]) -> str:
    """A row for the tallest tile of each width."""
    header = [
        "left factors",
        "dtype",
        "pixels x vectors",
        "multiply-adds",
        "loads",
        "moves",
        "others",
        "share",
    ]
    rows, seen = [], set()
    for loop in loops:
        kind = (loop.transposed, loop.dtype, loop.vectors)
        if kind not in seen:
            seen.add(kind)
            counts = (str(count) for count in (loop.fma, loop.load, loop.move, loop.other))
            factors = "transposed" if loop.transposed else "row-major"
            rows.append([factors, loop.dtype, f"{loop.rows} x {loop.vectors}", *counts, f"{loop.share:.0%}"])
    return harness.table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", nargs="?", type=Path, default=Path("build/aarch64"), help="(%(default)s)")
    try:
        print(table(loops_of(parser.parse_args().build)))
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
