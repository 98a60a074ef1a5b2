"""The six figures of the paper, from the tables of paper.py: one PNG and one SVG each."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import plot
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from paper_claims import LABELS, PAPER_MEMORY_MB, Results

from sepconv.models.files import write_atomically

# Dark, light and a warm colour differ for every kind of colour vision, and in grey; markers differ, too.
COLORS = {"xception": "#e08214", "optimized": "#7fb2e5", "optimized-with-data": "#1f5fa8"}
MARKERS = {"xception": "s", "optimized": "o", "optimized-with-data": "^"}
# CIFAR-10, which times of steps are scaled to.
TRAINING_IMAGES, TEST_IMAGES = 50_000, 10_000
# Names in an SVG are the same in every run, so that a figure changes only when its data do.
STABLE = {"svg.hashsalt": "sepconv"}


@dataclass(frozen=True)
class Panel:
    """A figure of the paper: what epochs say about it and, for times and memory, what `timing.csv` says."""

    number: str
    name: str
    title: str
    unit: str
    column: str
    scale: float = 1
    timing_column: str | None = None
    timing_scale: Callable[[int], float] = lambda batch_size: 1  # from the column's unit, by batch size

    @property
    def stem(self) -> str:
        return f"figure-{self.number}-{self.name}"


PANELS = (
    Panel(
        *("2a", "training-time", "Training time of an epoch", "s", "train_seconds"),
        timing_column="train_step_ms",
        timing_scale=lambda batch_size: (TRAINING_IMAGES // batch_size) / 1e3,
    ),
    Panel("2b", "training-loss", "Training loss", "cross-entropy", "train_loss"),
    Panel(
        *("3", "memory", "Peak memory of training", "MiB", "peak_memory_mib"),
        timing_column="peak_memory_mib",
    ),
    Panel("4", "validation-accuracy", "Validation accuracy", "%", "val_accuracy", 100),
    Panel("5", "validation-loss", "Validation loss", "cross-entropy", "val_loss"),
    Panel(
        *("6", "validation-time", "Validation time of an epoch", "s", "val_seconds"),
        timing_column="val_batch_ms",
        timing_scale=lambda batch_size: -(-TEST_IMAGES // batch_size) / 1e3,
    ),
)


def _draw_epochs(axes: Axes, results: Results, panel: Panel) -> None:
    """A line a setting: the mean over its seeds at each epoch; a band from the least to the largest."""
    for setting, label in LABELS.items():
        epochs = sorted({epoch for name, _, epoch in results.epochs if name == setting})
        if not epochs:
            continue
        values = [[panel.scale * v for v in results.values(setting, panel.column, epoch)] for epoch in epochs]
        seeds = len(results.seeds(setting))
        axes.plot(
            epochs,
            [statistics.fmean(found) for found in values],
            color=COLORS[setting],
            marker=MARKERS[setting],
            markersize=5,
            label=f"{label} ({seeds} seed{'s' if seeds > 1 else ''})",
        )
        axes.fill_between(
            epochs, [*map(min, values)], [*map(max, values)], color=COLORS[setting], alpha=0.25, linewidth=0
        )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_timing(axes: Axes, results: Results, panel: Panel) -> None:
    """A group of bars a set of layers, a bar a setting: medians of the rounds, whiskers to the quartiles."""
    width = 0.8 / len(LABELS)
    groups = results.layers()
    for index, (setting, label) in enumerate(LABELS.items()):
        places, spreads = [], []
        for group, layers in enumerate(groups):
            rounds = results.rounds(setting, layers, panel.timing_column)
            if rounds:
                scale = panel.timing_scale(results.timing[0].batch_size)
                places.append(group + (index - (len(LABELS) - 1) / 2) * width)
                spreads.append(harness.spread([scale * value for value in rounds.values()]))
        medians = [spread["median"] for spread in spreads]
        whiskers = [
            [spread["median"] - spread["low"] for spread in spreads],
            [spread["high"] - spread["median"] for spread in spreads],
        ]
        bars = axes.bar(
            places,
            medians,
            width * 0.95,
            yerr=whiskers if panel.unit == "s" else None,  # memory is the same in every round
            color=COLORS[setting],
            label=label,
            error_kw={"elinewidth": 1, "capsize": 3, "ecolor": "#444444"},
        )
        labels = [harness.milliseconds(median) for median in medians]
        axes.bar_label(bars, labels, fontsize="small", padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.margins(y=0.12)


def _draw_paper_memory(axes: Axes) -> None:
    """What the paper's figure 3 shows, as lines."""
    for mb in sorted(set(PAPER_MEMORY_MB.values())):
        mib = mb * 1e6 / 2**20
        axes.axhline(mib, color="#444444", linestyle="--", linewidth=1, zorder=0)
        axes.annotate(
            f"paper:\nabout\n{mb} MB",
            (1, mib),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color="#444444",
        )


def source(results: Results, panel: Panel) -> str:
    """Which numbers a figure shows, in words."""
    if panel.timing_column is None:
        return "mean over seeds; the band goes from the least to the largest"
    if not results.timing:
        return "from the accuracy runs, not interleaved: no timing was made"
    row = results.timing[0]
    rounds = max(row.round for row in results.timing)
    if panel.unit == "s":
        return (
            f"interleaved runs, median and quartiles of {rounds} rounds, {row.threads} thread(s), "
            f"scaled to CIFAR-10 in batches of {row.batch_size}"
        )
    return f"one process per contestant, batches of {row.batch_size}, {row.threads} thread(s)"


def draw(results: Results, panel: Panel) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    if panel.timing_column is not None and results.timing:
        _draw_timing(axes, results, panel)
        if panel.name == "memory":
            _draw_paper_memory(axes)
    else:
        _draw_epochs(axes, results, panel)
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "no data yet", ha="center", transform=axes.transAxes, color="#666666")
    plot.bare(axes)
    figure.text(0.01, 0.01, source(results, panel), fontsize=7, color="#666666")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def _save(figure: Figure, path: Path) -> None:
    kind = path.suffix[1:]
    options = {"png": {"dpi": 130}, "svg": {"metadata": {"Date": None}}}[kind]
    write_atomically(path, lambda file: figure.savefig(file, format=kind, **options))


def save_all(results: Results, folder: Path) -> None:
    """Writes every figure as PNG and SVG."""
    for panel in PANELS:
        with plt.rc_context(STABLE):
            figure = draw(results, panel)
            for suffix in ("png", "svg"):
                _save(figure, folder / f"{panel.stem}.{suffix}")
            plt.close(figure)
