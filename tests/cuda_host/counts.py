"""What the main CUDA kernels ask of a GPU's memory, counted in emulation from nvcc's own PTX.

    python tests/cuda_host/counts.py    prints the table of docs/gpu.md

Counts, not times. Shared memory: wavefronts over those that so many words need at least; more are conflicts
of banks. Global memory: sectors of 32 bytes over those that the bytes fill.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Call:
    """A kernel and what runs it; ratios that its stores may have, which are 1.1 unless something is said."""

    kernel: str
    text: str
    shared_store: float = 1.1
    global_store: float = 1.1


STAGING = 4.0  # of weights or rows, once a block: four taps of a channel have one bank
CALLS = {
    "fused forward, 3x3, float16": Call("separable_conv2d_kernel", "forward(float16, 128, 20, 3, 1)"),
    "depthwise, 3x3, float16": Call("depthwise_rows_kernel", "forward(float16, 128, 20, 3, 1)"),
    "depthwise, 3x3, stride 2, float32": Call("depthwise_rows_kernel", "forward(float32, 128, 20, 3, 2)"),
    "depthwise, 5x5, float32": Call("depthwise_rows_kernel", "forward(float32, 128, 20, 5, 1)", STAGING),
    "depthwise, 7x7, bfloat16": Call("depthwise_rows_kernel", "forward(bfloat16, 128, 20, 7, 1)", STAGING),
    "input gradient, 3x3, stride 2, float16": Call(
        "depthwise_rows_input_gradient_kernel", "backward(float16, 128, 20, 3, 2)"
    ),
    "weight gradient, 3x3, float16": Call(
        "depthwise_rows_weight_gradient_kernel", "backward(float16, 128, 20, 3, 1)"
    ),
    "weight gradient, 5x5, float32": Call(
        "depthwise_weight_gradient_kernel", "backward(float32, 128, 20, 5, 1)"
    ),
    "depthwise behind a batch norm, float16": Call("depthwise_rows_kernel", "chain(float16, 128, 20)"),
    "its weight gradient, float16": Call("depthwise_rows_weight_gradient_kernel", "chain(float16, 128, 20)"),
    "sums of a batch norm, float16": Call("batch_norm_sums_kernel", "chain(float16, 128, 20)"),
    "sums of its gradient, float16": Call("batch_norm_gradient_sums_kernel", "chain(float16, 128, 20)"),
    "its input gradient, float16": Call("batch_norm_input_gradient_kernel", "chain(float16, 128, 20)"),
    "row average, float16": Call("row_average_kernel", "average(float16, 128, 20)"),
    # A thread stores eight channels of a pixel in halves of a sector.
    "averaged convolution, 3 to 32, float32": Call(
        "row_average_conv2d_kernel", "averaged(float32, 97)", STAGING, global_store=2.0
    ),
    "its weight gradient": Call(
        "row_average_conv2d_weight_gradient_kernel", "averaged(float32, 97)", shared_store=1.2
    ),
}

PROGRAM = """
import sys, torch, sepconv
from dataclasses import replace
from torch import float16, bfloat16, float32
torch.ops.load_library(sys.argv[1])
ops = torch.ops.sepconv

def image(dtype, channels, size):
    return torch.zeros(1, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)

def weights(dtype, channels, kernel):
    return (
        torch.zeros(channels, 1, kernel, kernel, dtype=dtype),
        torch.zeros(channels, channels, 1, 1, dtype=dtype),
    )

def forward(dtype, channels, size, kernel, stride):
    given, both = image(dtype, channels, size), weights(dtype, channels, kernel)
    ops.separable_conv2d(given, *both, None, None, [stride] * 2, [kernel // 2] * 2)

def backward(dtype, channels, size, kernel, stride):
    gradient, given = image(dtype, channels, (size - 1) // stride + 1), image(dtype, channels, size)
    window = [stride] * 2, [kernel // 2] * 2, [1, 1]
    mask = [True, True, False, False, False]
    ops.separable_conv2d_backward(gradient, given, *weights(dtype, channels, kernel), None, *window, mask)

def chain(dtype, channels, size):
    both = [weight.requires_grad_() for weight in weights(dtype, channels, 3)]
    norm = lambda: sepconv.ChainUnit(torch.ones(channels), torch.zeros(channels))
    units = [norm(), replace(norm(), depthwise_weight=both[0], pointwise_weight=both[1], padding=1)]
    sepconv.conv_chain(image(dtype, channels, size).requires_grad_(), units).sum().backward()

def average(dtype, channels, size):
    ops.row_average(image(dtype, channels, size), 1)

def averaged(dtype, size):
    given, weight = image(dtype, 3, size), torch.zeros(32, 3, 3, 3, dtype=dtype)
    output = ops.row_average_conv2d(given, weight, None, [2, 2], [0, 0], [1, 1], 1)
    ops.row_average_conv2d_backward(output, given, weight, [2, 2], [0, 0], [1, 1], 1, [False, True, False])

"""


@dataclass
class Cost:
    """Transactions, and how many would do."""

    transactions: int = 0
    needed: int = 0

    @property
    def ratio(self) -> float:
        return self.transactions / self.needed if self.needed else 1.0


Costs = dict[str, Cost]  # of "shared load", "shared store", "global load" and "global store"


def read(path: Path, kernel: str, arguments: str = "") -> Costs:
    """The costs of this kernel from a file that the emulator wrote.

    `arguments` are those of the template, as symbols have them.
    """
    costs: Costs = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if f"{len(kernel)}{kernel}{arguments}" in row["kernel"]:  # a symbol has the length before a name
                cost = costs.setdefault(f"{row['space']} {row['access']}", Cost())
                cost.transactions += int(row["transactions"])
                cost.needed += int(row["needed"])
    return costs


def measure(library: Path, name: str) -> Costs:
    """Runs one of CALLS on the emulated kernels of `library`."""
    call = CALLS[name]
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "counts.csv")
        environment = os.environ | {
            "SEPCONV_CUDA_HOST_COUNTS": str(counts),
            "SEPCONV_CUDA_PATH": "fused" if name.startswith("fused") else "stages",
            "OMP_NUM_THREADS": "1",
        }
        subprocess.run([sys.executable, "-c", PROGRAM + call.text, str(library)], env=environment, check=True)
        return read(counts, call.kernel)


def table(library: Path) -> str:
    places = ("shared load", "shared store", "global load", "global store")
    lines = [
        "| transactions (over those needed) | " + " | ".join(places) + " |",
        "| :-- |" + " --: |" * len(places),
    ]
    for name in CALLS:
        costs = measure(library, name)
        cells = [
            f"{costs[place].transactions:,} ({costs[place].ratio:.2f}x)" if place in costs else "-"
            for place in places
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    from build import build

    print(table(build("library", "ptx")))
