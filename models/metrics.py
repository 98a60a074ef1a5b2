"""What an epoch is measured by: its record, the peak memory, the validation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .distributed import World
from .images import Batch


@dataclass(frozen=True)
class EpochRecord:
    """One row of the CSV. Losses are means over images; under torchrun, over the images of all processes."""

    epoch: int
    train_seconds: float
    train_loss: float
    val_accuracy: float
    val_loss: float
    val_seconds: float
    peak_memory_mib: float


class PeakMemory:
    """The most memory held since `reset`, in MiB.

    On CUDA that is what the allocator handed out; on the CPU, the resident memory of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        """Starts a new measurement. Where the system cannot (not Linux), the peak is the process's own."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present size

    def mib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            status = Path("/proc/self/status").read_text()
            return (
                next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
            )
        except (OSError, StopIteration):
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    prepare: Callable[[torch.Tensor, torch.Tensor], Batch],
    world: World,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of `model` over the batches of all processes together.

    Sums, not means, are added up between processes, so that shares of different size count exactly.
    """
    was_training = model.training
    model.eval()
    loss_sum, correct, count = 0.0, 0, 0
    for images, labels in batches:
        images, labels = prepare(images, labels)
        logits = model(images).float()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
        count += len(labels)
        on_batch()
    model.train(was_training)
    loss_sum, correct, count = world.sum([loss_sum, correct, count])
    return correct / count, loss_sum / count
