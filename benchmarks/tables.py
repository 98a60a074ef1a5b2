"""The tables in the README, made from the records in results/.

    python benchmarks/tables.py            says whether the README is up to date
    python benchmarks/tables.py --write    rewrites what stands between its markers

A marker `<!-- table: NAME -->` opens a table, `<!-- end -->` closes it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import average
import convergence
import demo
import harness
import layer_tables
import library
import overhead
import record
import roofline
import training

import models

README = harness.ROOT / "README.md"
BLOCK = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_MEASURED = "*Not measured yet: `make bench-results` fills this in.*"

Runs = dict[str, dict[str, Any]]


def _footer(*runs: dict[str, Any]) -> str:
    """Where and when these records were measured, each place once."""
    return "\n".join(f"<sub>{line}</sub>" for line in harness.describe(*runs).splitlines())


def _picture(path: Path, text: str) -> str:
    return f"![{text}]({path.relative_to(harness.ROOT).as_posix()})"


def _lines(*lines: str) -> str:
    """Lines that Markdown keeps apart."""
    return "  \n".join(lines)


def _demo(runs: Runs) -> str:
    run = runs["demo"]
    picture = record.path_of("demo").with_suffix(".png")
    parts = [layer_tables.table(run), demo.training_table(run), demo.verdict(run)]
    if picture.exists():
        parts.append(_picture(picture, "The same as a plot"))
    return "\n\n".join([*parts, _lines(*layer_tables.notes(run), _footer(run))])


def _roofline(runs: Runs) -> str:
    """The plot, which `record.py` draws from these records."""
    if not roofline.TARGET.exists():
        return NOT_MEASURED
    picture = _picture(
        roofline.TARGET, "GFLOP/s of every layer over FLOPs a byte, below the machine's limits"
    )
    return f"{picture}\n\n{_footer(*runs.values())}"


def _layers(runs: Runs) -> str:
    """Each record's layers, one table below the other, and what they come to."""
    parts = []
    for run in runs.values():
        remarks = "\n".join(f"- {line}" for line in [*layer_tables.summary(run), *layer_tables.notes(run)])
        parts += [layer_tables.table(run), remarks]
    return "\n\n".join([*parts, _footer(*runs.values())])


def _label(run: dict[str, Any]) -> str:
    name = (record.NETWORKS | record.SMALL_MAPS)[run["settings"]["shapes"]]
    batch = f", batch {run['settings']['batch']}" if run["settings"]["batch"] > 1 else ""
    return f"{name}{batch} ({run['total']['count']} layers)"


def _networks(runs: Runs) -> str:
    """The sum over each network's layers, a line a network, and its worst layer."""
    names = layer_tables.contestants(runs.values())
    rows = []
    for run in runs.values():
        total = layer_tables.total(run)
        times = [harness.time_and_ratio(total["contestants"].get(name)) for name in names]
        rows.append(
            [
                _label(run),
                *times,
                *layer_tables.shares(run, total),
                layer_tables.behind(run),
                layer_tables.worst(run),
            ]
        )
    ends = ["of FMA rate", "of FMA peak", "of limit", f"below {layer_tables.BEHIND}x", "worst layer"]
    table = harness.table(["sum of layers, ms", *names, *ends], rows)
    return f"{table}\n\n{_footer(*runs.values())}"


def _single(table: Callable[[dict[str, Any]], str]) -> Callable[[Runs], str]:
    """Renders this table of the one record it needs."""

    def render(runs: Runs) -> str:
        (run,) = runs.values()
        return f"{table(run)}\n\n{_footer(run)}"

    return render


def _models(runs: Runs) -> str:
    rows = {"rows": [row for run in runs.values() for row in run["rows"]]}
    return f"{models.table(rows)}\n\n{_footer(*runs.values())}"


def _training(runs: Runs) -> str:
    """A line a network: its step, then what it holds in memory."""
    tables = [training.steps_table(runs.values()), training.memory_table(runs.values())]
    return "\n\n".join([*tables, _footer(*runs.values())])


def _training_phases(runs: Runs) -> str:
    return "\n\n".join([*map(training.table, runs.values()), _footer(*runs.values())])


def _convergence(runs: Runs) -> str:
    (run,) = runs.values()
    parts = [*map(convergence.table, run["rows"]), *convergence.exceeded(run)]
    return "\n\n".join([*parts, _footer(run)])


# Name on the page: how it is rendered, and the records it needs; those not measured are left out.
TABLES: dict[str, tuple[Callable[[Runs], str], Sequence[str]]] = {
    "demo": (_demo, ["demo"]),
    "networks": (_networks, [f"layers-{network}" for network in record.NETWORKS]),
    "networks-frozen": (_networks, [f"layers-{network}-frozen" for network in record.NETWORKS]),
    "networks-bfloat16": (_networks, [f"layers-{network}-bfloat16" for network in record.NETWORKS]),
    "roofline": (_roofline, record.ROOFLINE),
    "small-maps": (
        _networks,
        [f"layers-{shapes}-batch-{batch}" for shapes in record.SMALL_MAPS for batch in record.BATCHES],
    ),
    **{name: (_layers, [name]) for name in record.RUNS if name.startswith("layers-")},
    "average": (_single(average.table), ["average"]),
    "average-raised": (_single(average.table), ["average-raised"]),
    "overhead": (_single(overhead.table), ["overhead"]),
    "library-sizes": (_single(library.sizes_table), ["library"]),
    "library-workspace": (_single(library.workspace_table), ["library"]),
    "models": (_models, ["models-xception", "models-optimized_xception"]),
    "training": (_training, list(record.TRAINING)),
    "training-phases": (_training_phases, list(record.TRAINING)),
    "training-bfloat16": (_training, list(record.TRAINING_BFLOAT16)),
    "convergence": (_convergence, ["convergence"]),
}


def render(name: str) -> str:
    """The Markdown of one table."""
    if name not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {name!r}")
    renderer, names = TABLES[name]
    runs = {run: harness.load(record.path_of(run)) for run in names if record.path_of(run).exists()}
    for run in runs:
        if runs[run]["machine"]["isa"] == "reference":
            raise ValueError(f"{record.path_of(run)}: was measured without sepconv's kernels")
    return renderer(runs) if runs else NOT_MEASURED


def rewritten(text: str) -> str:
    """`text` with every table between markers made anew."""
    opened = text.count("<!-- table:")
    result, replaced = BLOCK.subn(lambda match: f"{match[1]}{render(match['name'])}\n{match[3]}", text)
    if opened != replaced:
        raise ValueError(f"{opened} markers open a table, {replaced} tables are closed by <!-- end -->")
    return result


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--write", action="store_true")
    options.add_argument(
        "files", nargs="*", type=Path, default=[README, *(harness.ROOT / "docs").glob("*.md")]
    )
    args = options.parse_args()
    stale = False
    for path in args.files:
        text = path.read_text()
        fresh = rewritten(text)
        if text == fresh:
            continue
        stale = True
        if args.write:
            path.write_text(fresh)
        print(f"{path.name}: {'rewritten' if args.write else 'out of date, --write rewrites it'}")
    if stale and not args.write:
        sys.exit(1)


if __name__ == "__main__":
    main()
