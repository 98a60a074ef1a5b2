"""Counts the instructions that the NEON kernels execute for layers, under emulation: counts, not times.

    cmake --preset aarch64 -DSEPCONV_BENCHMARKS=ON && cmake --build --preset aarch64
    python benchmarks/arm_counts.py
    python benchmarks/arm_counts.py --shapes mobilenetv2

Layers run with frozen weights by `sepconv_bench --runs` under qemu with a plugin (arm_counts.c): twice and
once, so that the difference is one run, without what comes before it. Functions of the core count. An
instruction counts once, whatever it takes on which core. `due` are the multiply-adds of both convolutions in
vectors of four.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import harness
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
EMULATOR = "qemu-aarch64"  # the one of Debian's qemu-user: the static one takes no plugins
LIBRARIES = "/usr/aarch64-linux-gnu"
LANES = 4
PRODUCT = "multiply_tile"


class Kind(NamedTuple):
    """Instructions of one kind in one function, as a line of the plugin has them."""

    mnemonic: str
    registers: str  # v: whole vectors, s: single floating-point values, -: neither
    function: str


@dataclass(frozen=True)
class LayerCounts:
    """What one run of a layer executed."""

    name: str
    due: int
    fma: int
    vector: int
    product_fma: int
    product_vector: int
    single: int  # arithmetic on single floating-point values

    @property
    def share(self) -> float:
        """Multiply-adds among the vector instructions."""
        return self.fma / self.vector

    @property
    def product_share(self) -> float:
        """The same in the register tiles of the pointwise convolution."""
        return self.product_fma / self.product_vector


def read_counts(path: Path) -> Counter[Kind]:
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return Counter({Kind(*words): int(count) for count, *words in rows})


def counts_of(name: str, multiply_adds: int, executed: Mapping[Kind, int]) -> LayerCounts:
    totals: Counter[str] = Counter()
    for kind, count in executed.items():
        fma = kind.mnemonic in ("fmla", "fmls")
        if kind.registers == "v":
            for place in ["", "product_"] if PRODUCT in kind.function else [""]:
                totals[place + "vector"] += count
                totals[place + "fma"] += count * fma
        elif kind.registers == "s" and not kind.mnemonic.startswith(("ld", "st", "mov", "fmov", "dup")):
            totals["single"] += count
    columns = ("fma", "vector", "product_fma", "product_vector", "single")
    return LayerCounts(name, -(-multiply_adds // LANES), **{column: totals[column] for column in columns})


def why_not() -> str | None:
    """What is missing here to count, or None."""
    for tool, package in ((EMULATOR, "qemu-user"), ("cc", "gcc")):
        if shutil.which(tool) is None:
            return f"{tool} is not on the PATH (Debian: {package})"
    said = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"version (\d+)\.", said)
    if version is None or int(version[1]) >= 9:
        return f"{EMULATOR} must be older than 9.0, whose plugins are others, got {said.splitlines()[0]}"
    return None


def layers_of(shapes: Path) -> list[tuple[str, str]]:
    """(name, a shape file of this layer alone)."""
    layers, stages = [], ""
    for line in shapes.read_text().splitlines():
        if line.startswith("stages:"):
            stages = line + "\n"
        elif line.strip() and not line.startswith("#"):
            layers.append((line.split()[0], f"{stages}{line}\n"))
    return layers


def count(bench: Path, shapes: Path, core: str) -> list[LayerCounts]:
    """What one run of every layer of the file executes."""
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plugin, layer_file, out = (folder / name for name in ("arm_counts.so", "layer.txt", "counts.tsv"))
        compiled = ["-O2", "-shared", "-fPIC", "-o", plugin, FOLDER / "arm_counts.c"]
        subprocess.run(["cc", *compiled], check=True)
        emulated = [EMULATOR, "-cpu", core, "-L", LIBRARIES, "-plugin", f"{plugin},out={out},only=7sepconv"]
        for name, layer in tqdm(layers_of(shapes), unit="layer", disable=None):
            layer_file.write_text(layer)
            executed = {}
            for runs in (1, 2):
                said = subprocess.run(
                    [*emulated, bench, "--runs", str(runs), layer_file], capture_output=True, text=True
                )
                if said.returncode != 0:
                    raise RuntimeError(f"{name}: {said.stderr}")
                executed[runs] = read_counts(out)
            results.append(counts_of(name, int(said.stdout.split()[-1]), executed[2] - executed[1]))
    return results


def table(layers: Iterable[LayerCounts]) -> str:
    header = ["layer", "due", "multiply-adds", "vector instructions", "share", "in the product", "singles"]
    rows = [
        [
            *(one.name, f"{one.due:,}", f"{one.fma:,}", f"{one.vector:,}"),
            *(f"{one.share:.0%}", f"{one.product_share:.0%}", f"{one.single:,}"),
        ]
        for one in layers
    ]
    return harness.table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", nargs="?", type=Path, default=Path("build/aarch64"), help="(%(default)s)")
    parser.add_argument("--shapes", default="xception", help="a file of shapes/, or a path (%(default)s)")
    parser.add_argument("--core", default="cortex-a53", help="that qemu pretends to be (%(default)s)")
    args = parser.parse_args()
    bench, shapes = args.build / "sepconv_bench", FOLDER / "shapes" / f"{args.shapes}.txt"
    if not bench.is_file():
        sys.exit(f"error: {bench}: no such file; build the aarch64 preset with -DSEPCONV_BENCHMARKS=ON first")
    if (reason := why_not()) is not None:
        sys.exit(f"error: {reason}")
    if not shapes.is_file():
        shapes = Path(args.shapes)
    try:
        print(table(count(bench, shapes, args.core)))
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
