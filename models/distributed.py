"""The processes that train together: one alone, or those that torchrun started."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as dist


@dataclass(frozen=True)
class World:
    """This process among `size`. Alone, its operations return what they were given."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def _reduced(self, values: Sequence[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(values)
        # float64 holds every count below 2**53 exactly.
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op)
        return tensor.tolist()

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the processes."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over the processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def gather(self, value: object) -> list[object]:
        """The object of every process, in their order."""
        if self.size == 1:
            return [value]
        gathered: list[object] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrites `tensors` everywhere by those of the main process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


# What torchrun, and every other launcher that PyTorch understands, sets for its processes.
_LAUNCHER_VARIABLES = frozenset(("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """Joins the processes that a launcher started, by nccl for CUDA devices and gloo for others.

    A model that trains in parallel has to be unreachable when the context ends.
    """
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if not os.environ.keys() >= _LAUNCHER_VARIABLES:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    yield World(dist.get_rank(), dist.get_world_size(), chosen)
    # DistributedDataParallel lies in a cycle of references. If it dropped the group last, it would hold the
    # interpreter's lock while it waits for gloo's threads, which may need that lock to drop their tensors.
    gc.collect()
    # Not after an error: leaving the group then could wait for processes that are stuck in it.
    dist.destroy_process_group()
