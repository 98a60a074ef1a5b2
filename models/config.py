"""The options of a training run, checked by themselves; their defaults exist here alone."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

import torch

from .data import DOWNLOADS
from .layers import LAYERS
from .recipe import AUGMENTATIONS, SCHEDULES
from .settings import SETTINGS

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16}


class ConfigError(ValueError):
    """A training option has a value that cannot work; the message names the option."""


def _check_choice(name: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


@dataclass(frozen=True)
class TrainConfig:
    """The options of a run; the command line's flags of the same names say what they mean.

    `output` None keeps a run in memory: no checkpoint, no CSV.
    """

    setting: str
    data: str
    epochs: int = 10
    batch_size: int = 64
    layers: str = "sepconv"
    lr: float = 1e-3
    seed: int = 0
    image_size: int | None = None
    stem_stride: int = 2
    row_stride: int = 1
    channels_last: bool = True
    amp: str = "none"
    augment: str = "none"
    schedule: str = "constant"
    label_smoothing: float = 0.0
    ema: float = 0.0
    device: str = "auto"
    threads: int | None = None
    workers: int = min(4, os.cpu_count() or 1)
    train_limit: int | None = None
    test_limit: int | None = None
    download: str | None = None
    output: str | os.PathLike[str] | None = None
    resume: bool = False
    checkpoint_steps: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name, choices in (
            *(("setting", SETTINGS), ("layers", LAYERS), ("amp", AMP_DTYPES)),
            *(("augment", AUGMENTATIONS), ("schedule", SCHEDULES)),
        ):
            _check_choice(name, getattr(self, name), choices)
        if self.download is not None:
            _check_choice("download", self.download, DOWNLOADS)
        for name in (
            *("epochs", "batch_size", "image_size", "row_stride", "threads"),
            *("train_limit", "test_limit", "checkpoint_steps"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.workers < 0:
            raise ConfigError(f"workers must be at least 0, got {self.workers}")
        if not self.lr > 0:
            raise ConfigError(f"lr must be above 0, got {self.lr}")
        for name in ("label_smoothing", "ema"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {value}")
        if self.row_stride != 1 and self.setting != "optimized-with-data":
            raise ConfigError(f"row_stride must be 1 with setting {self.setting!r}, got {self.row_stride}")
        if self.stem_stride not in (1, 2):
            raise ConfigError(f"stem_stride must be 1 or 2, got {self.stem_stride}")
        if self.device != "auto":
            try:
                device = torch.device(self.device)
            except RuntimeError as error:
                raise ConfigError(f"device must be one that PyTorch knows, got {self.device!r}") from error
            if device.type == "cuda" and not torch.cuda.is_available():
                raise ConfigError(f"device must be there, got {self.device!r} without CUDA")
        if self.output is None and (self.resume or self.checkpoint_steps):
            raise ConfigError("resume and checkpoint_steps need an output folder, got output None")
