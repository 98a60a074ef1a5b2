"""Times whole training steps (forward, backward, optimizer) of a network, and the memory they take.

    python benchmarks/training.py --model optimized_xception --batch 64

Each contestant lives in its own process, so that each has its own peak memory; the processes take turns, so
that they share the machine's good and bad moments. Gradients are checked against float64 after the timing,
where the check cannot disturb the memory that is measured.

Peak memory is the resident size at its highest while steps run, less the size before the first step.
Activation memory is the sum of the distinct storages, parameters and buffers aside, that autograd saves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import harness
import networks
import torch
from networks import SETUPS
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from sepconv.models.metrics import PeakMemory

BASELINE = "sepconv"
PHASES = ("forward", "backward", "optimizer")
DEFAULT_CONTESTANTS = "sepconv,sepconv-nchw,stock-nhwc,stock-nchw,compile"
CLASSES = 10


# In the contestant's process --------------------------------------------------------------------------------


class Trainee:
    """One contestant: its network, its optimizer and its batch."""

    def __init__(self, setup: networks.Setup, args: argparse.Namespace) -> None:
        self.args, self.setup = args, setup
        self.model = self.built(setup.layers).to(memory_format=setup.memory_format)
        self.call = torch.compile(self.model, dynamic=False) if setup.compiled else self.model
        self.images = networks.images(args.batch, args.size).contiguous(memory_format=setup.memory_format)
        self.labels = torch.arange(args.batch) % CLASSES
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)

    def built(self, layers: str) -> nn.Module:
        return networks.build(self.args.model, layers, CLASSES, self.args.stem_stride).train()

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.args.amp == "bf16" else nullcontext()

    def loss(self) -> torch.Tensor:
        with self.autocast():
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

    def activation_bytes(self) -> int:
        """Bytes of the distinct storages, parameters and buffers aside, that one forward pass saves."""
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor  # the graph keeps it alive, so no address is used twice

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        del loss
        return sum(saved.values())

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
            return torch.cat([p.grad.double().flatten() for p in model.parameters()])

        images = self.images.contiguous()
        exact = gradient(self.built("stock").double(), images.double(), nullcontext())
        formats = torch.contiguous_format, torch.channels_last
        stock = [
            gradient(
                self.built("stock").to(memory_format=form), images.to(memory_format=form), self.autocast()
            )
            for form in formats
        ]
        self.model.load_state_dict(self.built("stock").state_dict())
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()
        ours = torch.cat([p.grad.double().flatten() for p in self.model.parameters()])
        error = networks.relative_error(ours, exact)
        tolerance = max(networks.relative_error(got, exact) for got in stock)
        if not error <= 10 * tolerance:
            raise AssertionError(f"gradients are {error:.1e} away from float64, stock's {tolerance:.1e}")


def resident_mib() -> float:
    """Present resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def serve(name: str, args: argparse.Namespace) -> None:
    """Answers each line of stdin with a line of JSON, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    torch.set_num_threads(args.threads)
    trainee = Trainee(SETUPS[name], args)
    before = resident_mib()
    for _ in range(2):  # builds the optimizer's state; compiles
        trainee.step()
    peak = PeakMemory(torch.device("cpu"))
    peak.reset()

    def turn() -> dict[str, Any]:
        trainee.step()  # after another process's turn the caches are cold
        steps = [trainee.step() for _ in range(args.steps)]
        return {phase: sum(step[phase] for step in steps) / len(steps) for phase in PHASES}

    def finish() -> dict[str, Any]:
        memory = {"peak_mib": peak.mib() - before, "activation_mib": trainee.activation_bytes() / 2**20}
        trainee.check()
        return memory

    commands = {"turn": turn, "finish": finish}
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=answers)


# In the parent ----------------------------------------------------------------------------------------------


class Worker:
    """A contestant in its own process."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        command = [sys.executable, __file__, "--serve", name, json.dumps(settings)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}; its messages stand above")
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        print(command, file=self.process.stdin)
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    workers: dict[str, Worker] = {}
    try:
        for name in tqdm(args.contestants, desc="start and first steps", disable=None, leave=False):
            workers[name] = Worker(name, args)
        turns, rates = harness.steadily(
            lambda: take_turns(workers, args.rounds), args.threads, isa=harness.cpu_capability()
        )
        memory = {name: worker.ask("finish") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    steps = {name: [sum(turn.values()) for turn in values] for name, values in turns.items()}
    contestants = harness.compare(steps, BASELINE)
    for name, values in turns.items():
        phases = {phase: harness.spread([1e3 * turn[phase] for turn in values]) for phase in PHASES}
        contestants[name] = {
            "ms": {"step": contestants[name].pop("ms"), **phases},
            **contestants[name],
            **memory[name],
        }
    amp = "" if args.amp == "none" else f", {args.amp} autocast"
    name = f"{args.model} {args.size}x{args.size}, batch {args.batch}, stem stride {args.stem_stride}{amp}"
    return {"name": name, "probe": rates, "contestants": contestants}


def take_turns(workers: dict[str, Worker], rounds: int) -> dict[str, list[dict[str, float]]]:
    names = list(workers)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in tqdm(range(rounds), desc="rounds", disable=None, leave=False):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(workers[name].ask("turn"))
    return turns


def table(run: dict[str, Any]) -> str:
    """One row a contestant: phases, the whole step, its time over sepconv's, memory."""
    rows = []
    for name, result in run["contestants"].items():
        row = [name, *(harness.milliseconds(result["ms"][phase]["median"]) for phase in (*PHASES, "step"))]
        row.append(harness.times(result["ratio"]["median"]) if "ratio" in result else "-")
        row += [f"{result['peak_mib']:.0f}", f"{result['activation_mib']:.1f}"]
        rows.append(row)
    headers = ["ms a step", *PHASES, "step", "time / sepconv", "peak memory, MiB", "activations, MiB"]
    return harness.table(headers, rows)


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--serve":
        serve(sys.argv[2], argparse.Namespace(**json.loads(sys.argv[3])))
        return
    options = harness.parser(__doc__, rounds=15)
    options.add_argument("--model", choices=networks.MODELS, default="optimized_xception")
    options.add_argument("--size", type=harness.positive, default=32, help="height and width of the images")
    options.add_argument("--batch", type=harness.positive, default=64)
    options.add_argument("--stem-stride", type=int, choices=(1, 2), default=2)
    options.add_argument("--amp", choices=("none", "bf16"), default="none", help="autocast")
    options.add_argument("--steps", type=harness.positive, default=3, help="timed steps a turn (%(default)s)")
    options.add_argument("--contestants", default=DEFAULT_CONTESTANTS, help=f"of {','.join(SETUPS)}")
    args = options.parse_args()
    harness.prepare(args)
    args.contestants = harness.choose(args.contestants, SETUPS)
    run = harness.record("training", args, **measure(args))
    print(harness.describe(run), run["name"] + ("" if run["probe"]["steady"] else " ~"), table(run), sep="\n")
    if not run["probe"]["steady"]:
        print(f"~ the FMA probe changed by more than {harness.PROBE_TOLERANCE:.0%} during the run")
    harness.warn_if_reference()
    if args.json:
        harness.save(run, args.json)


if __name__ == "__main__":
    main()
