"""Times separable layers of real networks, sepconv against its peers, layer by layer and summed up.

    python benchmarks/layers.py --shapes xception
    python benchmarks/layers.py --shapes mobilenetv2 --backward --batch 8 --contestants sepconv,stock-nhwc

Every contestant is checked against float64 before it is timed. `ratio` is its time over sepconv's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import harness
import layer_shapes
import peers
import probe
import torch
from layer_shapes import Layer
from tqdm import tqdm

BASELINE = "sepconv"
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def measure_layer(
    layer: Layer,
    contestants: Sequence[str],
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
    threads: int = 1,
    rounds: int = 11,
    sample_ms: float = 20,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """One row of the record, and the seconds of each round behind it."""
    torch._dynamo.reset()  # a new shape for the same code: without this torch.compile would go dynamic
    case = peers.Case.random(layer, batch, dtype, backward=backward, threads=threads)
    exact, bounds = peers.reference(case)
    runs, missing = {}, {}
    for name in contestants:
        try:
            contestant = peers.CONTESTANTS[name](case)
        except peers.Unavailable as reason:
            missing[name] = str(reason)
            continue
        peers.check(f"{name} on {layer.name}", contestant.outputs(), exact, bounds, dtype)
        runs[name] = contestant.run
    del exact, bounds
    seconds, rates = harness.steadily(
        lambda: harness.interleave(runs, rounds, sample_ms), threads, isa=harness.cpu_capability()
    )
    row = {
        "name": layer.name,
        "geometry": list(layer.geometry),
        "count": layer.count,
        # The gradients of input and of weights cost one forward pass each; recomputation does not count.
        "flops": layer.flops(batch) * (3 if backward else 1),
        "bytes": layer.elements(batch) * dtype.itemsize * (3 if backward else 1),
        "probe": rates,
        "contestants": harness.compare(seconds, BASELINE),
        "missing": missing,
    }
    return row, seconds


def measure(
    layers: Sequence[Layer], contestants: Sequence[str], *, progress: bool = True, **options: Any
) -> dict[str, Any]:
    """Rows for all layers, and the sum over the network for those contestants that ran every layer."""
    rows, rounds = [], {}
    with tqdm(layers, disable=None if progress else True, leave=False) as bar:
        for layer in bar:
            bar.set_description(layer.name)
            row, seconds = measure_layer(layer, contestants, **options)
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
        "contestants": harness.compare(complete, BASELINE),
    }
    return {"rows": rows, "total": total}


def peak_of(run: dict[str, Any]) -> float:
    """GFLOP/s: the best that any probe of the run saw."""
    return max(row["probe"]["gflops"] for row in run["rows"])


def table(run: dict[str, Any]) -> str:
    """Times of sepconv with its share of the FMA peak, then each peer's time and ratio."""
    names = [
        name
        for name in run["settings"]["contestants"]
        if any(name in row["contestants"] for row in run["rows"])
    ]
    peak = peak_of(run)
    total = run["total"] | {"name": f"sum of {run['total']['count']} layers"}

    def cells(row: dict[str, Any]) -> list[str]:
        label = row["name"] + (f" (x{row['count']})" if row["count"] > 1 and row is not total else "")
        line = [label + ("" if row.get("probe", {}).get("steady", True) else " ~")]
        for name in names:
            result = row["contestants"].get(name)
            if result is None:
                line.append("-")
                continue
            text = harness.milliseconds(result["ms"]["median"])
            if name != BASELINE and "ratio" in result:
                text += f" ({harness.times(result['ratio']['median'])})"
            line.append(text)
        ours = row["contestants"].get(BASELINE)
        line.append(f"{row['flops'] / ours['ms']['median'] / 1e6 / peak:.0%}" if ours else "-")
        return line

    return harness.table(
        ["layer, ms", *names, "sepconv / peak"], [cells(row) for row in [*run["rows"], total]]
    )


def notes(run: dict[str, Any]) -> str:
    """What the table leaves out: the probe, unsteady rows, absent contestants and why."""
    limits = run["probe"]
    lines = [f"FMA peak {peak_of(run):.0f} GFLOP/s ({limits['method']}), copy {limits['copy_gbps']:.1f} GB/s"]
    if any(not row["probe"]["steady"] for row in run["rows"]):
        lines.append(
            f"~ the FMA probe changed by more than {harness.PROBE_TOLERANCE:.0%} while this row was measured"
        )
    reasons = {name: reason for row in run["rows"] for name, reason in row["missing"].items()}
    lines += [f"{name}: {reason}" for name, reason in reasons.items()]
    return "\n".join(lines)


def main() -> None:
    options = harness.parser(__doc__, rounds=11)
    options.add_argument(
        "--shapes", default="xception", help=f"{', '.join(layer_shapes.available())} or a .txt file"
    )
    options.add_argument("--batch", type=harness.positive, default=1)
    options.add_argument("--dtype", choices=DTYPES, default="float32")
    options.add_argument("--backward", action="store_true", help="forward and backward")
    options.add_argument("--contestants", help=f"default: all of {','.join(peers.CONTESTANTS)}")
    options.add_argument(
        "--sample-ms", type=float, default=20, help="a timed sample lasts about this (%(default)s)"
    )
    args = options.parse_args()
    harness.prepare(args)
    args.contestants = harness.choose(args.contestants, peers.CONTESTANTS)
    try:
        layers = layer_shapes.load(args.shapes)
    except ValueError as error:
        raise SystemExit(f"--shapes: {error}") from error
    run = run_record(args, layers)
    print(harness.describe(run), notes(run), table(run), sep="\n")
    harness.warn_if_reference()
    if args.json:
        harness.save(run, args.json)


def run_record(args: argparse.Namespace, layers: Sequence[Layer]) -> dict[str, Any]:
    """The record of a run with these settings."""
    content = measure(
        layers,
        args.contestants,
        batch=args.batch,
        dtype=DTYPES[args.dtype],
        backward=args.backward,
        threads=args.threads,
        rounds=args.rounds,
        sample_ms=args.sample_ms,
    )
    limits = {
        "method": probe.fma_peak(args.threads, harness.cpu_capability(), seconds=0.01).method,
        "copy_gbps": probe.copy_bandwidth(args.threads),
    }
    return harness.record("layers", args, probe=limits, **content)


if __name__ == "__main__":
    main()
