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

import demo
import harness
import layers
import record
import training

import models

README = harness.ROOT / "README.md"
BLOCK = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_MEASURED = "*Not measured yet: `make bench-results` fills this in.*"
NETWORKS = {
    "xception": "Xception, 299x299",
    "optimized_xception": "optimized Xception, 32x32, batch 64",
    "mobilenetv1": "MobileNetV1, 224x224",
    "mobilenetv2": "MobileNetV2, 224x224",
    "efficientnet_b0": "EfficientNet-B0, 224x224",
    "deeplabv3plus": "DeepLabV3+ (Xception-65), 513x513",
}

Runs = dict[str, dict[str, Any]]


def _footer(*runs: dict[str, Any]) -> str:
    """Where and when these records were measured, each place once."""
    return "\n".join(f"<sub>{line}</sub>" for line in dict.fromkeys(harness.describe(run) for run in runs))


def _demo(runs: Runs) -> str:
    run = runs["demo"]
    picture = record.path_of("demo").with_suffix(".png")
    parts = [layers.table(run), demo.training_table(run), demo.verdict(run)]
    if picture.exists():
        parts.append(f"![The same as a plot]({picture.relative_to(harness.ROOT).as_posix()})")
    return "\n\n".join([*parts, f"{layers.notes(run)}  \n{_footer(run)}"])


def _layers(runs: Runs) -> str:
    (run,) = runs.values()
    notes = layers.notes(run).replace("\n", "  \n")
    return f"{layers.table(run)}\n\n{notes}  \n{_footer(run)}"


def _networks(runs: Runs) -> str:
    """The sum over each network's layers, a line a network."""
    totals = {name: run["total"]["contestants"] for name, run in runs.items()}
    names = [name for name in layers.peers.CONTESTANTS if any(name in total for total in totals.values())]

    def cell(contestant: str, result: dict[str, Any] | None) -> str:
        if result is None:
            return "-"
        text = harness.milliseconds(result["ms"]["median"])
        ratio = "" if contestant == layers.BASELINE else f" ({harness.times(result['ratio']['median'])})"
        return text + ratio

    rows = []
    for name, run in runs.items():
        label = f"{NETWORKS[name.removeprefix('layers-')]} ({run['total']['count']} layers)"
        rows.append([label, *(cell(peer, totals[name].get(peer)) for peer in names), _losses(run)])
    table = harness.table(["sum of layers, ms", *names, "slower than a peer"], rows)
    return f"{table}\n\n{_footer(*runs.values())}"


def _losses(run: dict[str, Any]) -> str:
    """On how many of its distinct layers sepconv is behind the fastest contestant that is not sepconv."""
    behind = 0
    for row in run["rows"]:
        ratios = [
            r["ratio"]["median"] for n, r in row["contestants"].items() if not n.startswith(layers.BASELINE)
        ]
        behind += min(ratios, default=1) < 1
    return f"{behind} of {len(run['rows'])}"


def _models(runs: Runs) -> str:
    rows = {"rows": [row for run in runs.values() for row in run["rows"]]}
    return f"{models.table(rows)}\n\n{_footer(*runs.values())}"


def _training(runs: Runs) -> str:
    parts = [f"**{run['name']}**\n\n{training.table(run)}" for run in runs.values()]
    return "\n\n".join([*parts, _footer(*runs.values())])


# Name in the README: how it is rendered, and the records it needs; those not measured are left out.
TABLES: dict[str, tuple[Callable[[Runs], str], Sequence[str]]] = {
    "demo": (_demo, ["demo"]),
    "layers": (_layers, ["layers-xception"]),
    "layers-1-thread": (_layers, ["layers-xception-1-thread"]),
    "layers-raised": (_layers, ["layers-xception-raised"]),
    "layers-training": (_layers, ["layers-xception-training"]),
    "networks": (_networks, [f"layers-{network}" for network in NETWORKS]),
    "models": (_models, ["models-xception", "models-optimized_xception"]),
    "training": (_training, ["training-optimized_xception", "training-xception"]),
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
