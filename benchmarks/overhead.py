"""Microseconds of a call that has next to nothing to compute: 8 channels on a 1x1 map.

    python benchmarks/overhead.py

What remains is Python, the dispatcher, checks and allocation: the cost of a call on the small maps at the end
of a network. Stock PyTorch makes two calls for sepconv's one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import harness
import layer_shapes
import peers
import torch

import sepconv

BASELINE = "sepconv"
LAYER = layer_shapes.Layer("1x1 map", 8, 8, 1, 1, 3, 1, 1, 1)

Call = Callable[[torch.Tensor], torch.Tensor]


def calls(case: peers.Case) -> dict[str, Call]:
    """By function and by module, sepconv's and the two of stock PyTorch."""
    depthwise, pointwise = peers.convolutions(case)
    module = sepconv.SeparableConv2d(8, 8, 3, padding=1, bias=False)
    module.depthwise.load_state_dict(depthwise.state_dict())
    module.pointwise.load_state_dict(pointwise.state_dict())
    fused, stock = peers.fused(case), peers.stock(case)
    weights = depthwise.weight, pointwise.weight, None, None
    for parameter in (*depthwise.parameters(), *pointwise.parameters()):
        parameter.requires_grad_()
    return {
        "sepconv": lambda x: fused(x, *weights),
        "sepconv-module": module,
        "stock": lambda x: stock(x, *weights),
        "stock-modules": torch.nn.Sequential(depthwise, pointwise),
    }


def in_inference(call: Call, x: torch.Tensor) -> Callable[[], object]:
    def run() -> torch.Tensor:
        with torch.inference_mode():
            return call(x)

    return run


def with_backward(call: Call, x: torch.Tensor) -> Callable[[], object]:
    leaf, ones = x.clone().requires_grad_(), torch.ones_like(x)
    return lambda: torch.autograd.backward(call(leaf), ones)


def with_graph(call: Call, x: torch.Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()
    return lambda: call(leaf)


MODES = {"inference": in_inference, "forward, recorded": with_graph, "forward and backward": with_backward}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    case = peers.Case.random(LAYER, 1, torch.float32, backward=False, threads=args.threads)
    rows = []
    for mode, prepare in MODES.items():
        runs = {name: prepare(call, case.input) for name, call in calls(case).items()}
        if mode == "inference":
            runs["sepconv-frozen"] = peers.FROZEN["sepconv-frozen"](case).run
        seconds, rates = harness.steadily(
            lambda runs=runs: harness.interleave(runs, args.rounds, args.sample_ms),
            args.threads,
            isa=harness.cpu_capability(),
        )
        rows.append({"name": mode, "probe": rates, "contestants": harness.compare(seconds, BASELINE)})
    return {"rows": rows}


def table(run: dict[str, Any]) -> str:
    names = list(run["rows"][0]["contestants"])

    def cell(row: dict[str, Any], name: str) -> str:
        if name not in row["contestants"]:
            return "-"
        result = row["contestants"][name]
        text = f"{1e3 * result['ms']['median']:.1f}"
        return text if name == BASELINE else f"{text} ({harness.times(result['ratio']['median'])})"

    rows = [
        [row["name"] + ("" if row["probe"]["steady"] else " ~"), *(cell(row, name) for name in names)]
        for row in run["rows"]
    ]
    return harness.table(["µs a call", *names], rows)


def main() -> None:
    options = harness.parser(__doc__, rounds=31)
    options.add_argument(
        "--sample-ms", type=float, default=5, help="a timed sample lasts about this (%(default)s)"
    )
    args = options.parse_args()
    harness.prepare(args)
    run = harness.record("overhead", args, **measure(args))
    print(harness.describe(run), table(run), sep="\n")
    harness.warn_if_reference()
    if args.json:
        harness.save(run, args.json)


if __name__ == "__main__":
    main()
