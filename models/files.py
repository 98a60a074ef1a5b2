"""Reads and writes files so that a broken one is named, and a whole one is never half replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch


class WeightsError(ValueError):
    """Weights or a checkpoint are broken, truncated or do not fit; the message names the file."""


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs the package safetensors") from error
    return load_file(path)


def _read_pickled(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def read_torch(path: Path) -> object:
    """Loads a ``torch.save`` or ``.safetensors`` file onto the CPU, running no code that it may hold.

    Raises ``FileNotFoundError``, or :class:`WeightsError` if the file is broken, truncated or unsafe.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickled
    try:
        return read(path)
    except ImportError:
        raise
    except Exception as error:  # the zip reader, the unpickler and safetensors each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cannot be read as weights: {reason}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` with an open file that takes the place of `path` only once it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    # The rename itself has to reach the disk too, or a power cut may bring the old file back.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
