"""Makes a small file of weights from a checkpoint: ``python -m sepconv.models.export CHECKPOINT FILE``.

Weights are kept as float16, half the size; where the run averaged them, the average is taken.
:func:`sepconv.models.load_pretrained` reads the file into a float32 network.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .files import WeightsError, read_torch, write_atomically


def _weights(path: Path) -> dict[str, torch.Tensor]:
    content = read_torch(path)
    state = (content.get("average") or content.get("model")) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path}: is no checkpoint of sepconv.models.train")
    return dict(state)


def _half(path: Path, name: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    half = value.to(torch.float16)
    if not half.isfinite().all():
        raise WeightsError(f"{path}: {name} holds values that float16 cannot")
    return half


def export(checkpoint: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Writes the weights of a checkpoint as float16; whole or not at all.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        WeightsError: it is broken, or holds values outside float16; the message names the file.
    """
    path = Path(checkpoint)
    state = {name: _half(path, name, value) for name, value in _weights(path).items()}
    write_atomically(Path(target), lambda file: torch.save({"model": state}, file))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sepconv.models.export",
        description="Writes the weights of a checkpoint as float16, those averaged over the steps if it has "
        "them.",
    )
    parser.add_argument("checkpoint", help="checkpoint.pt of a run of sepconv.models.train")
    parser.add_argument("file", help="what to write")
    options = parser.parse_args(arguments)
    try:
        export(options.checkpoint, options.file)
    except (OSError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.file}: {Path(options.file).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
