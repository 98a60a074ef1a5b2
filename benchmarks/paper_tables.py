"""The two tables of paper.py on disk, one dataclass a row: ``runs.csv`` and ``timing.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from sepconv.models import SETTINGS
from sepconv.models.files import write_atomically


@dataclass(frozen=True)
class Variant:
    """What trains: a setting of the paper, how its stem strides, and by which recipe."""

    setting: str
    stem_stride: int = 2
    row_stride: int = 1
    recipe: str = "paper"

    @property
    def name(self) -> str:
        parts = [
            self.setting,
            *([self.recipe] if self.recipe != "paper" else []),
            *([f"stem-stride-{self.stem_stride}"] if self.stem_stride != 2 else []),
            *([f"row-stride-{self.row_stride}"] if self.row_stride != 1 else []),
        ]
        return "-".join(parts)


@dataclass(frozen=True)
class EpochRow:
    """An epoch of a run: which run, what the epoch came to, how and where it was trained.

    The times hold whatever else the machine did meanwhile; `timing.csv` has those to compare.
    """

    setting: str
    stem_stride: int
    row_stride: int
    recipe: str
    seed: int
    epoch: int
    train_seconds: float
    train_loss: float
    val_accuracy: float
    val_loss: float
    val_seconds: float
    peak_memory_mib: float
    epochs: int
    parameters: int
    layers: str
    batch_size: int
    lr: float
    data: str
    training_images: int
    test_images: int
    measured_on: str

    @property
    def variant(self) -> Variant:
        return Variant(self.setting, self.stem_stride, self.row_stride, self.recipe)


@dataclass(frozen=True)
class TimingRow:
    """A round of one contestant: mean time of a training step and of a validation batch; its peak memory."""

    setting: str
    layers: str
    round: int
    train_step_ms: float
    val_batch_ms: float
    peak_memory_mib: float
    parameters: int
    batch_size: int
    image_size: int
    threads: int
    steady: int
    measured_on: str


Row = TypeVar("Row", EpochRow, TimingRow)
_TYPES = {"int": int, "float": float, "str": str}
_KEYS = {
    EpochRow: ("setting", "stem_stride", "row_stride", "recipe", "seed", "epoch"),
    TimingRow: ("setting", "layers", "round"),
}


def key(row: EpochRow | TimingRow) -> tuple[object, ...]:
    """What no two rows of a table share."""
    return tuple(getattr(row, name) for name in _KEYS[type(row)])


def write(path: Path, rows: Iterable[EpochRow] | Iterable[TimingRow], kind: type) -> None:
    """Writes the table whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def read(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a table, none if there is no such file; raises ``ValueError`` that names file and line."""
    if not path.exists():
        return []
    names = [field.name for field in fields(kind)]
    rows: dict[tuple[object, ...], Row] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise ValueError(f"{path}: columns must be {','.join(names)}, got {reader.fieldnames}")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            row = _row(where, cells, kind)
            if key(row) in rows:
                raise ValueError(f"{where}: {key(row)} stands there twice")
            rows[key(row)] = row
    return list(rows.values())


def _row(where: str, cells: dict[str, str | None], kind: type[Row]) -> Row:
    if None in cells or None in cells.values():
        raise ValueError(f"{where}: expected {len(fields(kind))} cells")
    values = {}
    for field in fields(kind):
        try:
            values[field.name] = _TYPES[field.type](cells[field.name])
        except ValueError:
            raise ValueError(
                f"{where}: {field.name} must be of type {field.type}, got {cells[field.name]!r}"
            ) from None
    row = kind(**values)
    if row.setting not in SETTINGS:
        raise ValueError(f"{where}: setting must be one of {', '.join(SETTINGS)}, got {row.setting!r}")
    return row
