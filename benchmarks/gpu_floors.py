"""Floors below the times of gpu.py: the least that arithmetic and bytes take, measured or by data sheets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import harness
import layer_shapes
from gpu_device import DTYPES
from layer_shapes import Layer


@dataclass(frozen=True)
class Machine:
    """GB/s, and TFLOP/s by dtype: dense matrix products, 'float32' without tensor cores."""

    name: str
    gbps: float
    tflops: dict[str, float]

    def ms(self, flops: float, moved: float, dtype: str) -> float:
        return 1e3 * max(flops / self.tflops[dtype] / 1e12, moved / self.gbps / 1e9)


# From NVIDIA's data sheets: SXM modules, without sparsity.
SHEETS = (
    Machine("H100", 3350, {"bfloat16": 989, "float16": 989, "tf32": 495, "float32": 67}),
    Machine("A100", 2039, {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}),
)


def moved_bytes(layer: Layer, batch: int, dtype: str, backward: bool = False) -> int:
    """Each tensor once a pass; the backward reads input, weights, grad_output and writes gradients."""
    elements = layer.elements(batch)
    if backward:
        outputs = batch * layer.out_channels * math.prod(layer.output_size)
        elements = 3 * elements - outputs
    return elements * DTYPES[dtype][0].itemsize


def predicted(machine: Machine, layer: Layer, batch: int, dtype: str) -> tuple[float, float, int, int]:
    """Forward pass, fused and as two kernels: milliseconds of both, bytes of both."""
    size, pixels = DTYPES[dtype][0].itemsize, batch * math.prod(layer.output_size)
    fused, between = moved_bytes(layer, batch, dtype), pixels * layer.middle_channels * size
    pointwise = 2 * pixels * layer.middle_channels * layer.out_channels
    pointwise_bytes = between + (pixels + layer.middle_channels) * layer.out_channels * size
    depthwise_bytes = fused + 2 * between - pointwise_bytes
    # No matrix product helps the depthwise convolution, whose arithmetic is in float32 for all of these.
    apart = machine.ms(layer.flops(batch) - pointwise, depthwise_bytes, "float32")
    apart += machine.ms(pointwise, pointwise_bytes, dtype)
    return machine.ms(layer.flops(batch), fused, dtype), apart, fused, fused + 2 * between


def label(name: str, count: int) -> str:
    return name if count == 1 else f"{name} (x{count})"


def table(shapes: str, batch: int, dtype: str) -> str:
    """What each machine's data sheet allows, layer by layer and for the network."""
    layers = layer_shapes.load(shapes)
    rows, total = [], [0.0] * (3 + 2 * len(SHEETS))

    def row(name: str, values: list[float]) -> list[str]:
        flops, fused, apart, *times = values
        cells = [f"{flops / 1e9:.1f}", f"{fused / 1e6:.0f}", f"{apart / 1e6:.0f}"]
        for one, two in zip(times[::2], times[1::2], strict=True):
            cells += [harness.milliseconds(one), harness.milliseconds(two), harness.times(two / one)]
        return [name, *cells]

    for layer in layers:
        values: list[float] = [float(layer.flops(batch))]
        for index, machine in enumerate(SHEETS):
            one, two, fused, apart = predicted(machine, layer, batch, dtype)
            values += [fused, apart, one, two] if index == 0 else [one, two]
        rows.append(row(label(layer.name, layer.count), values))
        total = [before + layer.count * value for before, value in zip(total, values, strict=True)]
    headers = [f"{shapes}, batch {batch}, {dtype}", "GFLOP", "MB fused", "MB apart"]
    for machine in SHEETS:
        headers += [f"{machine.name} fused, ms", "apart, ms", "apart / fused"]
    return harness.table(
        headers, [*rows, row(f"sum of {sum(layer.count for layer in layers)} layers", total)]
    )
