"""Times the three-row average, alone and inside the first convolution of a network.

    python benchmarks/average.py --core
    python benchmarks/average.py --malloc raised --bytes 100000000

Alone it only moves memory: its rate is compared with that of a copy of as many bytes, which takes turns with
it. Inside a convolution it should cost next to nothing: besides stock's two operators, stock's convolution
without the average takes part, which has less to do. Every contestant is checked against float64 before it is
timed.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import peers
import probe
import torch
from torch import Tensor
from torch.nn import functional as F

import sepconv

BASELINE = "sepconv"
IMAGES = ((3, 299, 299), (64, 56, 56))  # row averages of these sizes, as many as fill --bytes
STEMS = {"299x299": (1, 3, 299, 299), "32x32, batch 64": (64, 3, 32, 32)}
STRIDE = 2


@dataclass(frozen=True)
class Entry:
    """A contestant: what it calls, on which memory format, and what that is in stock PyTorch."""

    call: Callable[..., Tensor]
    memory_format: torch.memory_format
    specification: Callable[..., Tensor]


def both_formats(
    entries: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]],
) -> dict[str, Entry]:
    """Each (call, specification) in NHWC and, under its name with '-nchw', in NCHW."""
    formats = {"": torch.channels_last, "-nchw": torch.contiguous_format}
    return {
        name + suffix: Entry(call, form, specification)
        for name, (call, specification) in entries.items()
        for suffix, form in formats.items()
    }


def stock_average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, (3, 1), (1, 1), (1, 0), count_include_pad=False)


def stock_conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, stride=STRIDE)


def stock_pair(x: Tensor, weight: Tensor) -> Tensor:
    return stock_conv(stock_average(x), weight)


def fused(x: Tensor, weight: Tensor) -> Tensor:
    return sepconv.row_average_conv2d(x, weight, stride=STRIDE)


AVERAGES = both_formats(
    {"sepconv": (sepconv.row_average, stock_average), "stock": (stock_average, stock_average)}
)
CONVOLUTIONS = both_formats(
    {
        "sepconv": (fused, stock_pair),
        "stock": (stock_pair, stock_pair),
        "stock-conv-alone": (stock_conv, stock_conv),
    }
)


# The core by itself -----------------------------------------------------------------------------------------


def core_library() -> ctypes.CDLL:
    """csrc/core with core.cpp, compiled at the first use: it lets the average be left out."""
    root = harness.ROOT / "csrc"
    files = [path for path in (root / "core").rglob("*") if path.is_file()]
    names = [line.strip() for line in (root / "core" / "sources.txt").read_text().splitlines()]
    sources = [root / name for name in names if name and not name.startswith("#")]
    flags = ["-fno-wrapv", "-fopenmp", f"-I{root}"]
    target = probe.compiled("core", [Path(__file__).with_name("core.cpp"), *sources], flags, files)
    if target is None:
        raise SystemExit("--core: csrc/core does not compile here; is there a C++20 compiler with OpenMP?")
    library = ctypes.CDLL(str(target))
    sizes, pointer, number = ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p, ctypes.c_int64
    library.dense_conv2d.argtypes = [ctypes.c_int, number, ctypes.c_bool, sizes, sizes, number, number]
    library.dense_conv2d.argtypes += [pointer] * 3
    library.dense_conv2d.restype = None
    return library


def core_entries(threads: int) -> dict[str, Entry]:
    """The kernel behind row_average_conv2d, with its average and without, on threads of its own."""
    library = core_library()

    def convolve(row_stride: int) -> Callable[[Tensor, Tensor], Tensor]:
        def run(x: Tensor, weight: Tensor) -> Tensor:
            channels_last = x.is_contiguous(memory_format=torch.channels_last)
            form = torch.channels_last if channels_last else torch.contiguous_format
            kernel = weight.shape[2]
            size = [(extent - kernel) // STRIDE + 1 for extent in x.shape[2:]]
            output = torch.empty(x.shape[0], weight.shape[0], *size, memory_format=form)
            weight = weight.contiguous()
            shapes = ((ctypes.c_int64 * 4)(*tensor.shape) for tensor in (x, output))
            arrays = (tensor.data_ptr() for tensor in (x, weight, output))
            library.dense_conv2d(threads, row_stride, channels_last, *shapes, kernel, STRIDE, *arrays)
            return output

        return run

    return both_formats(
        {"core": (convolve(1), stock_pair), "core-without-average": (convolve(0), stock_conv)}
    )


# Measurement ------------------------------------------------------------------------------------------------


def contestant(name: str, entry: Entry, *tensors: Tensor) -> Callable[[], Tensor]:
    """`entry` on these tensors, after its result for the first image was compared with float64."""
    arguments = [tensor.contiguous(memory_format=entry.memory_format) for tensor in tensors]

    def run() -> Tensor:
        with torch.inference_mode():
            return entry.call(*arguments)

    first = [tensors[0][:1], *tensors[1:]]
    exact, bounds = (
        entry.specification(*(transform(tensor.double()) for tensor in first))
        for transform in (torch.clone, torch.abs)
    )
    peers.check(name, (run()[:1],), (exact,), (bounds,), torch.float32)
    return run


def measure_row(
    name: str, runs: dict[str, Callable[[], object]], args: argparse.Namespace, **facts: Any
) -> dict[str, Any]:
    seconds, rates = harness.steadily(
        lambda: harness.interleave(runs, args.rounds, args.sample_ms),
        args.threads,
        isa=harness.cpu_capability(),
    )
    row = {"name": name, "probe": rates, "contestants": harness.compare(seconds, BASELINE), **facts}
    for suffix in ("", "-nchw"):
        if f"core{suffix}" in seconds:
            pairs = zip(seconds[f"core{suffix}"], seconds[f"core-without-average{suffix}"], strict=True)
            row[f"average_costs{suffix}"] = harness.spread([averaged / plain for averaged, plain in pairs])
    return row


def measure(args: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    averages, convolutions = [], []
    for shape in IMAGES:
        channels, height, width = shape
        count = -(-args.bytes // (2 * 4 * channels * height * width))
        x = torch.randn(count, *shape, generator=generator)
        runs = {name: contestant(name, entry, x) for name, entry in AVERAGES.items()}
        runs["copy"] = probe.copier(args.threads, x.nbytes)
        name = f"row_average of {count} x {'x'.join(map(str, shape))}"
        averages.append(measure_row(name, runs, args, bytes=2 * x.nbytes))
        del x, runs
    entries = CONVOLUTIONS | (core_entries(args.threads) if args.core else {})
    for name, shape in STEMS.items():
        x = torch.randn(shape, generator=generator)
        weight = torch.randn(32, 3, 3, 3, generator=generator) / 27**0.5
        runs = {label: contestant(label, entry, x, weight) for label, entry in entries.items()}
        name = f"row_average_conv2d 3→32, stride 2, {name}"
        convolutions.append(measure_row(name, runs, args))
    return {"averages": averages, "convolutions": convolutions}


def _label(row: dict[str, Any]) -> str:
    return row["name"] + ("" if row["probe"]["steady"] else " ~")


def _rate(row: dict[str, Any], name: str) -> str:
    """GB/s, and how that compares with the copy."""
    milliseconds = row["contestants"][name]["ms"]["median"]
    gbps = f"{row['bytes'] / milliseconds / 1e6:.1f}"
    return (
        gbps
        if name == "copy"
        else f"{gbps} ({row['contestants']['copy']['ms']['median'] / milliseconds:.0%})"
    )


def table(run: dict[str, Any]) -> str:
    """Rates of the averages against the copy's, then times of the convolutions, a line a contestant."""
    averages, convolutions = run["averages"], run["convolutions"]
    names = list(averages[0]["contestants"])
    alone = harness.table(
        ["GB/s (of the copy)", *names],
        [[_label(row), *(_rate(row, name) for name in names)] for row in averages],
    )
    inside = harness.table(
        ["ms", *map(_label, convolutions)],
        [
            [name, *(harness.time_and_ratio(row["contestants"][name]) for row in convolutions)]
            for name in convolutions[0]["contestants"]
        ],
    )
    costs = [
        f"{row['name']}{suffix}: the kernel with its average takes "
        f"{harness.times(row[f'average_costs{suffix}']['median'])} the time of the kernel without"
        for row in convolutions
        for suffix in ("", "-nchw")
        if f"average_costs{suffix}" in row
    ]
    return "\n\n".join([alone, inside, *(["\n".join(f"- {cost}" for cost in costs)] if costs else [])])


def main() -> None:
    options = harness.parser(__doc__, rounds=9)
    options.add_argument(
        "--bytes",
        type=harness.positive,
        default=4 * probe.last_level_cache(),
        help="of input and output of the average alone (four times the last-level cache: %(default)s)",
    )
    options.add_argument(
        "--sample-ms", type=float, default=20, help="a timed sample lasts about this (%(default)s)"
    )
    options.add_argument(
        "--core",
        action="store_true",
        help="also the kernel by itself, with and without its average; compiles it once, in a minute or two",
    )
    args = options.parse_args()
    harness.prepare(args)
    run = harness.record("average", args, **measure(args))
    print(harness.describe(run), table(run), sep="\n")
    harness.warn_if_reference()
    if args.json:
        harness.save(run, args.json)


if __name__ == "__main__":
    main()
