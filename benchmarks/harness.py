"""What every benchmark here shares: interleaved timing, probes, the record that is written, and tables.

Contestants take turns (A B C, B C A, ...) so that a machine which slows down slows all of them alike; ratios
are taken within a round and reported by median and quartiles. The FMA probe runs before and after each row: a
row whose two probes differ by more than 3 % is measured again, and marked if it stays so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import probe
import torch

import sepconv

SCHEMA = 2
ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PROBE_TOLERANCE = 0.03
# Worker threads of OpenMP and of the peers' pools spin for a while after their work; the next contestant
# must not find them on its cores. Not longer: threads that have slept take a while to spread over the cores.
SETTLE_SECONDS = 0.003
# glibc maps large blocks afresh at each allocation, and each page faults again: 'raised' keeps them.
MALLOC = {
    "default": None,
    "raised": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592",
}
# Libraries read these when they are loaded. The inference engines have no such cap.
CAPS = {
    "avx2": {
        "SEPCONV_CPU_CAPABILITY": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


# Command line -----------------------------------------------------------------------------------------------


def parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="default: all cores")
    options.add_argument(
        "--rounds", type=positive, default=rounds, help="turns of each contestant (%(default)s)"
    )
    options.add_argument("--malloc", choices=MALLOC, default="default", help="glibc's mmap threshold")
    options.add_argument("--isa", choices=CAPS, help="cap sepconv and stock PyTorch to it (the CPU's best)")
    options.add_argument("--json", type=Path, metavar="PATH", help="write the record here")
    return options


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def choose(wanted: str | None, available: Iterable[str], option: str = "--contestants") -> list[str]:
    """The comma-separated names in `wanted` (all if None), checked against those there are."""
    names = list(available)
    chosen = names if wanted is None else [word.strip() for word in wanted.split(",")]
    unknown = [word for word in chosen if word not in names]
    if unknown:
        raise SystemExit(f"{option}: {', '.join(unknown)} not among {', '.join(names)}")
    return chosen


def prepare(args: argparse.Namespace) -> None:
    """Applies --malloc and --isa, which only a fresh process obeys, and --threads."""
    tunables = MALLOC[args.malloc]
    wanted = ({"GLIBC_TUNABLES": tunables} if tunables else {}) | CAPS.get(args.isa, {})
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    torch.set_num_threads(args.threads)


# Timing -----------------------------------------------------------------------------------------------------


def _sample(run: Callable[[], object], calls: int) -> float:
    """Seconds of one call, from `calls` of them after one that is not counted."""
    time.sleep(SETTLE_SECONDS)
    run()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def interleave(
    contestants: dict[str, Callable[[], object]],
    rounds: int,
    sample_ms: float,
    each_round: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; a sample repeats the call to last about `sample_ms`.

    `each_round` is called once a round, between two contestants.
    """
    names = list(contestants)
    calls = {name: max(1, round(sample_ms / 1e3 / _sample(contestants[name], 1))) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_sample(contestants[name], calls[name]))
        each_round()
    return seconds


def steadily(
    measure: Callable[[], Any], threads: int, *, isa: str | None = None, retries: int = 2
) -> tuple[Any, dict[str, Any]]:
    """Runs `measure` between two probes, again while they disagree; returns its result and the probes."""
    before = probe.fma_peak(threads, isa)
    for attempt in range(retries + 1):
        result = measure()
        after = probe.fma_peak(threads, isa)
        rates = (before.gflops, after.gflops)
        steady = min(rates) >= (1 - PROBE_TOLERANCE) * max(rates)
        if steady or attempt == retries:
            break
        before = after
    return result, {"gflops": max(rates), "before": rates[0], "after": rates[1], "steady": steady}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def compare(seconds: dict[str, list[float]], baseline: str) -> dict[str, dict[str, Any]]:
    """Milliseconds of each contestant, and how many times longer than `baseline` it took, round by round."""
    rows: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        rows[name] = {"ms": spread([1e3 * value for value in values])}
        if baseline in seconds:
            rows[name]["ratio"] = spread([a / b for a, b in zip(values, seconds[baseline], strict=True)])
    return rows


# The record -------------------------------------------------------------------------------------------------


def kernels_linked() -> bool:
    """Whether sepconv runs its compiled kernels here, and not the plain-torch fallback."""
    return sepconv.info()["not_loaded"] is None


def cpu_capability() -> str:
    """The instruction set of sepconv's kernels; 'reference' where they are not loaded."""
    return sepconv.info()["cpu_capability"] or "reference"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _malloc_name() -> str:
    preloaded = os.environ.get("LD_PRELOAD")
    if preloaded:
        return f"LD_PRELOAD={Path(preloaded).name}"
    tunables = os.environ.get("GLIBC_TUNABLES")
    return "default" if not tunables else next((k for k, v in MALLOC.items() if v == tunables), tunables)


def machine(threads: int) -> dict[str, Any]:
    peers = ("onnxruntime", "openvino")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": cpu_capability(),
        "last_level_cache_mib": probe.last_level_cache() // 2**20,
        "malloc": _malloc_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sepconv": sepconv.__version__,
        "peers": {name: metadata.version(name) for name in peers if util.find_spec(name)},
    }


def commit() -> str:
    """The commit that was measured, with '+' when sources differ from it; 'unknown' outside a clone."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--", "csrc", "sepconv", "models", "setup.py", "benchmarks/*.py"
        )
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def record(benchmark: str, args: argparse.Namespace, **content: Any) -> dict[str, Any]:
    """The whole of a run, as it is written to JSON; paths of this machine stay out of it."""
    settings = {key: value for key, value in vars(args).items() if not isinstance(value, Path | None)}
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "settings": settings,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "machine": machine(args.threads),
        **content,
    }


def save(run: dict[str, Any], path: Path) -> None:
    """Writes the record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(run, indent=1) + "\n")
    scratch.replace(path)
    print(f"wrote {path}")


def load(path: Path) -> dict[str, Any]:
    run = json.loads(path.read_text())
    if run.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema must be {SCHEMA}, got {run.get('schema')!r}")
    return run


# People -----------------------------------------------------------------------------------------------------


def describe(*runs: dict[str, Any]) -> str:
    """A line for each place where records were measured, and when.

    The FMA peak, where it was probed, tells machines apart that give themselves the same name, so records
    with peaks a tenth apart are of one place: neighbours on a shared host move the peak that much.
    """
    places: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=_peak):
        box = run["machine"]
        start = f"{box['cpu']}, {box['cores']} cores, {box['threads']} threads, {box['isa']}"
        peers = "".join(f", {name} {version}" for name, version in box["peers"].items())
        end = f"torch {box['torch']}{peers}, malloc {box['malloc']}"
        generation = next(
            (key[2] for key in places if key[:2] == (start, end) and _peak(run) <= 1.1 * float(key[2])),
            str(_peak(run)),
        )
        places.setdefault((start, end, generation), []).append(run)

    def line(start: str, end: str, here: list[dict[str, Any]]) -> str:
        low, high = (round(f(map(_peak, here)), -1) for f in (min, max))
        rates = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
        peak = f", FMA peak about {rates} GFLOP/s" if high > 0 else ""
        dates = " and ".join(sorted({run["date"] for run in here}))
        commits = list(dict.fromkeys(run["commit"] for run in runs if run in here))
        noun = "commit" if len(commits) == 1 else "commits"
        return f"{start}{peak}, {end}, {dates}, {noun} {', '.join(commits)}"

    return "\n".join(line(start, end, here) for (start, end, _), here in places.items())


def _peak(run: dict[str, Any]) -> float:
    """GFLOP/s of a record's FMA probe, 0 where it has none."""
    return float(run["probe"]["gflops"]) if "probe" in run else 0.0


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, aligned for reading as it stands: first column left, the others right."""
    cells = [list(headers), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])


def milliseconds(value: float) -> str:
    """Three significant digits, never in exponents."""
    return (
        f"{value:.3f}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:.0f}"
    )


def times(value: float) -> str:
    return f"{value:.2f}x"


def time_and_ratio(result: dict[str, Any] | None) -> str:
    """Milliseconds of a contestant, and in brackets its time over the baseline's; '-' if it did not run."""
    if result is None:
        return "-"
    text = milliseconds(result["ms"]["median"])
    ratio = result.get("ratio", {}).get("median", 1)
    return text if ratio == 1 else f"{text} ({times(ratio)})"


def warn_if_reference() -> None:
    if not kernels_linked():
        print(
            "sepconv runs WITHOUT its kernels (plain-torch reference): its times below say nothing.",
            file=sys.stderr,
        )
