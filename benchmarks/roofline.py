"""Draws every layer of some records of layers.py below what the machine allows: a roofline.

    python benchmarks/roofline.py                       the records in results/ that the README shows
    python benchmarks/roofline.py one.json two.json -o roofline.png

On the left plain runs, with the fastest stock PyTorch beside sepconv; on the right frozen ones, with the
fastest peer. A line joins the two points of a layer. Tensors that stay in a cache may lie above the line of
the bandwidth.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import layer_tables
import matplotlib
import record

matplotlib.use("Agg")  # files alone: no display needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

TARGET = harness.RESULTS / "roofline.png"
# Mid tones on a transparent ground, to be read on light and on dark pages.
INK, OURS, THEIRS = "#7d8590", "#3b82d6", "#e08214"
PANELS = {"sepconv": ("plain", "fastest stock PyTorch"), "sepconv-frozen": ("frozen", "fastest peer")}


@dataclass(frozen=True)
class Point:
    """One layer: FLOPs a byte, and what sepconv and the fastest other made of it, in GFLOP/s."""

    name: str
    intensity: float
    ours: float
    theirs: float | None

    @property
    def lead(self) -> float:
        return self.ours / self.theirs if self.theirs else 1.0


def points(runs: Iterable[dict[str, Any]], baseline: str) -> list[Point]:
    """The layers of those runs that have this baseline."""
    found = []
    for run in runs:
        for row in run["rows"]:
            if run["baseline"] != baseline or baseline not in row["contestants"]:
                continue
            rival = layer_tables.best_peer(row)
            ours = layer_tables.gflops(row, baseline)
            theirs = layer_tables.gflops(row, rival.name) if rival else None
            name = f"{Path(run['settings']['shapes']).stem} {row['name']}"
            found.append(Point(name, row["flops"] / row["bytes"], ours, theirs))
    return found


def remarkable(found: Sequence[Point]) -> list[Point]:
    """The few that get a label: the fastest, the slowest, the largest lead and the smallest."""
    chosen = (
        max(found, key=lambda point: point.ours),
        min(found, key=lambda point: point.ours),
        max(found, key=lambda point: point.lead),
        min(found, key=lambda point: point.lead),
    )
    return list(dict.fromkeys(chosen))


def _label(axes: Axes, found: Sequence[Point]) -> None:
    """Numbers on the remarkable layers, which stand by name below the panel."""
    key = []
    for number, point in enumerate(remarkable(found), start=1):
        place = point.intensity, point.ours
        axes.scatter(*place, s=110, color=OURS, linewidths=0, zorder=4)
        axes.text(*place, str(number), color="white", fontsize=8, ha="center", va="center_baseline", zorder=5)
        lead = f", {point.lead:.2f}x the peer" if point.theirs else ""
        key.append(f"{number}  {point.name}: {point.ours:.0f} GFLOP/s{lead}")
    axes.text(
        0,
        -0.24,
        "\n".join(key),
        transform=axes.transAxes,
        va="top",
        fontsize=8,
        color=INK,
        linespacing=1.4,
    )


def _panel(axes: Axes, found: Sequence[Point], title: str, other: str) -> None:
    pairs = [point for point in found if point.theirs]
    axes.vlines(
        [point.intensity for point in pairs],
        [point.ours for point in pairs],
        [point.theirs for point in pairs],
        color=INK,
        linewidth=0.6,
        alpha=0.6,
    )
    axes.scatter(
        [point.intensity for point in pairs],
        [point.theirs for point in pairs],
        marker="^",
        s=22,
        color=THEIRS,
        label=other,
        linewidths=0,
    )
    axes.scatter(
        [point.intensity for point in found],
        [point.ours for point in found],
        marker="o",
        s=22,
        color=OURS,
        label="sepconv",
        linewidths=0,
        zorder=3,
    )
    axes.set_title(f"{title}: {len(found)} layers", color=INK, fontsize=11)


def _roof(axes: Axes, gflops: float, gbps: float, low: float, high: float) -> None:
    knee = gflops / gbps
    axes.plot([low, knee, high], [low * gbps, gflops, gflops], color=INK, linewidth=1.2)
    style = {"fontsize": 8, "color": INK, "va": "bottom"}
    axes.text(high, gflops * 1.05, f"FMA peak {gflops:.0f} GFLOP/s", ha="right", **style)
    axes.text(
        low,
        low * gbps * 1.08,
        f"{gbps:.0f} GB/s from memory",
        rotation=math.degrees(math.atan(gbps)),  # the line's slope, before the axes scale it
        rotation_mode="anchor",
        transform_rotates_text=True,
        **style,
    )


def _dress(axes: Axes) -> None:
    """Scales, ticks and the legend below."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("FLOPs a byte that must move (input, weights, output)", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(which="both", colors=INK)
    handles, labels = axes.get_legend_handles_labels()
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 2}
    axes.legend(handles[::-1], labels[::-1], **below, frameon=False, labelcolor=INK)


def roofline(runs: Sequence[dict[str, Any]]) -> Figure:
    """One panel for plain and one for frozen runs, as far as there are any."""
    settings = {(run["machine"]["threads"], run["settings"]["dtype"], run["machine"]["isa"]) for run in runs}
    if len(settings) != 1:
        raise ValueError(f"the records differ in threads, dtype or instruction set: {sorted(settings)}")
    panels = {name: found for name in PANELS if (found := points(runs, name))}
    if not panels:
        raise ValueError("no record has times of sepconv")
    gflops = max(run["probe"]["dtype_gflops"] for run in runs)
    gbps = max(run["probe"]["copy_gbps"] for run in runs)
    everything = [point for found in panels.values() for point in found]
    intensities = [point.intensity for point in everything]
    low, high = min([*intensities, gflops / gbps]) / 1.5, max([*intensities, gflops / gbps]) * 1.5
    figure, grid = plt.subplots(
        1, len(panels), figsize=(1 + 5.5 * len(panels), 6), sharex=True, sharey=True, squeeze=False
    )
    for axes, (name, found) in zip(grid[0], panels.items(), strict=True):
        title, other = PANELS[name]
        _panel(axes, found, title, other)
        _roof(axes, gflops, gbps, low, high)
        _dress(axes)
        _label(axes, found)
    lowest = min(min(point.ours, point.theirs or point.ours) for point in everything)
    grid[0][0].set_ylim(lowest / 1.4, gflops * 1.5)
    grid[0][0].set_ylabel("GFLOP/s", color=INK)
    box = runs[0]["machine"]
    figure.suptitle(
        f"{box['cpu']}, {box['threads']} threads, {runs[0]['settings']['dtype']}",
        color=INK,
        fontsize=9,
        y=0.99,
    )
    figure.tight_layout()
    return figure


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("records", nargs="*", type=Path, default=record.existing(record.ROOFLINE))
    options.add_argument("-o", "--output", type=Path, default=TARGET, help="default: %(default)s")
    args = options.parse_args()
    if not args.records:
        raise SystemExit(f"none of the records {', '.join(record.ROOFLINE)} has been measured yet")
    try:
        figure = roofline([harness.load(path) for path in args.records])
    except ValueError as error:
        raise SystemExit(str(error)) from error
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=130, transparent=True, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {args.output.name}")


if __name__ == "__main__":
    main()
