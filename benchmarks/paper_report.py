"""`report.md` of paper.py: every sentence about a result is made from the tables, with either outcome."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import harness
import paper_claims
import paper_plots
import paper_runs
from paper_claims import LABELS, Results, shown
from paper_tables import EpochRow, TimingRow, Variant

from sepconv.models.files import write_atomically

# The file of JPEGs that needs a word wherever a result on it stands.
JPEG_DATA = "cifar10_jpeg.npz"
JPEG_CAVEAT = (
    f"**The data are not CIFAR-10 itself** but `{JPEG_DATA}`, a copy compressed as JPEG: 27 to 33 dB PSNR "
    "against the lossless originals, on the 20 images that could be compared. Accuracies on those may differ."
)
RECONSTRUCTION = (
    "The paper prints neither widths nor learning rate, batch size or stem stride. The optimized network is "
    "a reconstruction, and those options are ours: what does not hold here may hold with others."
)
ABLATION_EPOCHS = 5


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _distinct(rows: Iterable[EpochRow | TimingRow], name: str) -> list[object]:
    return list(dict.fromkeys(getattr(row, name) for row in rows))


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


# Sections ---------------------------------------------------------------------------------------------------


def _how_it_was_trained(runs: Sequence[EpochRow]) -> str:
    """The options of the runs, and what each setting has so far."""
    if not runs:
        return "No run of the comparison is there yet."
    images = {
        name: _listed(f"{count:,}" for count in _distinct(runs, name))
        for name in ("training_images", "test_images")
    }
    options = (
        f"Adam at {_listed(_distinct(runs, 'lr'))}, batches of {_listed(_distinct(runs, 'batch_size'))}, "
        f"cross-entropy, no augmentation, {_listed(_distinct(runs, 'layers'))} layers; "
        f"{_listed(_distinct(runs, 'data'))}: {images['training_images']} training and "
        f"{images['test_images']} test images."
    )
    results = Results(runs, [])
    done = []
    for setting, label in LABELS.items():
        seeds = results.seeds(setting)
        last = [max(e for name, s, e in results.epochs if (name, s) == (setting, seed)) for seed in seeds]
        epochs = _listed(dict.fromkeys(last)) or "no"
        done.append(f"{label}: {len(seeds)} seed{'' if len(seeds) == 1 else 's'}, {epochs} epochs")
    return f"{options} {'; '.join(done)}."


def _claims(findings: Sequence[paper_claims.Finding]) -> str:
    counts = ", ".join(
        f"{verdict} {sum(finding.verdict == verdict for finding in findings)}"
        for verdict in (paper_claims.HOLDS, paper_claims.FAILS, paper_claims.OPEN)
    )
    rows = [[finding.claim, finding.measured, f"**{finding.verdict}**"] for finding in findings]
    text = f"Verdicts on {len(findings)} claims: {counts}."
    # Not aligned: these cells are sentences.
    lines = [["the paper", "measured", "verdict"], [":--"] * 3, *rows]
    return _paragraphs("## Claims", text, "\n".join(f"| {' | '.join(line)} |" for line in lines))


def _last_epochs(results: Results) -> str:
    """Each setting at the last epoch that it reached."""
    rows = []
    for setting, label in LABELS.items():
        epochs = [epoch for name, _, epoch in results.epochs if name == setting]
        if epochs:
            last = max(epochs)
            rows.append([label, str(last), *_end(results, setting, last)])
    if not rows:
        return ""
    head = ["mean over seeds (least to largest)", "epoch", "training loss", "validation loss", "accuracy, %"]
    return _paragraphs("## Results", harness.table(head, rows))


def _end(results: Results, setting: str, epoch: int) -> list[str]:
    losses = [shown(results.values(setting, column, epoch)) for column in ("train_loss", "val_loss")]
    return [*losses, shown([100 * value for value in results.values(setting, "val_accuracy", epoch)], 1)]


def _median(rounds: dict[int, float]) -> str:
    spread = harness.spread(list(rounds.values()))
    low, median, high = (harness.milliseconds(spread[name]) for name in ("low", "median", "high"))
    return f"{median} ({low} to {high})"


def _over_first(results: Results, setting: str, layers: str, column: str) -> str:
    """The median of the time over that with the first set of layers, round by round."""
    ours, first = (results.rounds(setting, name, column) for name in (layers, results.layers()[0]))
    ratios = [time / first[number] for number, time in ours.items() if number in first]
    return harness.times(harness.spread(ratios)["median"]) if ratios else "-"


def _timing(results: Results) -> str:
    if not results.timing:
        return ""
    first = results.timing[0]
    rows = []
    for setting, label in LABELS.items():
        for layers in results.layers():
            rounds = results.rounds(setting, layers, "train_step_ms")
            if not rounds:
                continue
            batches = results.rounds(setting, layers, "val_batch_ms")
            mib = results.memory(layers)[setting]
            ratios = [
                _over_first(results, setting, layers, column) for column in ("train_step_ms", "val_batch_ms")
            ]
            cells = [_median(rounds), ratios[0], _median(batches), ratios[1], f"{mib:.0f}"]
            rows.append([f"{label}, {layers}", *cells])
    over = f"/ {results.layers()[0]}"
    times = ["training step, ms", over, "validation batch, ms", over]
    head = ["median (quartiles)", *times, "peak memory, MiB"]
    text = (
        f"Batches of {first.batch_size} at {first.image_size}x{first.image_size}, {first.threads} thread(s), "
        f"{max(row.round for row in results.timing)} rounds in which all contestants took turns. Memory is "
        "the resident memory of the process at its highest, less that before its network was built."
    )
    unsteady = (
        "" if first.steady else "~ the machine's speed changed by more than 3 % while this was measured."
    )
    return _paragraphs("## Time and memory", text, harness.table(head, rows), unsteady)


def _figures(results: Results) -> str:
    if not results.epochs and not results.timing:
        return ""
    pictures = [
        f"![Figure {panel.number}: {panel.title}]({panel.stem}.png)"
        f"  \nAs the paper's figure {panel.number}: {paper_plots.source(results, panel)}."
        for panel in paper_plots.PANELS
    ]
    return _paragraphs("## Figures", *pictures)


def _ablation(runs: Sequence[EpochRow]) -> str:
    """The variants at the last epoch that all of them have, from seed 0."""
    courses = {
        variant: {row.epoch: row for row in runs if row.variant == variant and row.seed == 0}
        for variant in paper_runs.ABLATION
    }
    courses = {variant: course for variant, course in courses.items() if course}
    if courses.keys() <= set(paper_runs.COMPARISON):
        return ""
    epoch = min(ABLATION_EPOCHS, *map(max, courses.values()))
    rows = [_ablation_row(variant, course, epoch) for variant, course in courses.items()]
    strides = ["network", "stem stride", "row stride"]
    head = [*strides, "training loss", "validation loss", "accuracy", "s an epoch"]
    text = (
        f"At epoch {epoch}, seed 0 alone: differences no larger than those between seeds above say nothing. "
        "Seconds are those of the runs themselves, not interleaved."
    )
    return _paragraphs("## Strides of stem and rows", text, harness.table(head, rows))


def _ablation_row(variant: Variant, course: dict[int, EpochRow], epoch: int) -> list[str]:
    at = course[epoch]
    seconds = [course[number].train_seconds for number in range(1, epoch + 1) if number in course]
    return [
        LABELS[variant.setting],
        str(variant.stem_stride),
        str(variant.row_stride) if variant.setting == paper_claims.WITH_DATA else "-",
        f"{at.train_loss:.3f}",
        f"{at.val_loss:.3f}",
        f"{at.val_accuracy:.1%}",
        f"{statistics.fmean(seconds):.0f}",
    ]


def _modern(runs: Sequence[EpochRow]) -> str:
    """The runs of the recipe of today, each at the last epoch it reached."""
    last: dict[tuple[Variant, int], EpochRow] = {}
    for row in runs:
        if row.recipe == "modern":
            best = last.get((row.variant, row.seed))
            last[row.variant, row.seed] = row if best is None or row.epoch > best.epoch else best
    if not last:
        return ""
    rows = [
        [
            f"{LABELS[row.setting]}, seed {row.seed}",
            f"{row.epoch} of {row.epochs}",
            f"{row.val_loss:.3f}",
            f"{row.val_accuracy:.2%}",
        ]
        for row in last.values()
    ]
    head = ["network", "epoch", "validation loss", "accuracy"]
    text = (
        "What a user would get today, and no part of the comparison: random crops and flips, a one-cycle "
        "learning rate, label smoothing, an average of the weights over the steps, and a stem of stride 1."
    )
    return _paragraphs("## A modern recipe", text, harness.table(head, rows))


def _measured_on(runs: Sequence[EpochRow], timing: Sequence[TimingRow]) -> str:
    lines = [f"- Runs: {line}" for line in _distinct(runs, "measured_on")]
    lines += [f"- Times and memory: {line}" for line in _distinct(timing, "measured_on")]
    return _paragraphs("## Where and when", "\n".join(lines)) if lines else ""


def text(runs: Sequence[EpochRow], timing: Sequence[TimingRow]) -> str:
    """The report on these rows."""
    results = Results(runs, timing)
    compared = list(results.epochs.values())
    caveat = JPEG_CAVEAT if JPEG_DATA in _distinct(runs, "data") else ""
    parts = (
        "# The comparison of arXiv 2411.07544, repeated",
        "Made by `python benchmarks/paper.py` from `runs.csv` and `timing.csv`; do not edit.",
        _how_it_was_trained(compared),
        caveat,
        RECONSTRUCTION,
        _claims(paper_claims.findings(results)),
        _paragraphs("### How a verdict is reached", paper_claims.RULES),
        _last_epochs(results),
        _timing(results),
        _figures(results),
        _ablation(runs),
        _modern(runs),
        _measured_on(runs, timing),
    )
    return _paragraphs(*parts) + "\n"


def write(folder: Path, runs: Sequence[EpochRow], timing: Sequence[TimingRow]) -> None:
    """Draws the figures and writes the report beside the tables."""
    paper_plots.save_all(Results(runs, timing), folder)
    content = text(runs, timing).encode()
    write_atomically(folder / "report.md", lambda file: file.write(content))
