"""Times separable layers of real networks, sepconv against its peers, layer by layer and summed up.

    python benchmarks/layers.py --shapes xception
    python benchmarks/layers.py --shapes mobilenetv2 --frozen
    python benchmarks/layers.py --shapes mobilenetv2 --backward --batch 8 --contestants sepconv,stock-nhwc

A plain run times the convolutions alone and lets everybody prepare weights inside the call. A frozen run has
constant weights, prepared beforehand, and the layers' batch norms and activations (see peers.py). Every
contestant is checked against float64 before it is timed; a peer that is wrong is not timed. `ratio` is a time
over sepconv's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import harness
import layer_shapes
import layer_tables
import peers
import probe
import torch
from layer_shapes import Layer
from tqdm import tqdm

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def baseline(frozen: bool) -> str:
    """The contestant that all others are divided by."""
    return "sepconv-frozen" if frozen else "sepconv"


def measure_layer(
    layer: Layer,
    contestants: Sequence[str],
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
    frozen: bool = False,
    threads: int = 1,
    rounds: int = 11,
    sample_ms: float = 20,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """One row of the record, and the seconds of each round behind it."""
    torch._dynamo.reset()  # a new shape for the same code: without this torch.compile would go dynamic
    if not frozen:
        layer = replace(layer, stages=layer_shapes.PLAIN)
    case = peers.Case.random(layer, batch, dtype, backward=backward, threads=threads)
    exact, bounds = peers.reference(case)
    runs, errors, missing = {}, {}, {}
    for name in contestants:
        try:
            contestant = peers.CONTESTANTS[name](case)
            errors[name] = peers.check(f"{name} on {layer.name}", contestant.outputs(), exact, bounds, dtype)
        except peers.Unavailable as reason:
            missing[name] = str(reason)
        except AssertionError as wrong:
            if not layer_tables.is_peer(name):
                raise
            missing[name] = f"wrong result: {wrong}"  # a peer's bug ends its own times, not the run
        else:
            runs[name] = contestant.run
    del exact, bounds
    isa, paces = harness.cpu_capability(), []

    def pace() -> None:
        time.sleep(harness.SETTLE_SECONDS)
        paces.append(probe.fma_peak(threads, isa, seconds=sample_ms / 1e3).sustained)

    seconds, rates = harness.steadily(
        lambda: harness.interleave(runs, rounds, sample_ms, each_round=pace), threads, isa=isa
    )
    # The gradients of input and of weights cost one forward pass each; recomputation does not count.
    flops = layer.flops(batch) * (3 if backward else 1)
    seconds[layer_tables.PACE] = [flops / rate / 1e9 for rate in paces[-rounds:]]
    results = harness.compare(seconds, baseline(frozen))
    row = {
        "name": layer.name,
        "geometry": list(layer.geometry),
        "stages": str(layer.stages),
        "count": layer.count,
        "flops": flops,
        "bytes": layer.elements(batch) * dtype.itemsize * (3 if backward else 1),
        "probe": rates,
        "contestants": {name: result | {"error": errors.get(name)} for name, result in results.items()},
        "missing": missing,
    }
    return row, seconds


def measure(
    layers: Sequence[Layer], contestants: Sequence[str], *, frozen: bool = False, **options: Any
) -> dict[str, Any]:
    """Rows for all layers, and the sum over the network for those contestants that ran every layer."""
    rows, rounds = [], {}
    with tqdm(layers, disable=None, leave=False) as bar:
        for layer in bar:
            bar.set_description(layer.name)
            row, seconds = measure_layer(layer, contestants, frozen=frozen, **options)
            rows.append(row)
            for name, values in seconds.items():
                rounds.setdefault(name, []).append([layer.count * value for value in values])
    complete = {
        name: [sum(turn) for turn in zip(*values, strict=True)]
        for name, values in rounds.items()
        if len(values) == len(layers)
    }
    total = {
        "count": sum(layer.count for layer in layers),
        "flops": sum(row["count"] * row["flops"] for row in rows),
        "contestants": harness.compare(complete, baseline(frozen)),
    }
    return {"rows": rows, "total": total}


def run_record(args: argparse.Namespace, layers: Sequence[Layer]) -> dict[str, Any]:
    """The record of a run with these settings."""
    dtype, isa = DTYPES[args.dtype], harness.cpu_capability()
    content = measure(
        layers,
        args.contestants,
        batch=args.batch,
        dtype=dtype,
        backward=args.backward,
        frozen=args.frozen,
        threads=args.threads,
        rounds=args.rounds,
        sample_ms=args.sample_ms,
    )
    gflops = max(row["probe"]["gflops"] for row in content["rows"])
    dtype_gflops, dtype_method = probe.dtype_peak(args.threads, dtype, isa, gflops)
    limits = {
        "method": probe.fma_peak(args.threads, isa, seconds=0.01).method,
        "gflops": gflops,  # the best that any probe of the run saw
        "dtype_gflops": dtype_gflops,
        "dtype_method": dtype_method,
        "copy_gbps": probe.copy_bandwidth(args.threads),
    }
    run = harness.record("layers", args, probe=limits, **content)
    return run | {"baseline": baseline(args.frozen)}


def main() -> None:
    options = harness.parser(__doc__, rounds=11)
    options.add_argument(
        "--shapes", default="xception", help=f"{', '.join(layer_shapes.available())} or a .txt file"
    )
    options.add_argument("--batch", type=harness.positive, default=1)
    options.add_argument("--dtype", choices=DTYPES, default="float32")
    kind = options.add_mutually_exclusive_group()
    kind.add_argument("--backward", action="store_true", help="forward and backward")
    kind.add_argument("--frozen", action="store_true", help="constant weights, with the layers' stages")
    options.add_argument(
        "--contestants",
        help=f"of {','.join(peers.PLAIN)}; with --frozen of {','.join(peers.FROZEN)} (all that apply)",
    )
    options.add_argument(
        "--sample-ms", type=float, default=20, help="a timed sample lasts about this (%(default)s)"
    )
    args = options.parse_args()
    harness.prepare(args)
    eligible = list(peers.FROZEN if args.frozen else peers.PLAIN)
    if DTYPES[args.dtype].itemsize >= torch.float32.itemsize:
        eligible = [name for name in eligible if name != "sepconv-float32"]  # which is sepconv itself
    args.contestants = harness.choose(args.contestants, eligible)
    try:
        layers = layer_shapes.load(args.shapes)
    except ValueError as error:
        raise SystemExit(f"--shapes: {error}") from error
    run = run_record(args, layers)
    print(harness.describe(run), layer_tables.table(run), sep="\n")
    print(*layer_tables.summary(run), *layer_tables.notes(run), sep="\n")
    harness.warn_if_reference()
    if args.json:
        harness.save(run, args.json)


if __name__ == "__main__":
    main()
