"""Times separable layers on an NVIDIA GPU: sepconv against stock PyTorch, and both against a floor.

    python benchmarks/gpu.py --shapes xception,mobilenetv1 --batch 32 --json gpu.json
    python benchmarks/gpu.py --backward --graph --dtypes bfloat16
    python benchmarks/gpu.py --paths --dtypes float16,bfloat16
    python benchmarks/gpu.py --training
    python benchmarks/gpu.py --floors         what data sheets promise; needs no GPU

`float32` keeps torch's TF32 flags off, `tf32` has them on. Contestants take turns in rotating order, timed by
CUDA events. A turn goes through copies of the layer's tensors, with inputs of more than twice the L2 cache;
with --graph it is one CUDA graph, without gaps between launches. Each contestant is compared with float64
before it is timed; one that is wrong is not timed.

The floor is the longer of two times: FLOPs at the rate of an 8192^3 matrix product, and input, weights and
output once at the bandwidth of a copy, both measured in the same run. Memory is the peak of one call.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_floors
import harness
import layer_shapes
import peers
import torch
from gpu_device import DTYPES, Device, allow_tf32
from gpu_floors import Machine, label
from layer_shapes import Layer
from tqdm import tqdm

BASELINE = "sepconv"
CONTESTANTS = (BASELINE, "sepconv-nchw", "stock-nhwc", "stock-nchw")
# Contestants of --paths: the baseline, on a path of its forward that the library need not choose.
PATHS = {"sepconv-fused": "fused", "sepconv-stages": "stages"}
PATH_VARIABLE = "SEPCONV_CUDA_PATH"
MAX_COPIES = 64


# Contestants ------------------------------------------------------------------------------------------------


def contestants(args: argparse.Namespace, dtype: str) -> list[str]:
    paths = PATHS if args.paths and DTYPES[dtype][0].itemsize == 2 else ()
    return [*CONTESTANTS, *paths, *(["compile"] if args.compile else [])]


@contextmanager
def path_of(name: str) -> Iterator[None]:
    """Has sepconv take the contestant's path, which it looks up in every call."""
    before = os.environ.get(PATH_VARIABLE)
    if name in PATHS:
        os.environ[PATH_VARIABLE] = PATHS[name]
    try:
        yield
    finally:
        os.environ.pop(PATH_VARIABLE, None)
        if before is not None:
            os.environ[PATH_VARIABLE] = before


def build(name: str, case: peers.Case) -> peers.Contestant:
    return peers.CONTESTANTS[BASELINE if name in PATHS else name](case)


def require_fused(device: Device, case: peers.Case) -> None:
    """Raises Unavailable where the library leaves that path: then a call allocates what is between."""
    layer = case.layer
    elements = len(case.input) * math.prod(layer.output_size) * (layer.middle_channels + layer.out_channels)
    forward = build(BASELINE, replace(case, grad_output=None))
    if device.requested_bytes(forward.run) >= elements * case.input.itemsize:
        raise peers.Unavailable("the fused kernel does not take this layer on this GPU")


def passes(
    device: Device, name: str, contestant: peers.Contestant, case: peers.Case, copies: int, graph: bool
) -> Callable[[], object]:
    """What is timed: calls on so many copies of the case's tensors."""
    each = [contestant, *(build(name, case.mapped(torch.clone)) for _ in range(copies - 1))]

    def run() -> object:
        with path_of(name):
            # All outputs at once, for these to be written to memory too.
            return [one.run() for one in each]

    return device.captured(run) if graph else run


# Layers -----------------------------------------------------------------------------------------------------


def on_device(
    device: Device, layer: Layer, dtype: torch.dtype, args: argparse.Namespace
) -> tuple[peers.Case, int]:
    """A few images, and how often to repeat them: random numbers for all take longer than the timing."""
    layer = replace(layer, stages=layer_shapes.PLAIN)
    few = peers.Case.random(layer, 1 + (args.batch - 1) % 2, dtype, backward=args.backward, threads=0)
    if args.bias:
        few = replace(few, pointwise_bias=torch.linspace(-1, 1, layer.out_channels, dtype=dtype))
    return few.mapped(lambda tensor: tensor.to(device.name)), args.batch // len(few.input)


def repeated(few: peers.Case, repeats: int) -> peers.Case:
    images = {name: getattr(few, name) for name in ("input", "grad_output")}
    return replace(few, **{name: x.repeat(repeats, 1, 1, 1) for name, x in images.items() if x is not None})


def repeated_results(results: peers.Tensors, repeats: int) -> peers.Tensors:
    """Those of the repeated case: the output and its input's gradient are images, weights' gradients sums."""
    return tuple(x.repeat(repeats, 1, 1, 1) if index < 2 else x * repeats for index, x in enumerate(results))


def measure_layer(
    device: Device, layer: Layer, dtype: str, machine: Machine, args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """One row of the record, and the seconds of each round behind it."""
    stored, _, arithmetic = DTYPES[dtype]
    allow_tf32(dtype)
    torch._dynamo.reset()
    few, repeats = on_device(device, layer, stored, args)
    case = repeated(few, repeats)
    copies = min(MAX_COPIES, 2 + 2 * device.cache_bytes // (case.input.numel() * stored.itemsize))
    # In float64 torch's backward takes seconds an image.
    exact, bounds = (repeated_results(results, repeats) for results in peers.reference(few))
    runs, memory, missing = {}, {}, {}
    for name in contestants(args, dtype):
        try:
            with path_of(name):
                if PATHS.get(name) == "fused":
                    require_fused(device, case)
                contestant = build(name, case)
                peers.check(f"{name} on {layer.name}", contestant.outputs(), exact, bounds, arithmetic)
                memory[name] = device.peak_mib(contestant.run)
            runs[name] = passes(device, name, contestant, case, copies, args.graph)
        except (AssertionError, RuntimeError, peers.Unavailable) as reason:
            missing[name] = str(reason).splitlines()[0]
    del exact, bounds
    turns = device.interleave(runs, args.rounds, args.sample_ms)
    seconds = {name: [value / copies for value in values] for name, values in turns.items()}
    flops = layer.flops(args.batch) * (3 if args.backward else 1)
    moved = gpu_floors.moved_bytes(layer, args.batch, dtype, args.backward)
    row = {
        "name": layer.name,
        "geometry": list(layer.geometry),
        "count": layer.count,
        "flops": flops,
        "bytes": moved,
        "floor_ms": machine.ms(flops, moved, dtype),
        "copies": copies,
        "contestants": harness.compare(seconds, BASELINE),
        "mib": memory,
        "missing": missing,
    }
    return row, seconds


def measure(
    device: Device, shapes: str, dtype: str, machine: Machine, args: argparse.Namespace
) -> dict[str, Any]:
    """All layers of a shape file, and their sum for the contestants that ran each of them."""
    layers, rows, rounds = layer_shapes.load(shapes), [], {}
    with tqdm(layers, disable=None, leave=False) as bar:
        for layer in bar:
            bar.set_description(f"{shapes}, {dtype}, {layer.name}")
            row, seconds = measure_layer(device, layer, dtype, machine, args)
            rows.append(row)
            for name, values in seconds.items():
                rounds.setdefault(name, []).append([layer.count * value for value in values])
            if device.cuda:
                torch.cuda.empty_cache()
    sums = {
        name: [sum(turn) for turn in zip(*values, strict=True)]
        for name, values in rounds.items()
        if len(values) == len(layers)
    }
    total = {
        "name": f"sum of {sum(layer.count for layer in layers)} layers",
        "count": 1,
        "floor_ms": sum(row["count"] * row["floor_ms"] for row in rows),
        "contestants": harness.compare(sums, BASELINE),
        "mib": {},
    }
    return {"shapes": shapes, "dtype": dtype, "rows": rows, "total": total}


def table(run: dict[str, Any], args: argparse.Namespace) -> str:
    """One row a layer: times, over sepconv's in brackets; sepconv's spread and share of the floor; memory."""
    names, lines = contestants(args, run["dtype"]), []
    for row in [*run["rows"], run["total"]]:
        results = row["contestants"]
        ours, share, spread = results.get(BASELINE), "-", "-"
        if ours:
            share = f"{row['floor_ms'] / ours['ms']['median']:.0%}"
            spread = f"{(ours['ms']['high'] - ours['ms']['low']) / ours['ms']['median']:.1%}"
        memory = [row["mib"].get(name) for name in (BASELINE, "stock-nhwc")]
        lines.append(
            [
                label(row["name"], row["count"]),
                *(harness.time_and_ratio(results.get(name)) for name in names),
                spread,
                harness.milliseconds(row["floor_ms"]),
                share,
                *("-" if mib is None else f"{mib:.0f}" for mib in memory),
            ]
        )
    what = "forward and backward" if args.backward else "forward"
    what += ", bias" if args.bias else ""
    title = f"{run['shapes']}, batch {args.batch}, {run['dtype']}, {what}, ms"
    ends = ["spread", "floor", "of floor", "MiB sepconv", "stock-nhwc"]
    missing = [f"{row['name']}: {name}: {why}" for row in run["rows"] for name, why in row["missing"].items()]
    return "\n".join([harness.table([title, *names, *ends], lines), *missing])


# Command line -----------------------------------------------------------------------------------------------


def describe(run: dict[str, Any]) -> str:
    """One line on where and when, and one on the ceilings."""
    gpu, ceilings = run["gpu"], run["ceilings"]
    rates = ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in ceilings["tflops"].items())
    return (
        f"{gpu['name']}, driver {gpu['driver']}, torch {run['machine']['torch']}, cuDNN {gpu['cudnn']}, "
        f"{run['date']}, commit {run['commit']}\ncopy {ceilings['gbps']:.0f} GB/s, products {rates}\n"
    )


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(layer_shapes.available())
    options.add_argument(
        "--shapes", default="xception,mobilenetv1", help=f"of {names}, or .txt files (%(default)s)"
    )
    options.add_argument("--batch", type=harness.positive, default=32)
    options.add_argument("--dtypes", help=f"of {','.join(DTYPES)} (all)")
    options.add_argument("--backward", action="store_true", help="forward and backward")
    options.add_argument(
        "--bias", action="store_true", help="with a pointwise bias, as folded batch norm leaves one"
    )
    options.add_argument("--graph", action="store_true", help="a turn is one CUDA graph")
    options.add_argument(
        "--paths", action="store_true", help="both paths of sepconv's forward in half precision as well"
    )
    options.add_argument("--compile", action="store_true", help="torch.compile of stock, NHWC, as well")
    options.add_argument("--training", action="store_true", help="training steps, not layers")
    options.add_argument("--floors", action="store_true", help="print predicted floors; needs no GPU")
    options.add_argument("--rounds", type=harness.positive, default=11)
    options.add_argument("--sample-ms", type=float, default=5, help="a turn lasts about this (%(default)s)")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the script out")
    options.add_argument("--commit", help="what is measured, where there is no git to ask")
    options.add_argument("--json", type=Path, metavar="PATH", help="write the record here")
    args = options.parse_args()
    args.shapes = args.shapes.split(",")
    default = "bfloat16,tf32,float32" if args.floors else ",".join(DTYPES)
    args.dtypes = harness.choose(args.dtypes or default, DTYPES, "--dtypes")
    try:
        for name in args.shapes:
            layer_shapes.load(name)
    except ValueError as error:
        raise SystemExit(f"--shapes: {error}") from error
    return args


def main() -> None:
    args = parse()
    if args.floors:
        tables = (gpu_floors.table(name, args.batch, dtype) for name in args.shapes for dtype in args.dtypes)
        print(*tables, sep="\n\n")
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu.py needs an NVIDIA GPU that torch can use; torch {torch.__version__} finds none here")
        sys.exit(2)
    args.threads = torch.get_num_threads()
    torch.backends.cudnn.benchmark = True
    device, started = Device(args.device), time.monotonic()
    machine = Machine(device.name, *device.ceilings(args.dtypes))
    run = harness.record("gpu", args, gpu=device.description(), ceilings=vars(machine))
    run["commit"] = args.commit or run["commit"]
    print(describe(run), flush=True)
    if args.training:
        import gpu_training  # networks want packages that layers do without

        run["training"] = gpu_training.measure(device, args)
        print(gpu_training.table(run["training"]))
    else:
        run["runs"] = []
        for shapes in args.shapes:
            for dtype in args.dtypes:
                run["runs"].append(measure(device, shapes, dtype, machine, args))
                print(table(run["runs"][-1], args), end="\n\n", flush=True)
    print(f"{time.monotonic() - started:.0f} s")
    if device.cuda and not harness.sepconv.info()["cuda"]:
        print("sepconv runs WITHOUT CUDA kernels (plain-torch reference): its times say nothing.")
    if args.json:
        harness.save(run, args.json)


if __name__ == "__main__":
    main()
