"""The state of a run on disk: ``checkpoint.pt``, and ``epochs.csv`` for people.

The checkpoint is the truth and takes the place of its forerunner in one rename. The CSV is written from the
records in the checkpoint, after it and again on resume: whenever a run is killed, the two agree afterwards.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .distributed import World
from .files import WeightsError, read_torch, write_atomically
from .metrics import EpochRecord

FORMAT = 1


@dataclass
class RunState:
    """How far a run is, beside what model and optimizer hold.

    Attributes:
        epoch: the epoch under way, or to begin; from 1.
        step: batches done in it.
        loss_sum: this process's share of the sum of their training losses.
        seconds: spent on them.
        records: of the epochs done.
    """

    epoch: int
    step: int
    loss_sum: float
    seconds: float
    records: list[EpochRecord]

    @classmethod
    def start(cls) -> RunState:
        return cls(epoch=1, step=0, loss_sum=0.0, seconds=0.0, records=[])


def checkpoint_path(output: Path) -> Path:
    return output / "checkpoint.pt"


def csv_path(output: Path) -> Path:
    return output / "epochs.csv"


def process_state(state: RunState, world: World) -> dict[str, Any]:
    """What differs between the processes of a run: random generators and the share of the loss."""
    process: dict[str, Any] = {"rng": torch.get_rng_state(), "loss_sum": state.loss_sum}
    if world.device.type == "cuda":
        process["cuda_rng"] = torch.cuda.get_rng_state(world.device)
    return process


def restore_process(state: RunState, processes: Sequence[Mapping[str, Any]], world: World) -> None:
    """Takes back this process's own part of a checkpoint.

    If there are more or fewer processes than before, the main one takes over the losses of all, and the
    others begin with its random state.
    """
    if len(processes) == world.size:
        own = processes[world.rank]
        state.loss_sum = own["loss_sum"]
    else:
        own = processes[0]
        state.loss_sum = sum(process["loss_sum"] for process in processes) if world.is_main else 0.0
    torch.set_rng_state(own["rng"])
    if world.device.type == "cuda" and "cuda_rng" in own:
        torch.cuda.set_rng_state(own["cuda_rng"], world.device)


def save(
    output: Path,
    *,
    state: RunState,
    identity: Mapping[str, object],
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, Any],
    processes: Sequence[object],
    average: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes the checkpoint, then the CSV.

    `identity` is what a resumed run has to share with this one; `average` are the averaged weights, if any.
    """
    content = {
        "format": FORMAT,
        "identity": dict(identity),
        "state": asdict(state),
        "model": dict(model),
        "optimizer": optimizer,
        "processes": list(processes),
    }
    if average is not None:
        content["average"] = dict(average)
    write_atomically(checkpoint_path(output), lambda file: torch.save(content, file))
    write_csv(output, state.records)


def load(output: Path) -> tuple[RunState, dict[str, Any]]:
    """Reads the checkpoint; the dict also holds identity, model, optimizer and processes.

    Raises :class:`~sepconv.models.files.WeightsError` that names the file if it is broken.
    """
    path = checkpoint_path(output)
    content = read_torch(path)
    try:
        if content["format"] != FORMAT:
            raise WeightsError(f"{path}: has format {content['format']}, this version reads {FORMAT}")
        state = RunState(**content["state"])
        state.records = [EpochRecord(**record) for record in state.records]
        content["identity"], content["model"], content["optimizer"], content["processes"][0]["rng"]
    except (KeyError, TypeError, IndexError) as error:
        raise WeightsError(f"{path}: is no checkpoint of this command: {error!r}") from error
    return state, content


def write_csv(output: Path, records: Sequence[EpochRecord]) -> None:
    """Writes one row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochRecord)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    write_atomically(csv_path(output), lambda file: file.write(text.getvalue().encode()))
