"""One contestant of training.py in its own process: answers each line of stdin with a line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import networks
import torch
from torch import nn
from torch.nn import functional as F

from sepconv.models.blocks import separable_units
from sepconv.models.layers import layer_set
from sepconv.models.metrics import PeakMemory

SETUPS = networks.SETUPS | networks.AUTOCAST_SETUPS
PHASES = ("forward", "backward", "optimizer")
# The single block whose activations are measured beside the network's: channels in and out, and its input.
BLOCK_CHANNELS = 256
BLOCK_INPUT = (64, BLOCK_CHANNELS, 14, 14)


class Trainee:
    """A contestant's network, optimizer and batch."""

    def __init__(self, setup: networks.Setup, args: argparse.Namespace) -> None:
        self.args, self.setup = args, setup
        self.model = self.built(setup.layers).to(memory_format=setup.memory_format)
        self.call = setup.call(self.model)
        self.images = networks.images(args.batch, args.size).contiguous(memory_format=setup.memory_format)
        self.labels = torch.arange(args.batch) % args.classes
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)

    def built(self, layers: str) -> nn.Module:
        return networks.build(self.args.model, layers, self.args.classes, self.args.stem_stride).train()

    def loss(self) -> torch.Tensor:
        with self.setup.autocast():
            return F.cross_entropy(self.call(self.images).float(), self.labels)

    def step(self) -> dict[str, float]:
        """Seconds of each phase of one training step."""
        marks = [time.perf_counter()]
        loss = self.loss()
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
        return {phase: end - start for phase, start, end in zip(PHASES, marks, marks[1:], strict=False)}

    def steps(self, count: int) -> dict[str, float]:
        """Mean seconds of each phase over so many steps."""
        steps = [self.step() for _ in range(count)]
        return {phase: sum(step[phase] for step in steps) / count for phase in PHASES}

    @torch.no_grad()
    def validate(self, count: int) -> float:
        """Mean seconds of a batch of validation, over so many."""
        self.model.eval()
        start = time.perf_counter()
        for _ in range(count):
            self.loss().item()
        seconds = (time.perf_counter() - start) / count
        self.model.train()
        return seconds

    def profile(self, count: int) -> list[dict[str, Any]]:
        """What every operator takes in a step by itself, the longest first."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(count):
                self.step()
        rows = [
            {
                "name": event.key,
                "calls": event.count / count,
                "ms": event.self_cpu_time_total / count / 1e3,
            }
            for event in profiler.key_averages()
        ]
        return sorted(rows, key=lambda row: -row["ms"])

    def activation_bytes(self) -> int:
        return saved_bytes(self.loss, self.model)

    def block_bytes(self) -> int:
        """The same of one block [ReLU → separable convolution → batch norm], as many channels out as in."""
        block = separable_units([BLOCK_CHANNELS] * 2, layer_set(self.setup.layers))
        block = block.train().to(memory_format=self.setup.memory_format)
        call = self.setup.call(block)
        # A tensor of the graph, as inside a network, and of the dtype that the block before would hand over.
        x = torch.randn(BLOCK_INPUT, dtype=self.setup.dtype, requires_grad=True)
        x = x.contiguous(memory_format=self.setup.memory_format)

        def forward() -> torch.Tensor:
            with self.setup.autocast():
                return call(x)

        forward().sum().backward()  # compiles
        return saved_bytes(forward, block)

    def check(self) -> None:
        """Raises where the gradients from seed 0 are further from float64 than ten times stock's.

        Of stock's two memory formats the one further off counts: a rounding that turns one ReLU or one
        maximum of a pool changes the gradient far more than the rounding itself, in either.
        """

        def gradient(
            model: nn.Module, images: torch.Tensor, autocast: AbstractContextManager[Any]
        ) -> torch.Tensor:
            with autocast:
                logits = model(images)
            F.cross_entropy(
                logits.to(torch.promote_types(images.dtype, torch.float32)), self.labels
            ).backward()
            return networks.flat([p.grad for p in model.parameters()])

        images = self.images.contiguous()
        exact = gradient(self.built("stock").double(), images.double(), nullcontext())
        formats = torch.contiguous_format, torch.channels_last
        stock = [
            gradient(
                self.built("stock").to(memory_format=form),
                images.to(memory_format=form),
                self.setup.autocast(),
            )
            for form in formats
        ]
        self.model.load_state_dict(self.built("stock").state_dict())
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()
        error = networks.relative_error(networks.flat([p.grad for p in self.model.parameters()]), exact)
        tolerance = max(networks.relative_error(got, exact) for got in stock)
        if not error <= 10 * tolerance:
            raise AssertionError(f"gradients are {error:.1e} away from float64, stock's {tolerance:.1e}")


def saved_bytes(forward: Callable[[], torch.Tensor], model: nn.Module) -> int:
    """Bytes of the distinct storages, parameters and buffers of `model` aside, that a forward pass saves."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor  # the graph keeps it alive, so no address is used twice

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(saved.values())


def resident_mib() -> float:
    """Present resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    name, args = sys.argv[1], argparse.Namespace(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    torch.set_num_threads(args.threads)
    empty = resident_mib()
    trainee = Trainee(SETUPS[name], args)
    before = resident_mib()
    trainee.steps(2)  # builds the optimizer's state; compiles
    peak = PeakMemory(torch.device("cpu"))
    peak.reset()

    def turn() -> dict[str, Any]:
        trainee.step()  # after another process's turn the caches are cold
        return trainee.steps(args.steps)

    def validation_turn() -> float:
        trainee.validate(1)
        return trainee.validate(args.steps)

    def finish() -> dict[str, Any]:
        highest = peak.mib()
        memory = {"peak_mib": highest - before, "whole_mib": highest - empty}
        memory["activation_mib"] = trainee.activation_bytes() / 2**20
        memory["block_mib"] = trainee.block_bytes() / 2**20
        trainee.check()
        return memory

    commands = {
        "turn": turn,
        "validation_turn": validation_turn,
        "finish": finish,
        "profile": lambda: trainee.profile(args.steps),
    }
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=answers)


if __name__ == "__main__":
    main()
