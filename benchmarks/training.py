"""Times whole training steps (forward, backward, optimizer) of a network, and the memory they take.

    python benchmarks/training.py --model optimized_xception --batch 64
    python benchmarks/training.py --model mobilenetv2_100 --size 224 --batch 16 --classes 1000
    python benchmarks/training.py --contestants sepconv,sepconv-bfloat16,stock-bfloat16
    python benchmarks/training.py --profile

sepconv's MobileNets are timm's networks with their convolutions, batch norms and activations in a
``sepconv.FusedSequential``, on the same parameters. Names with `bfloat16` run under autocast.

Before anything is timed, sepconv's network and stock's are compared in float64: loss, gradients and running
statistics. Each contestant lives in its own process (trainee.py), so that each has its own peak memory; the
processes take turns, so that they share the machine's good and bad moments. Gradients are checked against
float64 after the timing, where the check cannot disturb the memory that is measured.

Peak memory is the resident size at its highest while steps run, less the size before the first step.
Activation memory is the sum of the distinct storages, parameters and buffers aside, that autograd saves: of
the network, and of one block [ReLU → separable convolution → batch norm] by itself.

--profile prints the operators that take the largest shares of a step by themselves (torch.profiler).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import harness
import networks
import torch
from torch.nn import functional as F
from tqdm import tqdm
from trainee import BLOCK_INPUT, PHASES, SETUPS

BASELINE = "sepconv"
DEFAULT_CONTESTANTS = "sepconv,stock-nhwc,stock-nchw,compile"
# In float64 the two differ by rounding alone, which batch norm of few values magnifies.
SAME = 1e-9
PROFILE_ROWS = 12

Run = dict[str, Any]


# Measuring --------------------------------------------------------------------------------------------------


def step_in_float64(args: argparse.Namespace, layers: str) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics of a step on a part of the batch."""
    batch = min(args.batch, 8)
    images = networks.images(batch, args.size).double().contiguous(memory_format=torch.channels_last)
    model = networks.build(args.model, layers, args.classes, args.stem_stride).double().train()
    loss = F.cross_entropy(model(images), torch.arange(batch) % args.classes)
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": networks.flat([p.grad for p in model.parameters()]),
        "running statistics": networks.flat(list(model.buffers())),
    }


def compare_in_float64(args: argparse.Namespace) -> None:
    """Raises where sepconv's network does not compute what stock's does."""
    ours, stock = (step_in_float64(args, layers) for layers in ("sepconv", "stock"))
    for what, expected in stock.items():
        error = networks.relative_error(ours[what], expected)
        if not error <= SAME:
            raise AssertionError(f"{args.model}: {what} in float64 are {error:.1e} away from stock's")


class Worker:
    """A contestant in its own process."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        script = Path(__file__).with_name("trainee.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), name, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}; its messages stand above")
        return json.loads(line)

    def ask(self, command: str) -> Any:
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
    compare_in_float64(args)
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
    return {"name": title(args), "probe": rates, "contestants": contestants}


def title(args: argparse.Namespace) -> str:
    stem = f", stem stride {args.stem_stride}" if args.model in networks.XCEPTIONS else ""
    return f"{args.model}, {args.size}x{args.size}, batch {args.batch}{stem}"


def take_turns(workers: dict[str, Worker], rounds: int, command: str = "turn") -> dict[str, list[Any]]:
    """What each worker answers to `command` in each round, in rotating order."""
    names = list(workers)
    turns: dict[str, list[Any]] = {name: [] for name in names}
    for turn in tqdm(range(rounds), desc="rounds", disable=None, leave=False):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(workers[name].ask(command))
    return turns


def profiles(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What the operators of each contestant take in a step, one contestant after the other."""
    rows = {}
    for name in args.contestants:
        worker = Worker(name, args)
        try:
            rows[name] = worker.ask("profile")
        finally:
            worker.close()
    return rows


# Tables -----------------------------------------------------------------------------------------------------


def contestants(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run["contestants"]))


def label(run: Run) -> str:
    return run["name"] + ("" if run["probe"]["steady"] else " ~")


def table(run: Run) -> str:
    """One row a contestant: phases, the whole step, its time over sepconv's."""
    rows = []
    for name, result in run["contestants"].items():
        times = [harness.milliseconds(result["ms"][phase]["median"]) for phase in (*PHASES, "step")]
        ratio = harness.times(result["ratio"]["median"]) if "ratio" in result else "-"
        rows.append([name, *times, ratio])
    return harness.table([f"{label(run)}, ms", *PHASES, "step", "time / sepconv"], rows)


def steps_table(runs: Iterable[Run]) -> str:
    """One row a network: each contestant's step and its time over sepconv's."""
    runs = list(runs)
    names = contestants(runs)

    def cell(run: Run, name: str) -> str:
        result = run["contestants"].get(name)
        return harness.time_and_ratio(result and result | {"ms": result["ms"]["step"]})

    rows = [[label(run), *(cell(run, name) for name in names)] for run in runs]
    return harness.table(["training step, ms", *names], rows)


def memory_table(runs: Iterable[Run]) -> str:
    """MiB of each contestant: activations and peak of each network, activations of one block.

    In brackets sepconv's share of it, in the same dtype.
    """
    runs = list(runs)
    names = contestants(runs)

    def cell(run: Run, name: str, key: str) -> str:
        results = run["contestants"]
        if name not in results:
            return "-"
        ours = "sepconv-bfloat16" if name in networks.AUTOCAST_SETUPS else BASELINE
        text = f"{results[name][key]:.0f}"
        if name == ours or ours not in results:
            return text
        return f"{text} ({results[ours][key] / results[name][key]:.0%})"

    rows = [
        [what, *(cell(run, name, key) for name in names)]
        for run in runs
        for what, key in (
            (f"{run['name']}: activations", "activation_mib"),
            (f"{run['name']}: peak", "peak_mib"),
        )
    ]
    size = "x".join(map(str, BLOCK_INPUT))
    block = [f"one block, {size}: activations", *(cell(runs[0], name, "block_mib") for name in names)]
    return harness.table(["MiB (sepconv's share)", *names], [block, *rows])


def profile_table(name: str, rows: list[dict[str, Any]]) -> str:
    """The operators that take most, by themselves, and what the others take together."""
    whole = sum(row["ms"] for row in rows)
    others = rows[PROFILE_ROWS:]
    rest = {
        "name": f"{len(others)} others",
        "calls": sum(row["calls"] for row in others),
        "ms": sum(row["ms"] for row in others),
    }
    shown = [*rows[:PROFILE_ROWS], *([rest] if others else [])]
    lines = [
        [row["name"], f"{row['calls']:.0f}", harness.milliseconds(row["ms"]), f"{row['ms'] / whole:.1%}"]
        for row in shown
    ]
    return harness.table([f"{name}, a step", "calls", "ms", "share"], lines)


def main() -> None:
    options = harness.parser(__doc__, rounds=15)
    options.add_argument("--model", choices=networks.NAMES, default="optimized_xception")
    options.add_argument("--size", type=harness.positive, default=32, help="height and width of the images")
    options.add_argument("--batch", type=harness.positive, default=64)
    options.add_argument("--classes", type=harness.positive, default=10)
    options.add_argument("--stem-stride", type=int, choices=(1, 2), default=2, help="of the Xceptions")
    options.add_argument("--steps", type=harness.positive, default=3, help="timed steps a turn (%(default)s)")
    options.add_argument("--contestants", default=DEFAULT_CONTESTANTS, help=f"of {','.join(SETUPS)}")
    options.add_argument("--profile", action="store_true", help="print where the time of a step goes")
    args = options.parse_args()
    if args.model not in networks.XCEPTIONS and args.stem_stride != 2:
        raise SystemExit(f"--stem-stride: {args.model} has a stem of its own")
    harness.prepare(args)
    args.contestants = harness.choose(args.contestants, SETUPS)
    if args.profile:
        print(title(args))
        for name, rows in profiles(args).items():
            print(profile_table(name, rows), end="\n\n")
        return
    run = harness.record("training", args, **measure(args))
    print(harness.describe(run), table(run), memory_table([run]), sep="\n\n")
    if not run["probe"]["steady"]:
        print(f"~ the FMA probe changed by more than {harness.PROBE_TOLERANCE:.0%} during the run")
    harness.warn_if_reference()
    if args.json:
        harness.save(run, args.json)


if __name__ == "__main__":
    main()
