"""The comparison of the paper: verdicts follow from the tables, a killed series of runs goes on."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sepconv.models import SETTINGS

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ lies in the clone only")


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


def module(name: str):
    return importlib.import_module(name)


# Synthetic tables in which every claim of the paper holds; times and memory are for the layers of sepconv.
PARAMETERS = {"xception": 20_827_442, "optimized": 7_433_450, "optimized-with-data": 7_433_450}
ACCURACY = {
    "xception": [0.50, 0.55, 0.60, *[0.62] * 7],
    "optimized": [0.40, 0.55, 0.60, *[0.66] * 7],
    "optimized-with-data": [0.45, 0.58, 0.63, *[0.70] * 7],
}
VAL_LOSS = {
    "xception": [1.5, 1.4, 1.3, 1.2, 1.3, 1.4, 1.45, 1.5, 1.55, 1.6],
    "optimized": [1.5, 1.3, 1.2, 1.1, 1.1, 1.12, 1.14, 1.16, 1.18, 1.2],
    "optimized-with-data": [1.5, 1.3, 1.2, 1.1, 1.1, 1.12, 1.14, 1.16, 1.18, 1.2],
}
TRAIN_LOSS = {"xception": 0.1, "optimized": 0.5, "optimized-with-data": 0.5}
STEP_MS = {"xception": 400.0, "optimized": 160.0, "optimized-with-data": 150.0}
BATCH_MS = {"xception": 50.0, "optimized": 60.0, "optimized-with-data": 40.0}
MEMORY_MIB = {"xception": 324.0, "optimized": 133.0, "optimized-with-data": 133.0}
# What seeds differ by. Differences at one epoch lie far above it or below it.
NOISE = (-0.002, 0.0, 0.002)


def epoch_rows(seeds: int = 3, **changes: object) -> list:
    tables = module("paper_tables")
    return [
        tables.EpochRow(
            **vars(tables.Variant(setting)),
            seed=seed,
            epoch=epoch,
            train_seconds=10.0,
            train_loss=TRAIN_LOSS[setting] + NOISE[seed],
            val_accuracy=ACCURACY[setting][epoch - 1] + NOISE[seed],
            val_loss=VAL_LOSS[setting][epoch - 1] + NOISE[seed] * (1 if epoch % 2 else -1),
            val_seconds=1.0,
            peak_memory_mib=500.0,
            epochs=10,
            parameters=PARAMETERS[setting],
            layers="sepconv",
            batch_size=64,
            lr=1e-3,
            data="cifar-10-batches-py",
            training_images=50_000,
            test_images=10_000,
            measured_on="some CPU, 2 threads, 2026-01-01",
            **changes,
        )
        for setting in SETTINGS
        for seed in range(seeds)
        for epoch in range(1, 11)
    ]


def timing_rows(rounds: int = 7) -> list:
    return [
        module("paper_tables").TimingRow(
            setting=setting,
            layers="sepconv",
            round=number,
            train_step_ms=STEP_MS[setting] + number % 3,
            val_batch_ms=BATCH_MS[setting] + number % 3,
            peak_memory_mib=MEMORY_MIB[setting],
            parameters=PARAMETERS[setting],
            batch_size=64,
            image_size=32,
            threads=2,
            steady=1,
            measured_on="some CPU, 2 threads, 2026-01-02",
        )
        for setting in SETTINGS
        for number in range(1, rounds + 1)
    ]


def verdicts(runs: list, timing: list) -> dict[str, str]:
    claims = module("paper_claims")
    found = claims.findings(claims.Results(runs, timing))
    assert len({finding.claim for finding in found}) == len(found)
    return {finding.claim: finding.verdict for finding in found}


def changed(rows: list, where, **values) -> list:
    """The rows, with new values (or functions of the row) in those that `where` picks."""

    def new(row):
        return {name: value(row) if callable(value) else value for name, value in values.items()}

    assert any(map(where, rows))
    return [dataclasses.replace(row, **new(row)) if where(row) else row for row in rows]


def test_every_claim_can_hold():
    found = verdicts(epoch_rows(), timing_rows())
    assert len(found) == 15
    assert set(found.values()) == {"holds"}, found


def of(setting: str, *epochs: int):
    return lambda row: row.setting == setting and (not epochs or row.epoch in epochs)


@pytest.mark.parametrize(
    ("claim", "where", "values", "verdict"),
    [
        ("20.83 M", of("optimized"), {"parameters": 7_500_000}, "does not hold"),
        ("training loss", of("xception", 10), {"train_loss": 0.9}, "does not hold"),
        (
            "training loss",
            of("optimized", 10),
            {"train_loss": lambda r: 0.6 + 0.01 * r.seed},
            "does not hold",
        ),
        (
            "training loss",
            of("xception", 10),
            {"train_loss": lambda r: r.train_loss + 0.4 * r.seed},
            "not decided",
        ),
        ("accuracy at epoch 1", of("xception", 1), {"val_accuracy": 0.1}, "does not hold"),
        (
            "accuracy at epoch 1",
            of("xception", 1),
            {"val_accuracy": lambda r: 0.4 + 0.05 * r.seed},
            "not decided",
        ),
        ("epochs 2 and 3", of("optimized-with-data", 3), {"val_accuracy": 0.5}, "does not hold"),
        ("both optimized above", of("xception", 7), {"val_accuracy": 0.9}, "does not hold"),
        (
            "with data above without",
            of("optimized", 7),
            {"val_accuracy": lambda r: 0.6 + 0.1 * r.seed},
            "not decided",
        ),
        ("rises from epoch 4", of("xception", 10), {"val_loss": 1.0}, "does not hold"),
        ("fall to epoch 4", of("optimized", 4), {"val_loss": 1.9}, "does not hold"),
        ("flat to epoch 5", of("optimized", 5), {"val_loss": 1.3}, "does not hold"),
        ("rise from epoch 5", of("optimized", 10), {"val_loss": 0.5}, "does not hold"),
        ("0.4 higher", of("xception", 10), {"val_loss": 2.0}, "does not hold"),
        (
            "validation loss at epoch 10",
            of("xception", 10),
            {"val_loss": float("nan")},
            "not decided",
        ),
    ],
)
def test_a_changed_number_changes_the_verdict_of_an_epoch(claim, where, values, verdict):
    before = verdicts(epoch_rows(), timing_rows())
    [name] = [text for text in before if claim in text]
    timing = timing_rows()
    if "parameters" in values:
        timing = changed(timing, of("optimized"), **values)
    assert before[name] == "holds"
    assert verdicts(changed(epoch_rows(), where, **values), timing)[name] == verdict


@pytest.mark.parametrize(
    ("claim", "setting", "values", "verdict"),
    [
        ("training time", "optimized", {"train_step_ms": 500.0}, "does not hold"),
        ("training time", "optimized", {"train_step_ms": lambda r: 140.0 + 5 * (r.round % 4)}, "not decided"),
        ("validation time", "xception", {"val_batch_ms": 70.0}, "does not hold"),
        ("take alike", "optimized", {"peak_memory_mib": 180.0}, "does not hold"),
        ("take alike", "xception", {"peak_memory_mib": 140.0}, "does not hold"),
        ("about 340 MB", "xception", {"peak_memory_mib": 500.0}, "does not hold"),
    ],
)
def test_a_changed_number_changes_the_verdict_on_time_and_memory(claim, setting, values, verdict):
    before = verdicts(epoch_rows(), timing_rows())
    [name] = [text for text in before if claim in text]
    assert before[name] == "holds"
    assert verdicts(epoch_rows(), changed(timing_rows(), of(setting), **values))[name] == verdict


def test_what_is_missing_is_not_decided():
    claims = verdicts(epoch_rows(seeds=1), timing_rows(rounds=4))
    decided = {claim for claim, verdict in claims.items() if verdict != "not decided"}
    assert all("parameters" in claim or "memory" in claim for claim in decided)
    assert len(decided) == 3
    for runs, timing in ((epoch_rows(), []), ([], timing_rows()), ([], [])):
        assert "not decided" in verdicts(runs, timing).values()
    alone = [row for row in epoch_rows() if row.setting == "optimized"]
    assert "does not hold" not in verdicts(alone, []).values()


def test_rows_of_other_variants_and_recipes_do_not_count():
    other = [dataclasses.replace(row, stem_stride=1, val_accuracy=0.99) for row in epoch_rows()]
    modern = [dataclasses.replace(row, recipe="modern", val_loss=0.0) for row in epoch_rows()]
    assert verdicts([*epoch_rows(), *other, *modern], timing_rows()) == verdicts(epoch_rows(), timing_rows())


# The report -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    tables = module("paper_tables")
    tables.write(tmp_path / "runs.csv", epoch_rows(), tables.EpochRow)
    tables.write(tmp_path / "timing.csv", timing_rows(), tables.TimingRow)
    return tmp_path


def test_figures_and_report_come_from_the_tables_alone(folder, monkeypatch):
    paper = module("paper")
    assert paper.main(["--report-only", str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "Verdicts on 15 claims: holds 15, does not hold 0, not decided 0." in text
    assert "cifar10_jpeg" not in text
    assert "some CPU, 2 threads, 2026-01-01" in text
    assert "some CPU, 2 threads, 2026-01-02" in text
    figures = sorted(path.name for path in folder.glob("figure-*.png"))
    assert len(figures) == 6
    for name in figures:
        assert f"({name})" in text
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / name).with_suffix(".svg").read_text()
    plots, claims = module("paper_plots"), module("paper_claims")
    monkeypatch.setattr(plots, "PANELS", plots.PANELS[2:4])  # drawing takes most of the time here
    again = folder / "again"
    plots.save_all(claims.Results(epoch_rows(), timing_rows()), again)
    assert len(list(again.iterdir())) == 4
    for path in again.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), "the same tables, the same bytes"


def test_the_report_says_what_its_times_are_and_which_data_it_has():
    report = module("paper_report")
    runs = [dataclasses.replace(row, data="cifar10_jpeg.npz") for row in epoch_rows()]
    assert "compressed as JPEG" in report.text(runs, timing_rows())
    assert "not interleaved: no timing was made" in report.text(runs, [])
    assert "not interleaved: no timing" not in report.text(runs, timing_rows())
    assert "scaled to CIFAR-10 in batches of 64" in report.text(runs, timing_rows())
    unsteady = [dataclasses.replace(row, steady=0) for row in timing_rows()]
    assert "speed changed" in report.text(runs, unsteady)


def test_the_ablation_has_its_own_table():
    report = module("paper_report")
    rows = epoch_rows()
    assert "Strides of stem and rows" not in report.text(rows, [])
    wide = [dataclasses.replace(row, stem_stride=1, val_accuracy=0.8125) for row in rows if row.seed == 0]
    text = report.text([*rows, *(row for row in wide if row.setting == "optimized")], [])
    [line] = [line for line in text.splitlines() if "81.2%" in line]
    assert [cell.strip() for cell in line.split("|")][1:4] == ["optimized", "1", "-"]
    assert "At epoch 5, seed 0 alone" in text
    assert "A modern recipe" not in text
    modern = [dataclasses.replace(row, recipe="modern", epochs=30, val_accuracy=0.91234) for row in wide]
    [line] = [
        line
        for line in report.text([*rows, *modern], []).splitlines()
        if "91.23%" in line and "optimized, seed" in line
    ]
    assert "10 of 30" in line


def rewritten(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: rewritten(path, "val_loss,", ""), "columns must be"),
        (
            lambda path: rewritten(path, "20827442", "many"),
            r"runs\.csv, line 2: parameters must be of type int",
        ),
        (lambda path: rewritten(path, "optimized-with-data,", "faster,"), "setting must be one of"),
        (lambda path: rewritten(path, ",50000,10000", ",50000"), "expected 21 cells"),
        (lambda path: path.write_text(path.read_text() * 2), "setting|type"),
        (
            lambda path: rewritten(path, "optimized,2,1,paper,1,", "optimized,2,1,paper,0,"),
            "stands there twice",
        ),
    ],
)
def test_broken_tables_are_named_and_nothing_is_written(folder, damage, words, capsys):
    damage(folder / "runs.csv")
    assert module("paper").main(["--report-only", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder / 'runs.csv'}")
    assert re.search(words, error)
    assert sorted(path.name for path in folder.iterdir()) == ["runs.csv", "timing.csv"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--report-only", "{}"], "holds neither runs.csv nor timing.csv"),
        (["--out", "{}", "--data", "{}/absent"], "absent: no such file or folder"),
        (["--out", "{}", "--data", "fashion-mnist-subset", "--lr", "0"], "lr must be above 0"),
    ],
)
def test_bad_input_is_named(arguments, words, tmp_path, capsys):
    assert module("paper").main([word.format(tmp_path) for word in arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "x"], "--out is needed"),
        (["--out", "x"], "--data is needed"),
        (["--out", "x", "--data", "x", "--seeds", "many"], "--seeds: expected N or SETTING=N"),
        (["--out", "x", "--data", "x", "--seeds", "fast=2"], "got 'fast=2'"),
        (["--out", "x", "--data", "x", "--seeds", "0"], "no setting has a seed"),
        (["--out", "x", "--timing", "--contestants", "keras"], "--contestants: keras not among"),
    ],
)
def test_bad_arguments_are_named(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        module("paper").main(arguments)
    assert words in capsys.readouterr().err + str(stopped.value)


def test_seeds_of_one_setting_may_differ():
    paper, runs = module("paper"), module("paper_runs")
    seeds = paper.seeds_by_setting(["3", "xception=1"])
    assert seeds == {"xception": 1, "optimized": 3, "optimized-with-data": 3}
    names = [run.name for run in runs.plan(runs.COMPARISON, seeds, 2)]
    assert names[:4] == [
        "xception/seed-0",
        "optimized/seed-0",
        "optimized-with-data/seed-0",
        "optimized/seed-1",
    ]
    assert len(names) == 7


# Real runs --------------------------------------------------------------------------------------------------


def command(out: Path, *more: str) -> list[str]:
    options = "--data fashion-mnist-subset --train-limit 24 --test-limit 10 --batch-size 8 --threads 1"
    options += " --epochs 2 --seeds 1 xception=0 optimized-with-data=0 --no-progress --checkpoint-steps 1"
    return [sys.executable, str(BENCHMARKS / "paper.py"), "--out", str(out), *options.split(), *more]


def measured(path: Path) -> list[tuple]:
    tables = module("paper_tables")
    rows = tables.read(path / "runs.csv", tables.EpochRow)
    return [(*tables.key(row), row.train_loss, row.val_loss, row.val_accuracy) for row in rows]


def test_a_killed_series_goes_on_to_the_same_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module("paper_plots"), "save_all", lambda *_: None)  # tested above, and slow
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL)
    checkpoint = killed / "runs" / "optimized" / "seed-0" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline, "the command wrote no checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "report.md").exists()

    paper = module("paper")
    whole = tmp_path / "whole"
    for out in (killed, whole):
        assert paper.main(command(out)[2:]) == 0
    assert "optimized/seed-0, epoch 2/2" in capsys.readouterr().out
    assert len(measured(whole)) == 2
    assert measured(killed) == measured(whole)
    text = (killed / "report.md").read_text()
    assert "optimized: 1 seed, 2 epochs" in text
    assert "24 training and 10 test images" in text

    # Nothing is trained twice, and a row says where it was measured, not where the command ran last.
    before = (whole / "runs.csv").read_text()
    marked = before.replace(',fashion-mnist-subset,24,10,"', ',fashion-mnist-subset,24,10,"elsewhere ')
    (whole / "runs.csv").write_text(marked)
    assert paper.main(command(whole)[2:]) == 0
    assert "epoch 1/2" not in capsys.readouterr().out
    assert (whole / "runs.csv").read_text() == marked != before
    assert paper.main(command(whole, "--lr", "0.1")[2:]) == 2
    assert "lr must be 0.001 to resume" in capsys.readouterr().err

    # The table alone is enough, but for a run with other options.
    shutil.rmtree(whole / "runs")
    assert paper.main(command(whole)[2:]) == 0
    assert "optimized/seed-0: is in runs.csv" in capsys.readouterr().out
    assert (whole / "runs.csv").read_text() == marked
    assert paper.main(command(whole, "--lr", "0.1")[2:]) == 0
    assert "epoch 2/2" in capsys.readouterr().out
    assert measured(whole) != measured(killed)


def test_timing_writes_a_row_a_round_and_contestant(tmp_path):
    timing, tables = module("paper_timing"), module("paper_tables")
    options = {"batch_size": 2, "threads": 1, "steps": 1, "rounds": 2, "measured_on": "here"}
    rows = timing.measure(["optimized-with-data"], ["sepconv"], **options)
    tables.write(tmp_path / "timing.csv", rows, tables.TimingRow)
    assert tables.read(tmp_path / "timing.csv", tables.TimingRow) == rows
    assert [row.round for row in rows] == [1, 2]
    for row in rows:
        assert row.parameters == 7_433_450
        assert row.train_step_ms > row.val_batch_ms > 0
        # Weights, gradients and two moments alone are 113 MiB.
        assert 113 < row.peak_memory_mib < 400
