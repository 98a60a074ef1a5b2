"""Times inference of whole networks, sepconv's layers against stock PyTorch and the inference engines.

    python benchmarks/models.py --model xception --size 299

Weights are random, batch norm's statistics come from one batch of the same data. Every contestant is checked
against float64 before it is timed. `ratio` is its time over sepconv's.
"""

from __future__ import annotations

import argparse
import copy
import io
from typing import Any

import harness
import networks
import peers
import torch
from peers import Contestant, Unavailable
from torch import nn

BASELINE = "sepconv"
ENGINES = {"onnxruntime": peers.onnxruntime_contestant, "openvino": peers.openvino_contestant}
CONTESTANTS = [*networks.SETUPS, "compile-frozen", *ENGINES]


def calibrated(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """`model` for inference, its batch norms set to this batch: fresh ones would let the signal die."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def in_torch(model: nn.Module, images: torch.Tensor, setup: networks.Setup) -> Contestant:
    model = model.to(memory_format=setup.memory_format)
    x = images.contiguous(memory_format=setup.memory_format)
    call = setup.call(model)

    def forward() -> tuple[torch.Tensor]:
        with torch.inference_mode():
            return (call(x),)

    return Contestant(forward, forward)


def frozen(model: nn.Module, images: torch.Tensor) -> Contestant:
    """torch.compile with the weights as constants: batch norm folded, weights prepacked."""
    from torch._inductor import config

    call = torch.compile(model.to(memory_format=torch.channels_last), dynamic=False)
    x = images.contiguous(memory_format=torch.channels_last)

    def forward() -> tuple[torch.Tensor]:
        with torch.no_grad():
            return (call(x),)

    with config.patch(freezing=True):
        forward()
    return Contestant(forward, forward)


def onnx_bytes(model: nn.Module, images: torch.Tensor) -> bytes:
    peers.require("onnx")
    peers.require("onnxscript")
    file = io.BytesIO()
    torch.onnx.export(model, (images,), verbose=False).save(file)
    return file.getvalue()


def contestant(name: str, args: argparse.Namespace, stock: nn.Module, images: torch.Tensor) -> Contestant:
    """The contestant `name` with the weights of `stock`; raises Unavailable with a reason."""
    if name in ENGINES:
        return ENGINES[name](onnx_bytes(stock, images), images, args.threads)
    if name == "compile-frozen":
        return frozen(copy.deepcopy(stock), images)
    setup = networks.SETUPS[name]
    model = networks.build(args.model, setup.layers, args.classes)
    model.load_state_dict(stock.state_dict())
    return in_torch(model.eval(), images, setup)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    images = networks.images(args.batch, args.size)
    stock = calibrated(networks.build(args.model, "stock", args.classes), networks.images(8, args.size))
    with torch.inference_mode():
        exact = copy.deepcopy(stock).double()(images.double())
        # Rounding grows over the layers: stock's own error is the yardstick.
        tolerance = 10 * networks.relative_error(stock(images), exact)
    runs, missing = {}, {}
    for name in args.contestants:
        try:
            built = contestant(name, args, stock, images)
        except Unavailable as reason:
            missing[name] = str(reason)
            continue
        error = networks.relative_error(built.outputs()[0], exact)
        if not error <= tolerance:
            raise AssertionError(
                f"{name}: logits are {error:.1e} away from float64, tolerance {tolerance:.1e}"
            )
        runs[name] = built.run
    seconds, rates = harness.steadily(
        lambda: harness.interleave(runs, args.rounds, sample_ms=0), args.threads, isa=harness.cpu_capability()
    )
    row = {
        "name": f"{args.model} {args.size}x{args.size}, batch {args.batch}",
        "probe": rates,
        "contestants": harness.compare(seconds, BASELINE),
        "missing": missing,
    }
    return {"rows": [row]}


def table(run: dict[str, Any]) -> str:
    """One row a contestant: time, quartiles, and its time over sepconv's."""
    rows = []
    for row in run["rows"]:
        for name, result in row["contestants"].items():
            ms = result["ms"]
            quartiles = f"{harness.milliseconds(ms['low'])} - {harness.milliseconds(ms['high'])}"
            ratio = harness.times(result["ratio"]["median"]) if "ratio" in result else "-"
            label = row["name"] + ("" if row["probe"]["steady"] else " ~")
            rows.append([label, name, harness.milliseconds(ms["median"]), quartiles, ratio])
    return harness.table(["network", "contestant", "ms", "quartiles", "time / sepconv"], rows)


def main() -> None:
    options = harness.parser(__doc__, rounds=15)
    options.add_argument("--model", choices=networks.XCEPTIONS, default="xception")
    options.add_argument("--size", type=harness.positive, default=299, help="height and width of the images")
    options.add_argument("--batch", type=harness.positive, default=1)
    options.add_argument("--classes", type=harness.positive, default=1000)
    options.add_argument("--contestants", help=f"default: all of {','.join(CONTESTANTS)}")
    args = options.parse_args()
    harness.prepare(args)
    args.contestants = harness.choose(args.contestants, CONTESTANTS)
    run = harness.record("models", args, **measure(args))
    print(harness.describe(run), table(run), sep="\n")
    for name, reason in run["rows"][0]["missing"].items():
        print(f"{name}: {reason}")
    harness.warn_if_reference()
    if args.json:
        harness.save(run, args.json)


if __name__ == "__main__":
    main()
