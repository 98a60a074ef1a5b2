"""`make demo`: what was built, a dozen layers against stock PyTorch, and a network trained with both.

Trains the optimized Xception for two short epochs on the shipped subset of Fashion-MNIST, once with stock
layers and once with sepconv's, each in its own process, so that each has its own peak memory. Ends with both
side by side and a plot.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import layer_shapes
import layer_tables
import layers
import plot

TRAINED = {"stock-nhwc": "stock", "sepconv": "sepconv"}  # name in tables: --layers of the training command
TRAINING = {"setting": "optimized", "data": "fashion-mnist-subset", "epochs": 2, "batch-size": 64}


# The layers are measured as `layers.py` would with these options.
LAYER_SETTINGS = {
    "shapes": "demo",
    "contestants": ["sepconv", "stock-nhwc", "stock-nchw"],
    "batch": 1,
    "dtype": "float32",
    "backward": False,
    "frozen": False,
    "sample_ms": 5,
}


def train(layer_set: str, args: argparse.Namespace) -> list[dict[str, float]]:
    """Runs the training command in a process of its own, with its progress bar; returns its CSV."""
    with tempfile.TemporaryDirectory() as folder:
        options = TRAINING | {"layers": layer_set, "threads": args.threads, "output": folder}
        if args.train_limit:
            options["train-limit"] = args.train_limit
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "sepconv.models.train", *words], check=True)
        with (Path(folder) / "epochs.csv").open() as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def training_table(run: dict[str, Any]) -> str:
    """One row an epoch and contestant, then how they compare over all epochs."""
    rows = [
        [
            f"epoch {epoch['epoch']:.0f}, {name}",
            f"{epoch['train_seconds']:.1f}",
            f"{epoch['peak_memory_mib']:.0f}",
            f"{epoch['train_loss']:.4f}",
            f"{epoch['val_loss']:.4f}",
            f"{epoch['val_accuracy']:.1%}",
        ]
        for number in range(TRAINING["epochs"])
        for name, epoch in ((name, epochs[number]) for name, epochs in run["training"].items())
    ]
    return harness.table(
        [
            "training",
            "time, s",
            "peak memory, MiB",
            "training loss",
            "validation loss",
            "validation accuracy",
        ],
        rows,
    )


def verdict(run: dict[str, Any]) -> str:
    """In words, with either outcome: which trains faster, and which takes more memory."""

    def total(name: str, column: str) -> float:
        return sum(epoch[column] for epoch in run["training"][name])

    def peak(name: str) -> float:
        return max(epoch["peak_memory_mib"] for epoch in run["training"][name])

    speedup = total("stock-nhwc", "train_seconds") / total("sepconv", "train_seconds")
    outcome = f"{speedup:.2f}x as fast as" if speedup >= 1 else f"SLOWER, {speedup:.2f}x the speed of,"
    return (
        f"Training with sepconv's layers was {outcome} stock PyTorch (NHWC), "
        f"with {peak('sepconv'):.0f} MiB at peak against {peak('stock-nhwc'):.0f} MiB."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record of `layers.py`, with the training runs added."""
    vars(args).update(LAYER_SETTINGS)
    shapes = layer_shapes.load(args.shapes)
    print(f"\n[2/3] {len(shapes)} separable layers on {args.threads} threads, float32, batch 1")
    run = layers.run_record(args, shapes)
    print(layer_tables.table(run), *layer_tables.notes(run), sep="\n")

    print(f"\n[3/3] Training the optimized Xception on {TRAINING['data']}, {TRAINING['epochs']} epochs each")
    run["training"] = {}
    for name, layer_set in TRAINED.items():
        print(f"--- {name} layers", flush=True)
        run["training"][name] = train(layer_set, args)
    return run | {"benchmark": "demo"}


def main() -> None:
    started = time.monotonic()
    options = harness.parser(__doc__, rounds=5)
    options.add_argument(
        "--plot", type=Path, default=Path("demo-output/demo.png"), help="default: %(default)s"
    )
    options.add_argument("--train-limit", type=harness.positive, help="train on so many images (all)")
    options.add_argument("--save", action="store_true", help="keep record and plot in benchmarks/results")
    args = options.parse_args()
    if args.save:
        args.json, args.plot = harness.RESULTS / "demo.json", harness.RESULTS / "demo.png"
    harness.prepare(args)
    print("[1/3] What was built and chosen", flush=True)
    subprocess.run([sys.executable, "-m", "sepconv"], check=True)
    run = measure(args)
    print("", training_table(run), "", verdict(run), sep="\n")
    harness.warn_if_reference()
    plot.save(plot.demo(run), args.plot)
    if args.json:
        harness.save(run, args.json)
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
