"""Draws a record of layers.py, training.py or demo.py.

python benchmarks/plot.py benchmarks/results/layers-xception.json -o layers.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import harness
import matplotlib

matplotlib.use("Agg")  # files alone: no display needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {
    "sepconv": "#1f5fa8",
    "sepconv-nchw": "#7fb2e5",
    "sepconv-float32": "#a9b8c9",
    "sepconv-bfloat16": "#3d8fd1",
    "sepconv-frozen": "#1f5fa8",
    "sepconv-frozen-nchw": "#7fb2e5",
    "sepconv-compile": "#123a66",
    "stock-nhwc": "#e08214",
    "stock-nchw": "#fdc27a",
    "stock-bfloat16": "#c26a4a",
    "stock-bfloat16-nchw": "#e3a68f",
    "onednn": "#8c6d31",
    "compile": "#5b8c3a",
    "compile-bfloat16": "#3f6b4f",
    "compile-frozen": "#a6d08a",
    "onnxruntime": "#8e6bb5",
    "openvino": "#c2609c",
}


def _contestants(rows: list[dict[str, Any]]) -> list[str]:
    """The contestants of these rows, in the order of COLORS."""
    return [name for name in COLORS if any(name in row["contestants"] for row in rows)]


def bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def draw_layers(axes: Axes, run: dict[str, Any]) -> None:
    """Horizontal bars: each layer's achieved GFLOP/s by contestant, and the FMA peak as a line."""
    rows, names = run["rows"], _contestants(run["rows"])
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        bars = [
            (number + index * height, row["flops"] / row["contestants"][name]["ms"]["median"] / 1e6)
            for number, row in enumerate(rows)
            if name in row["contestants"]
        ]
        axes.barh(*zip(*bars, strict=True), height=height, align="edge", color=COLORS[name], label=name)
    peak = max(row["probe"]["gflops"] for row in rows)
    axes.axvline(peak, color="#444444", linestyle="--", linewidth=1, label=f"FMA peak, {peak:.0f}")
    axes.set_yticks([number + 0.4 for number in range(len(rows))], [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("GFLOP/s (longer is better)")
    axes.set_title("Separable layers, forward" + (" and backward" if run["settings"]["backward"] else ""))
    axes.legend(frameon=False, fontsize="small")
    bare(axes)


def draw_epochs(axes: Axes, run: dict[str, Any], column: str, title: str, scale: float = 1) -> None:
    """One group of bars an epoch, one bar a contestant."""
    width = 0.8 / len(run["training"])
    for index, (name, epochs) in enumerate(run["training"].items()):
        places = [epoch["epoch"] + (index - (len(run["training"]) - 1) / 2) * width for epoch in epochs]
        values = [epoch[column] * scale for epoch in epochs]
        bars = axes.bar(places, values, width=width * 0.95, color=COLORS[name], label=name)
        axes.bar_label(bars, fmt="%.3g", fontsize="small")
    axes.set_xticks([epoch["epoch"] for epoch in epochs], [f"epoch {epoch['epoch']:.0f}" for epoch in epochs])
    axes.margins(y=0.15)
    axes.set_title(title)
    bare(axes)


def _caption(figure: Figure, run: dict[str, Any]) -> None:
    figure.text(0.01, 0.005, harness.describe(run), fontsize=7, color="#666666")


def bars(run: dict[str, Any]) -> Figure:
    """Achieved GFLOP/s of each layer and contestant."""
    figure, axes = plt.subplots(
        figsize=(9, 1 + 0.16 * len(run["rows"]) * (len(_contestants(run["rows"])) + 1))
    )
    draw_layers(axes, run)
    _caption(figure, run)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    return figure


def phases(run: dict[str, Any]) -> Figure:
    """The training step of each contestant, its phases stacked."""
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.5 * len(run["contestants"])))
    names = list(run["contestants"])
    left = [0.0] * len(names)
    for phase, shade in (("forward", 1.0), ("backward", 0.65), ("optimizer", 0.35)):
        widths = [run["contestants"][name]["ms"][phase]["median"] for name in names]
        axes.barh(names, widths, left=left, color=[COLORS[name] for name in names], alpha=shade)
        for place, (start, width) in enumerate(zip(left, widths, strict=True)):
            axes.text(start + width / 2, place, f"{phase}\n{width:.3g}", ha="center", va="center", fontsize=7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms a training step")
    axes.set_title(run["name"])
    bare(axes)
    _caption(figure, run)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def demo(run: dict[str, Any]) -> Figure:
    """Layers on the left; time, memory, loss and accuracy of the training on the right; one legend."""
    figure = plt.figure(figsize=(13, 7))
    grid = figure.add_gridspec(2, 4, width_ratios=[1, 1, 0.9, 0.9])
    draw_layers(figure.add_subplot(grid[:, :2]), run)
    panels = (
        ("train_seconds", "Time of an epoch, s", 1),
        ("peak_memory_mib", "Peak memory, MiB", 1),
        ("train_loss", "Training loss", 1),
        ("val_accuracy", "Validation accuracy, %", 100),
    )
    for index, (column, title, scale) in enumerate(panels):
        axes = figure.add_subplot(grid[index // 2, 2 + index % 2])
        draw_epochs(axes, run, column, title, scale)
    _caption(figure, run)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    return figure


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"wrote {path}")


KINDS = {"bars": bars, "phases": phases, "demo": demo}
KIND_OF = {"layers": "bars", "training": "phases", "demo": "demo"}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("record", type=Path)
    options.add_argument("--kind", choices=KINDS, help="default: what fits the record")
    options.add_argument("-o", "--output", type=Path, help="default: beside the record")
    args = options.parse_args()
    run = harness.load(args.record)
    kind = args.kind or KIND_OF.get(run["benchmark"])
    if kind is None:
        raise SystemExit(f"{args.record}: no plot for a record of {run['benchmark']}; name one with --kind")
    save(KINDS[kind](run), args.output or args.record.with_suffix(".png"))


if __name__ == "__main__":
    main()
