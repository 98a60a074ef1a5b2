"""Trains one network from one seed with sepconv's layers and with stock's, and measures how they drift apart.

    python benchmarks/convergence.py                          the comparisons below, some minutes
    python benchmarks/convergence.py --only float64 --steps 5

Any two orders of adding differ in rounding, and training magnifies that, batch norm over few values most of
all. Stock PyTorch differs from itself in the same way between its memory formats and numbers of threads, so
the yardstick is stock's own drift from the reference, and `ratio` is a drift over the yardstick's:

    float64    drift of the parameters from stock-nhwc; yardstick stock-nchw
    float32    drift of the losses from stock-nhwc on one thread; yardstick the same on two threads
    bfloat16   drift of the losses from sepconv's in float32, under autocast; yardstick stock's in float32

The drift of the parameters is the relative L2 distance at a step, that of the losses the root mean square of
their differences up to a step. The network is optimized_xception at 16x16 (maps of 16, 8, 4, 2 and 1), the
data the shipped subset of Fashion-MNIST, the optimizer fused Adam. Ends with status 1 if a ratio of sepconv's
is above its limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import harness
import networks
import torch
from torch.nn import functional as F
from tqdm import tqdm

from sepconv import models
from sepconv.models import data
from sepconv.models.images import batches

SETUPS = networks.SETUPS | networks.AUTOCAST_SETUPS
SIZE = 16
MARKS = (1, 2, 5, 10, 20, 50, 100, 200, 300)


@dataclass(frozen=True)
class Comparison:
    """Ways to train one network. NAME@2 runs on two threads, NAME on as many as --threads says.

    Attributes:
        dtype: of parameters and images.
        of: what drifts, 'parameters' or 'losses'.
        reference: where the drift is measured from.
        yardstick: what its drift is divided by.
        ours: whose ratio must stay within `limit`.
        others: shown beside them.
        limit: two draws of the same noise differ less.
    """

    dtype: torch.dtype
    steps: int
    of: str
    reference: str
    yardstick: str
    ours: tuple[str, ...]
    limit: float
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.reference, self.yardstick, *self.ours, *self.others)


COMPARISONS = {
    "float64": Comparison(torch.float64, 200, "parameters", "stock-nhwc", "stock-nchw", ("sepconv",), 10),
    "float32": Comparison(
        torch.float32, 200, "losses", "stock-nhwc@1", "stock-nhwc@2", ("sepconv@1", "sepconv@2"), 1.5
    ),
    "bfloat16": Comparison(
        torch.float32,
        300,
        "losses",
        "sepconv",
        "stock-nhwc",
        ("sepconv-bfloat16",),
        1.5,
        ("stock-bfloat16",),
    ),
}


class Trainee:
    """One way to train the network."""

    def __init__(self, name: str, dtype: torch.dtype, args: argparse.Namespace, seed: int) -> None:
        setup, _, threads = name.partition("@")
        self.setup = SETUPS[setup]
        self.threads = int(threads or args.threads)
        torch.manual_seed(seed)
        model = models.optimized_xception(in_channels=1, stem_stride=1, layers=self.setup.layers)
        self.model = model.to(dtype=dtype, memory_format=self.setup.memory_format).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=args.lr, fused=True)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One training step; returns its loss."""
        torch.set_num_threads(self.threads)
        images = images.contiguous(memory_format=self.setup.memory_format)
        with self.setup.autocast():
            logits = self.model(images)
        loss = F.cross_entropy(logits.to(images.dtype), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def parameters(self) -> torch.Tensor:
        return networks.flat(list(self.model.parameters()))


def examples(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of the shipped data, scaled to SIZE, and their labels."""
    train = data.load("fashion-mnist-subset").train
    images, labels = next(iter(batches(train, torch.arange(len(train)), len(train), 0)))
    images = images.to(dtype).div_(127.5).sub_(1)
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True), labels


def random_batches(
    dtype: torch.dtype, batch: int, steps: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = examples(dtype)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (batch,), generator=generator)
        yield images[chosen], labels[chosen]


@dataclass
class Course:
    """What one seed's training came to: losses at every step, the parameters' drift at the marks."""

    losses: dict[str, list[float]]
    parameters: dict[str, list[float]]


def train(comparison: Comparison, marks: Sequence[int], args: argparse.Namespace, seed: int) -> Course:
    """All ways side by side on the same batches."""
    trainees = {name: Trainee(name, comparison.dtype, args, seed) for name in comparison.names}
    losses: dict[str, list[float]] = {name: [] for name in trainees}
    drifts: dict[str, list[float]] = {name: [] for name in trainees}
    steps = random_batches(comparison.dtype, args.batch, marks[-1], seed)
    for step, batch in enumerate(tqdm(steps, f"seed {seed}", marks[-1], disable=None, leave=False), start=1):
        for name, trainee in trainees.items():
            losses[name].append(trainee.step(*batch))
        if step in marks:
            reference = trainees[comparison.reference].parameters()
            for name, trainee in trainees.items():
                drifts[name].append(networks.relative_error(trainee.parameters(), reference))
    return Course(losses, drifts)


def root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One comparison over all seeds, as it is recorded."""
    comparison = COMPARISONS[name]
    steps = args.steps or comparison.steps
    marks = [*(mark for mark in MARKS if mark < steps), steps]
    courses = [train(comparison, marks, args, seed) for seed in range(args.seeds)]
    drifts: dict[str, list[float]] = {}
    for way in comparison.names:
        if comparison.of == "parameters":
            found = torch.tensor([course.parameters[way] for course in courses])
            drifts[way] = [root_mean_square(column) for column in found.unbind(1)]
        else:
            found = torch.tensor([course.losses[way] for course in courses], dtype=torch.float64)
            found -= torch.tensor([course.losses[comparison.reference] for course in courses])
            drifts[way] = [root_mean_square(found[:, :mark]) for mark in marks]
    last = -(-steps // 4)
    return {
        "name": name,
        "of": comparison.of,
        "reference": comparison.reference,
        "yardstick": comparison.yardstick,
        "ours": list(comparison.ours),
        "limit": comparison.limit,
        "marks": marks,
        "drifts": drifts,
        "ratios": {way: drift[-1] / drifts[comparison.yardstick][-1] for way, drift in drifts.items()},
        "last_losses": {
            way: sum(sum(course.losses[way][-last:]) for course in courses) / (last * len(courses))
            for way in comparison.names
        },
    }


def exceeded(run: dict[str, Any]) -> list[str]:
    """A line for each ratio of sepconv's above its limit."""
    return [
        f"{row['name']}: {way} drifts {row['ratios'][way]:.2f} times as far as {row['yardstick']},"
        f" more than {row['limit']}"
        for row in run["rows"]
        for way in row["ours"]
        if not row["ratios"][way] <= row["limit"]
    ]


def table(row: dict[str, Any]) -> str:
    """One row a way: its drift up to some steps, the ratio at the end, the mean loss of the last quarter."""
    lines = []
    for way, drifts in row["drifts"].items():
        limit = f" (limit {row['limit']:g})" if way in row["ours"] else ""
        ratio = "-" if way == row["reference"] else f"{row['ratios'][way]:.2f}{limit}"
        cells = ["-"] * len(drifts) if way == row["reference"] else [f"{drift:.1e}" for drift in drifts]
        lines.append([way, *cells, ratio, f"{row['last_losses'][way]:.4f}"])
    head = f"{row['name']}: drift of the {row['of']}"
    marks = [f"step {mark}" for mark in row["marks"]]
    return harness.table([head, *marks, "ratio", "last losses"], lines)


def main() -> None:
    options = harness.parser(__doc__, rounds=1)
    options.add_argument("--only", help=f"of {','.join(COMPARISONS)} (all)")
    options.add_argument("--steps", type=harness.positive, help="default: 200, with bfloat16 300")
    options.add_argument("--seeds", type=harness.positive, default=3, help="pooled (%(default)s)")
    options.add_argument("--batch", type=harness.positive, default=16)
    options.add_argument("--lr", type=float, default=1e-3)
    args = options.parse_args()
    harness.prepare(args)
    names = harness.choose(args.only, COMPARISONS, "--only")
    rows = []
    for name in names:
        rows.append(compare(name, args))
        print(table(rows[-1]), end="\n\n", flush=True)
    torch.set_num_threads(args.threads)
    run = harness.record("convergence", args, rows=rows)
    print(harness.describe(run))
    if args.json:
        harness.save(run, args.json)
    if lines := exceeded(run):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()
