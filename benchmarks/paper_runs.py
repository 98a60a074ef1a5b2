"""Trains what paper.py compares, each variant and seed in a folder of its own, and keeps `runs.csv`.

A run's checkpoint is the truth about it: started again, a run goes on from there, and the table takes what
the run's folder says. Rows of runs without a folder stay as they are; where all are there, the run is done.
"""

from __future__ import annotations

import csv
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import paper_tables
from paper_tables import EpochRow, Variant

from sepconv.models import SETTINGS, build_model, checkpoint
from sepconv.models.config import TrainConfig
from sepconv.models.images import ImageData
from sepconv.models.metrics import EpochRecord
from sepconv.models.training import train

COMPARISON = tuple(Variant(setting) for setting in SETTINGS)
# One thing changes at a time; what they share with the comparison is trained once.
ABLATION = (
    Variant("optimized"),
    Variant("optimized", stem_stride=1),
    Variant("optimized-with-data"),
    Variant("optimized-with-data", row_stride=2),
)
# What a user would train today: for small images, with what training has learned since.
MODERN = (Variant("optimized", stem_stride=1, recipe="modern"),)
# What each recipe adds to the options that the command line gives.
RECIPES: dict[str, dict[str, object]] = {
    "paper": {},
    "modern": {
        "augment": "crop-flip",
        "schedule": "one-cycle",
        "label_smoothing": 0.1,
        "ema": 0.999,
    },
}


@dataclass(frozen=True)
class Planned:
    """A run to be done: `epochs` of a variant from a seed."""

    variant: Variant
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.variant.name}/seed-{self.seed}"


def plan(variants: Sequence[Variant], seeds: dict[str, int], epochs: int) -> list[Planned]:
    """All variants from seed 0, then those with a seed 1, …: a stopped series holds whole comparisons."""
    return [
        Planned(variant, seed, epochs)
        for seed in range(max(seeds.values()))
        for variant in variants
        if seed < seeds[variant.setting]
    ]


class Series:
    """The runs under one folder: trains them and keeps the table beside them.

    Args:
        folder: of `runs.csv`, and of `runs/VARIANT/seed-N/`.
        base: the options that all runs share.
        images: the data, loaded once.
        data_name: what the table calls it.
        measured_on: where and when, in words.
    """

    def __init__(
        self, folder: Path, base: TrainConfig, images: ImageData, data_name: str, measured_on: str
    ) -> None:
        self.folder, self.base, self.images = folder, base, images
        self.data_name, self.measured_on = data_name, measured_on
        self.rows = {paper_tables.key(row): row for row in paper_tables.read(table_path(folder), EpochRow)}

    def train(self, planned: Sequence[Planned], say: Callable[[str], object] = print) -> None:
        """Trains the runs that are not done, in this order."""
        for number, run in enumerate(planned):
            place = f"[{number + 1}/{len(planned)}] {run.name}:"
            if self._is_kept(run):
                say(f"{place} is in {table_path(self.folder).name}")
                continue
            say(f"{place} {run.epochs} epochs")

            def note(record: EpochRecord, number: int = number, run: Planned = run) -> None:
                self._take(run, self._records(run))
                say(f"{run.name}, {_epoch_text(record, run.epochs)}; {self.time_left(planned[number:])}")

            records = train(self._config(run), on_epoch=note, images=self.images)
            self._take(run, records)
            gc.collect()  # the network and optimizer of a run lie in cycles; the next needs the memory

    def _is_kept(self, run: Planned) -> bool:
        """Whether the table alone has every epoch of it, trained with the options of this series."""
        if self._output(run).exists():
            return False
        rows = [row for row in self.rows.values() if _run_of(row) == _run_of(run)]
        now = (self.base.layers, self.base.batch_size, self.base.lr, self.data_name)
        images = (len(self.images.train), len(self.images.test))
        return {row.epoch for row in rows} >= set(range(1, run.epochs + 1)) and all(
            (row.layers, row.batch_size, row.lr, row.data) == now
            and (row.training_images, row.test_images) == images
            for row in rows
        )

    def _output(self, run: Planned) -> Path:
        return self.folder / "runs" / run.name

    def _config(self, run: Planned) -> TrainConfig:
        variant = run.variant
        return replace(
            self.base,
            setting=variant.setting,
            stem_stride=variant.stem_stride,
            row_stride=variant.row_stride,
            seed=run.seed,
            epochs=run.epochs,
            output=self._output(run),
            resume=True,
            **RECIPES[variant.recipe],
        )

    def _records(self, run: Planned) -> list[EpochRecord]:
        """What the run's own CSV says, which training has just written."""
        with checkpoint.csv_path(self._output(run)).open(newline="") as file:
            rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
        return [EpochRecord(**row | {"epoch": int(row["epoch"])}) for row in rows]

    def _take(self, run: Planned, records: Iterable[EpochRecord]) -> None:
        """Puts these records in place of the run's rows; an unchanged one keeps where it was measured."""
        records = list(records)
        before = {paper_tables.key(row): row for row in self.rows.values() if _run_of(row) == _run_of(run)}
        for number in before:
            del self.rows[number]
        for record in records:
            row = self._row(run, record, max(run.epochs, len(records)))
            old = before.get(paper_tables.key(row))
            if old is not None and _measured(old) == _measured(row):
                row = replace(row, measured_on=old.measured_on)
            self.rows[paper_tables.key(row)] = row
        ordered = sorted(self.rows.values(), key=lambda row: (row.recipe, row.variant.name, *_last(row)))
        paper_tables.write(table_path(self.folder), ordered, EpochRow)

    def _row(self, run: Planned, record: EpochRecord, epochs: int) -> EpochRow:
        return EpochRow(
            **vars(run.variant),
            seed=run.seed,
            **vars(record),
            epochs=epochs,
            parameters=self._parameters(run.variant),
            layers=self.base.layers,
            batch_size=self.base.batch_size,
            lr=self.base.lr,
            data=self.data_name,
            training_images=len(self.images.train),
            test_images=len(self.images.test),
            measured_on=self.measured_on,
        )

    def _parameters(self, variant: Variant) -> int:
        model = build_model(variant.setting, len(self.images.classes), self.images.channels, layers="stock")
        return sum(parameter.numel() for parameter in model.parameters())

    def time_left(self, left: Iterable[Planned]) -> str:
        """How long these runs will take, by the epochs of the same variants so far."""
        seconds, known = 0.0, True
        for run in left:
            done = {row.epoch for row in self.rows.values() if _run_of(row) == _run_of(run)}
            remaining = sum(epoch not in done for epoch in range(1, run.epochs + 1))
            same = [row for row in self.rows.values() if row.variant == run.variant]
            times = [row.train_seconds + row.val_seconds for row in same]
            if times:
                seconds += remaining * statistics.median(times)
            else:
                known = False
        return f"{'about' if known else 'more than'} {_duration(seconds)} left"


def table_path(folder: Path) -> Path:
    return folder / "runs.csv"


def _run_of(row: EpochRow | Planned) -> tuple[Variant, int]:
    return row.variant, row.seed


def _last(row: EpochRow) -> tuple[int, int]:
    return row.seed, row.epoch


def _measured(row: EpochRow) -> tuple[float, ...]:
    return row.train_seconds, row.train_loss, row.val_loss


def _duration(seconds: float) -> str:
    clock = time.gmtime(round(seconds))
    hours = (clock.tm_yday - 1) * 24 + clock.tm_hour
    return f"{hours} h {clock.tm_min} min" if hours else f"{clock.tm_min} min {clock.tm_sec} s"


def _epoch_text(record: EpochRecord, epochs: int) -> str:
    return (
        f"epoch {record.epoch}/{epochs}: training loss {record.train_loss:.4f}, "
        f"validation loss {record.val_loss:.4f}, accuracy {record.val_accuracy:.4f}"
    )
