"""Repeats the comparison of arXiv 2411.07544: three settings on CIFAR-10, its figures and its claims.

    python benchmarks/paper.py --data PATH --out DIR                train what is not trained yet
    python benchmarks/paper.py --timing --out DIR                   time and memory, on an idle machine
    python benchmarks/paper.py --ablation --data PATH --out DIR     strides of stem and rows
    python benchmarks/paper.py --recipe modern --data PATH --out DIR   what a user would get today
    python benchmarks/paper.py --report-only DIR                    figures and report from the tables alone

Every run, a setting from a seed, has a folder of its own under DIR/runs. Stopped or killed at any moment, the
same command goes on where it was. All write DIR/runs.csv (a row an epoch) or DIR/timing.csv (a row a round),
then the six figures of the paper and report.md, in which each claim stands beside what was measured.

Times of epochs hold whatever else the machine does. Those of figures and claims come from --timing, which
needs no data: contestants in processes of their own take turns at some training steps and validation batches.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import harness
import networks
import paper_report
import paper_runs
import paper_tables
import paper_timing
import torch
from paper_tables import EpochRow, TimingRow

import sepconv
from sepconv.models import SETTINGS, data
from sepconv.models.config import ConfigError, TrainConfig
from sepconv.models.files import WeightsError
from sepconv.models.images import DataError

# Epochs and seeds of each recipe, unless the command line says otherwise.
DEFAULTS = {"paper": (10, "3"), "modern": (30, "1")}
DEFAULT_CONTESTANTS = "sepconv,stock-nhwc"


def seeds_by_setting(words: Sequence[str]) -> dict[str, int]:
    """How many seeds each setting gets, from words like ``3 xception=1``."""
    seeds = dict.fromkeys(SETTINGS, 0)
    for word in words:
        name, _, count = word.rpartition("=")
        if name not in ("", *SETTINGS) or not count.isdigit() or ("=" in word and not name):
            raise SystemExit(f"--seeds: expected N or SETTING=N of {', '.join(SETTINGS)}, got {word!r}")
        for setting in [name] if name else SETTINGS:
            seeds[setting] = int(count)
    if not any(seeds.values()):
        raise SystemExit(f"--seeds: no setting has a seed in {' '.join(words)!r}")
    return seeds


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = options.add_mutually_exclusive_group()
    what.add_argument("--timing", action="store_true", help="time steps and batches instead of training")
    what.add_argument("--ablation", action="store_true", help="train the variants of the ablation")
    what.add_argument("--recipe", choices=paper_runs.RECIPES, default="paper", help="(%(default)s)")
    what.add_argument("--report-only", type=Path, metavar="DIR", help="draw DIR's tables, measure nothing")
    options.add_argument("--out", type=Path, metavar="DIR", help="folder of tables, figures and runs")
    options.add_argument("--data", metavar="PATH", help="CIFAR-10, as sepconv.models.train takes it")
    options.add_argument("--download", action="store_true", help="fetch CIFAR-10 into --data first")
    options.add_argument(
        "--seeds",
        nargs="+",
        metavar="N | SETTING=N",
        help="for all settings, and for one: 3 xception=2 (3; with --recipe modern 1, with --ablation 1)",
    )
    options.add_argument(
        "--epochs", type=harness.positive, help="10; with --recipe modern 30, with --ablation 5"
    )
    options.add_argument("--batch-size", type=harness.positive, default=64, help="default: %(default)s")
    options.add_argument("--lr", type=float, default=1e-3, help="of Adam (%(default)s)")
    options.add_argument("--layers", choices=("sepconv", "stock"), default="sepconv", help="to train with")
    options.add_argument("--threads", type=harness.positive, default=os.cpu_count() or 1, help="all cores")
    options.add_argument("--train-limit", type=harness.positive, help="use only so many training images")
    options.add_argument("--test-limit", type=harness.positive, help="use only so many test images")
    options.add_argument(
        "--checkpoint-steps", type=harness.positive, default=200, help="default: %(default)s"
    )
    options.add_argument("--no-progress", action="store_true", help="no progress bars")
    options.add_argument("--contestants", default=DEFAULT_CONTESTANTS, help=f"of {','.join(networks.SETUPS)}")
    options.add_argument("--rounds", type=harness.positive, default=15, help="of --timing (%(default)s)")
    options.add_argument("--steps", type=harness.positive, default=3, help="a turn (%(default)s)")
    args = options.parse_args(arguments)
    if args.report_only is None and args.out is None:
        options.error("--out is needed")
    if args.data is None and not (args.timing or args.report_only):
        options.error("--data is needed")
    return args


def measured_on(threads: int) -> str:
    """Where and when this is measured, and with which versions."""
    line = harness.describe(harness.record("paper", argparse.Namespace(threads=threads)))
    return f"{line}, sepconv {sepconv.__version__}, Python {platform.python_version()}"


def time_settings(args: argparse.Namespace) -> None:
    rows = paper_timing.measure(
        SETTINGS,
        harness.choose(args.contestants, networks.SETUPS),
        batch_size=args.batch_size,
        threads=args.threads,
        steps=args.steps,
        rounds=args.rounds,
        measured_on=measured_on(args.threads),
    )
    paper_tables.write(timing_path(args.out), rows, TimingRow)


def planned(args: argparse.Namespace) -> list[paper_runs.Planned]:
    if args.ablation:
        epochs = args.epochs or paper_report.ABLATION_EPOCHS
        return paper_runs.plan(paper_runs.ABLATION, dict.fromkeys(SETTINGS, 1), epochs)
    variants = paper_runs.MODERN if args.recipe == "modern" else paper_runs.COMPARISON
    epochs, seeds = DEFAULTS[args.recipe]
    return paper_runs.plan(variants, seeds_by_setting(args.seeds or [seeds]), args.epochs or epochs)


def train(args: argparse.Namespace) -> None:
    runs = planned(args)
    base = TrainConfig(
        setting=SETTINGS[0],
        data=args.data,
        batch_size=args.batch_size,
        layers=args.layers,
        lr=args.lr,
        device="cpu",
        threads=args.threads,
        output=args.out,
        checkpoint_steps=args.checkpoint_steps,
        progress=not args.no_progress,
    )
    if args.download:
        data.download("cifar10", args.data)
    images = data.load(args.data, train_limit=args.train_limit, test_limit=args.test_limit)
    name = Path(args.data).name
    series = paper_runs.Series(args.out, base, images, name, measured_on(args.threads))
    series.train(runs, lambda line: print(line, flush=True))


def timing_path(folder: Path) -> Path:
    return folder / "timing.csv"


def report(folder: Path) -> None:
    runs = paper_tables.read(paper_runs.table_path(folder), EpochRow)
    timing = paper_tables.read(timing_path(folder), TimingRow)
    if not runs and not timing:
        raise ValueError(f"{folder}: holds neither runs.csv nor timing.csv with rows")
    paper_report.write(folder, runs, timing)
    print(f"wrote {folder / 'report.md'} and the figures beside it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = parsed(arguments)
    torch.set_num_threads(args.threads)
    folder = args.report_only or args.out
    try:
        if args.timing:
            time_settings(args)
        elif not args.report_only:
            train(args)
        report(folder)
    except (ConfigError, DataError, ImportError, OSError, ValueError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from {folder}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
