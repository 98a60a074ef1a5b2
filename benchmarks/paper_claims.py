"""What the paper claims, beside what the tables of paper.py say: one finding a claim, with a verdict.

RULES states in words what this module computes; the report prints it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import harness
from paper_tables import EpochRow, TimingRow, Variant

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
LABELS = {"xception": "Xception", "optimized": "optimized", "optimized-with-data": "optimized with data"}
XCEPTION, OPTIMIZED, WITH_DATA = LABELS
LAST_EPOCH = 10
FEWEST_SEEDS = 2
FEWEST_ROUNDS = 5
# What "about" may mean for a number read off a plot, and "alike" for memory, which has no spread over seeds.
ABOUT = 0.1
PAPER_PARAMETERS_M = {XCEPTION: 20.83, OPTIMIZED: 7.43, WITH_DATA: 7.43}
PAPER_MEMORY_MB = {XCEPTION: 340, OPTIMIZED: 140, WITH_DATA: 140}
PAPER_LOSS_GAP = 0.4
# Weights, gradients and the two moments of Adam, each in float32.
TRAINING_BYTES_A_PARAMETER = 16

RULES = (
    "- **Losses and accuracies.** One value a seed. The spread is the largest difference between two seeds "
    'of a setting, of both compared the larger. "Above" and "rises" hold if the means over the seeds '
    "differ by more than the spread, do not hold if they differ by more than that the other way round, and "
    'are not decided between. "Alike" holds if the means differ by no more than the spread: these seeds '
    f"cannot tell them apart. With fewer than {FEWEST_SEEDS} seeds of a setting nothing on it is decided.\n"
    f"- **Times.** Ratios within each interleaved round, at least {FEWEST_ROUNDS} rounds. A claim holds if "
    "the middle half of the ratios lies on its side of 1, does not hold if it lies on the other, and is not "
    "decided between.\n"
    '- **Memory and parameters** need no seeds. "About" and, for memory, "alike" mean within '
    f'{ABOUT:.0%}; "more" means more than that.\n'
    "- A claim of several parts holds if all of them do, and does not hold if one does not."
)


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, in its words; what was measured; the verdict."""

    claim: str
    measured: str
    verdict: str


def together(verdicts: Iterable[str]) -> str:
    """The verdict on a claim whose parts have these."""
    found = set(verdicts)
    if FAILS in found:
        return FAILS
    return HOLDS if found == {HOLDS} else OPEN


# Rules ------------------------------------------------------------------------------------------------------


def _width(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _gap_and_spread(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Difference of the means, and the spread over seeds; None if they decide nothing."""
    if min(len(a), len(b)) < FEWEST_SEEDS or not all(map(math.isfinite, (*a, *b))):
        return None
    return statistics.fmean(a) - statistics.fmean(b), max(_width(a), _width(b))


def above(a: Sequence[float], b: Sequence[float]) -> str:
    """Whether `a` lies above `b`: one value a seed each."""
    found = _gap_and_spread(a, b)
    if found is None:
        return OPEN
    gap, spread = found
    return HOLDS if gap > spread else FAILS if gap < -spread else OPEN


def alike(a: Sequence[float], b: Sequence[float]) -> str:
    """Whether these seeds cannot tell `a` from `b`."""
    found = _gap_and_spread(a, b)
    if found is None:
        return OPEN
    gap, spread = found
    return HOLDS if abs(gap) <= spread else FAILS


def longer(ratios: Sequence[float]) -> str:
    """Whether the first of two contestants takes longer, by its time over the other's in each round."""
    if len(ratios) < FEWEST_ROUNDS:
        return OPEN
    quartiles = harness.spread(ratios)
    return HOLDS if quartiles["low"] > 1 else FAILS if quartiles["high"] < 1 else OPEN


def about(value: float, expected: float) -> str:
    return HOLDS if abs(value / expected - 1) <= ABOUT else FAILS


# What was measured ------------------------------------------------------------------------------------------


class Results:
    """The rows of the paper's comparison, by what claims ask for."""

    def __init__(self, runs: Iterable[EpochRow], timing: Iterable[TimingRow]) -> None:
        self.epochs = {
            (row.setting, row.seed, row.epoch): row for row in runs if row.variant == Variant(row.setting)
        }
        self.timing = list(timing)

    def seeds(self, setting: str) -> list[int]:
        return sorted({seed for name, seed, _ in self.epochs if name == setting})

    def values(self, setting: str, column: str, epoch: int, less: int | None = None) -> list[float]:
        """`column` at `epoch` for each seed that has it; with `less`, minus that at another epoch."""
        found = []
        for seed in self.seeds(setting):
            rows = [
                self.epochs.get((setting, seed, number)) for number in (epoch, less) if number is not None
            ]
            if None not in rows:
                first, *others = (getattr(row, column) for row in rows)
                found.append(first - sum(others))
        return found

    def layers(self) -> list[str]:
        return list(dict.fromkeys(row.layers for row in self.timing))

    def rounds(self, setting: str, layers: str, column: str) -> dict[int, float]:
        return {
            row.round: getattr(row, column)
            for row in self.timing
            if (row.setting, row.layers) == (setting, layers)
        }

    def ratios(self, a: str, b: str, layers: str, column: str) -> list[float]:
        """`column` of setting `a` over that of `b`, in each round that has both."""
        ours, theirs = (self.rounds(setting, layers, column) for setting in (a, b))
        return [ours[number] / theirs[number] for number in ours if number in theirs]

    def memory(self, layers: str) -> dict[str, float]:
        """Peak MiB of each setting that was timed."""
        return {row.setting: row.peak_memory_mib for row in self.timing if row.layers == layers}

    def parameters(self) -> dict[str, int]:
        rows = (*self.epochs.values(), *self.timing)
        return {row.setting: row.parameters for row in rows}


def shown(values: Sequence[float], digits: int = 3) -> str:
    """The mean over the seeds, and in brackets the least and the largest."""
    if not values:
        return "no run"
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return f"{mean} (one seed)"
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


# Claims -----------------------------------------------------------------------------------------------------


def parameters(results: Results) -> list[Finding]:
    counts = results.parameters()
    claim = "20.83 M parameters against 7.43 M (2.80x)"
    if not counts.keys() >= {XCEPTION, OPTIMIZED}:
        return [Finding(claim, "both networks are needed", OPEN)]
    same = all(round(count / 1e6, 2) == PAPER_PARAMETERS_M[name] for name, count in counts.items())
    text = ", ".join(f"{LABELS[name]} {counts[name]:,}" for name in LABELS if name in counts)
    ratio = counts[XCEPTION] / counts[OPTIMIZED]
    return [Finding(claim, f"{text} ({ratio:.2f}x)", HOLDS if same else FAILS)]


def _times(
    results: Results, column: str, what: str, order: Sequence[str], per_layers: Callable[[str], str]
) -> list[Finding]:
    """Whether the settings in `order` take less and less time, for each set of layers."""
    claim = f"{what}: {' > '.join(LABELS[name] for name in order)}"
    if not results.timing:
        return [Finding(claim, "no interleaved timing", OPEN)]
    findings = []
    for layers in results.layers():
        pairs = [(a, b, results.ratios(a, b, layers, column)) for a, b in itertools.pairwise(order)]
        text = "; ".join(_ratio_text(*pair) for pair in pairs)
        verdict = together(longer(ratios) for *_, ratios in pairs)
        findings.append(Finding(f"{claim} {per_layers(layers)}", text, verdict))
    return findings


def _ratio_text(a: str, b: str, ratios: Sequence[float]) -> str:
    names = f"{LABELS[a]} / {LABELS[b]}"
    if not ratios:
        return f"{names}: not timed"
    quartiles = harness.spread(ratios)
    return (
        f"{names} {quartiles['median']:.3f} (quartiles {quartiles['low']:.3f} to {quartiles['high']:.3f}, "
        f"{len(ratios)} rounds)"
    )


def _with(layers: str) -> str:
    return f"({layers})"


def training_time(results: Results) -> list[Finding]:
    return _times(results, "train_step_ms", "training time", (XCEPTION, OPTIMIZED, WITH_DATA), _with)


def validation_time(results: Results) -> list[Finding]:
    return _times(results, "val_batch_ms", "validation time", (OPTIMIZED, XCEPTION, WITH_DATA), _with)


def memory(results: Results) -> list[Finding]:
    less = "memory: Xception takes more than both optimized settings, which take alike"
    numbers = "memory: about 340 MB against about 140 MB"
    findings = []
    for layers in results.layers():
        mib = results.memory(layers)
        if not mib.keys() >= LABELS.keys():
            continue
        text = ", ".join(f"{LABELS[name]} {mib[name]:.0f} MiB" for name in LABELS)
        states = ", ".join(
            f"{TRAINING_BYTES_A_PARAMETER * results.parameters()[name] / 2**20:.0f}" for name in LABELS
        )
        more = [
            HOLDS if mib[XCEPTION] > (1 + ABOUT) * mib[name] else FAILS for name in (OPTIMIZED, WITH_DATA)
        ]
        verdict = together([*more, about(mib[WITH_DATA], mib[OPTIMIZED])])
        findings.append(Finding(f"{less} {_with(layers)}", text, verdict))
        verdict = together(about(mib[name] * 2**20 / 1e6, PAPER_MEMORY_MB[name]) for name in LABELS)
        text += f", of which weights, gradients and Adam's moments {states}"
        findings.append(Finding(f"{numbers} {_with(layers)}", text, verdict))
    return findings or [Finding(claim, "not measured for all settings", OPEN) for claim in (less, numbers)]


Relation = tuple[Callable[[Sequence[float], Sequence[float]], str], str, str]


def _relation_text(relation: Relation, verdicts: Sequence[str]) -> str:
    rule, a, b = relation
    counts = ", ".join(f"{verdict} in {verdicts.count(verdict)}" for verdict in (HOLDS, FAILS, OPEN))
    joint = "above" if rule is above else "like"
    return f"{LABELS[a]} {joint} {LABELS[b]}: {counts} of {len(verdicts)} epochs"


def _compared(
    results: Results, claim: str, column: str, epochs: Sequence[int], *relations: Relation
) -> Finding:
    """Whether all relations between settings hold at all epochs."""
    verdicts = {
        relation: [
            relation[0](*(results.values(name, column, epoch) for name in relation[1:])) for epoch in epochs
        ]
        for relation in relations
    }
    if len(epochs) > 1:
        text = "; ".join(_relation_text(relation, found) for relation, found in verdicts.items())
    else:
        names = [name for name in LABELS if any(name in relation for relation in relations)]
        text = ", ".join(f"{LABELS[name]} {shown(results.values(name, column, epochs[0]))}" for name in names)
    return Finding(claim, text, together(verdict for found in verdicts.values() for verdict in found))


def training_loss(results: Results) -> list[Finding]:
    claim = f"training loss at epoch {LAST_EPOCH}: Xception lowest, the two optimized alike"
    return [
        _compared(
            results,
            claim,
            "train_loss",
            [LAST_EPOCH],
            (above, OPTIMIZED, XCEPTION),
            (above, WITH_DATA, XCEPTION),
            (alike, OPTIMIZED, WITH_DATA),
        )
    ]


def validation_accuracy(results: Results) -> list[Finding]:
    column, later = "val_accuracy", range(4, LAST_EPOCH + 1)
    both = [(above, XCEPTION, OPTIMIZED), (above, XCEPTION, WITH_DATA)]
    return [
        _compared(results, "validation accuracy at epoch 1: Xception best", column, [1], *both),
        _compared(
            results,
            "validation accuracy at epochs 2 and 3: Xception and optimized alike, with data higher",
            column,
            [2, 3],
            (alike, XCEPTION, OPTIMIZED),
            (above, WITH_DATA, XCEPTION),
            (above, WITH_DATA, OPTIMIZED),
        ),
        _compared(
            results,
            "validation accuracy from epoch 4: both optimized above Xception",
            column,
            later,
            (above, OPTIMIZED, XCEPTION),
            (above, WITH_DATA, XCEPTION),
        ),
        _compared(
            results,
            "validation accuracy from epoch 4: with data above without",
            column,
            later,
            (above, WITH_DATA, OPTIMIZED),
        ),
    ]


def _changes(results: Results, settings: Iterable[str], first: int, last: int) -> dict[str, list[float]]:
    return {name: results.values(name, "val_loss", last, less=first) for name in settings}


def _changes_text(changes: dict[str, list[float]], first: int, last: int) -> str:
    parts = ", ".join(f"{LABELS[name]} {shown(values)}" for name, values in changes.items())
    return f"change from epoch {first} to {last}: {parts}"


def _against_zero(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    return values, [0.0] * len(values)


def validation_loss(results: Results) -> list[Finding]:
    rise = _changes(results, LABELS, 4, LAST_EPOCH)
    steep = [above(*_against_zero(rise[XCEPTION]))]
    steep += [above(rise[XCEPTION], rise[name]) for name in (OPTIMIZED, WITH_DATA)]
    findings = [
        Finding(
            "validation loss: Xception's rises from epoch 4, and more than the others'",
            _changes_text(rise, 4, LAST_EPOCH),
            together(steep),
        )
    ]
    optimized = (OPTIMIZED, WITH_DATA)
    for words, rule, sign, first, last in (
        ("fall to epoch 4", above, -1, 1, 4),
        ("are flat to epoch 5", alike, 1, 4, 5),
        ("rise from epoch 5", above, 1, 5, LAST_EPOCH),
    ):
        changes = _changes(results, optimized, first, last)
        verdicts = [rule(*_against_zero([sign * value for value in values])) for values in changes.values()]
        text = _changes_text(changes, first, last)
        findings.append(
            Finding(f"validation loss: the optimized settings' {words}", text, together(verdicts))
        )
    return [*findings, _loss_gap(results)]


def _loss_gap(results: Results) -> Finding:
    """Xception's loss less the mean of the optimized ones', in the end; within the spread of the paper's."""
    claim = f"validation loss at epoch {LAST_EPOCH}: Xception's is {PAPER_LOSS_GAP} higher"
    losses = {name: results.values(name, "val_loss", LAST_EPOCH) for name in LABELS}
    text = ", ".join(f"{LABELS[name]} {shown(values)}" for name, values in losses.items())
    if not all(losses.values()):
        return Finding(claim, text, OPEN)
    others = [statistics.fmean(losses[name]) for name in (OPTIMIZED, WITH_DATA)]
    gap = statistics.fmean(losses[XCEPTION]) - statistics.fmean(others)
    text = f"{gap:.3f} higher: {text}"
    if min(map(len, losses.values())) < FEWEST_SEEDS or not math.isfinite(gap):
        return Finding(claim, text, OPEN)
    spread = max(map(_width, losses.values()))
    return Finding(claim, text, HOLDS if abs(gap - PAPER_LOSS_GAP) <= spread else FAILS)


CLAIMS = (
    parameters,
    training_time,
    memory,
    training_loss,
    validation_accuracy,
    validation_loss,
    validation_time,
)


def findings(results: Results) -> list[Finding]:
    """One or more findings a claim, in the order of the paper's figures."""
    return [finding for claim in CLAIMS for finding in claim(results)]
