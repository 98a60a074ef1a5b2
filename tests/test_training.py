"""The training command: what it records, how it resumes, and that processes train together."""

import csv
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from sepconv.models import SETTINGS, build_model, checkpoint, data, files, load_pretrained, training
from sepconv.models.config import ConfigError, TrainConfig
from sepconv.models.distributed import World, joined_world
from sepconv.models.files import WeightsError
from sepconv.models.images import MemoryImages, batches
from sepconv.models.metrics import EpochRecord, PeakMemory, validate
from sepconv.models.progress import progress_bar
from sepconv.models.train import main, train

CPU = World(0, 1, torch.device("cpu"))
MEASURED = ("train_seconds", "val_seconds", "peak_memory_mib")


def config(**options: object) -> TrainConfig:
    defaults = {
        "setting": "optimized",
        "data": "fashion-mnist-subset",
        "epochs": 2,
        "batch_size": 8,
        "device": "cpu",
        "train_limit": 40,
        "test_limit": 13,
        "progress": False,
    }
    return TrainConfig(**(defaults | options))


def flags(output: Path, **options: object) -> list[str]:
    """The command line of `config`, with its output."""
    values = vars(config(**options, output=output))
    switches = ("channels_last", "progress", "resume")
    pairs = [
        (f"--{name.replace('_', '-')}", str(value))
        for name, value in values.items()
        if value is not None and name not in switches
    ]
    return [word for pair in pairs for word in pair] + ["--no-progress"]


@pytest.fixture
def tiny_network(monkeypatch):
    """In place of an Xception, for tests of the run around it; batch norm gives it buffers, too."""

    def build(setting, num_classes, in_channels, **_):
        return nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),  # draws on the global random state: a resumed run has to go on with it
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )

    monkeypatch.setattr(training, "build_model", build)


@pytest.fixture
def one_thread():
    """Bits are compared between processes here, which have to add in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def results(records: list[EpochRecord]) -> list[dict[str, object]]:
    """The records without what differs from run to run."""
    return [{k: v for k, v in vars(record).items() if k not in MEASURED} for record in records]


def csv_rows(output: Path) -> list[dict[str, str]]:
    with checkpoint.csv_path(output).open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_bits(a: object, b: object, where: str = "checkpoint") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in (*MEASURED, "seconds"):
                assert_same_bits(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """The same weights, optimizer, random states and records, and a CSV of those records."""
    assert_same_bits(files.read_torch(a / "checkpoint.pt"), files.read_torch(b / "checkpoint.pt"))
    for output in (a, b):
        records = checkpoint.load(output)[0].records
        assert csv_rows(output) == [{k: str(v) for k, v in vars(record).items()} for record in records]


# --- what a run does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_records_every_epoch(setting, tmp_path):
    seen = []
    options = {"epochs": 1, "train_limit": 16, "output": tmp_path}
    records = train(config(setting=setting, **options), on_epoch=seen.append)
    assert records == seen
    [row] = csv_rows(tmp_path)
    assert list(row) == [
        "epoch",
        "train_seconds",
        "train_loss",
        "val_accuracy",
        "val_loss",
        "val_seconds",
        "peak_memory_mib",
    ]
    assert row == {key: str(value) for key, value in vars(records[0]).items()}
    assert records[0].epoch == 1
    assert min(records[0].train_seconds, records[0].val_seconds) > 0
    assert records[0].peak_memory_mib > 50
    # Ten classes and hardly any training: near log(10).
    assert 1 < records[0].train_loss < 5


def test_training_learns_real_images(tiny_network):
    records = train(config(epochs=4, train_limit=1000, test_limit=300, batch_size=50, lr=0.01))
    assert records[-1].train_loss < 0.8 * records[0].train_loss
    assert records[-1].val_accuracy > 0.5


def test_recorded_validation_is_that_of_the_saved_weights(tmp_path):
    [record] = train(config(epochs=1, train_limit=16, output=tmp_path))
    accuracy, loss = validate_checkpoint(tmp_path)
    assert record.val_accuracy == accuracy
    assert record.val_loss == pytest.approx(loss, rel=1e-5)


def validate_checkpoint(output: Path) -> tuple[float, float]:
    """Plainly, in one batch of images in float32."""
    model = load_pretrained(build_model("optimized", 10, 1), output / "checkpoint.pt").eval()
    images = data.load("fashion-mnist-subset", test_limit=13).test
    with torch.no_grad():
        logits = model(images.images.float() / 127.5 - 1)
    loss = nn.functional.cross_entropy(logits, images.labels)
    return float((logits.argmax(1) == images.labels).double().mean()), float(loss)


def test_both_layers_train_alike(tmp_path):
    records = [train(config(layers=layers, epochs=1, train_limit=16))[0] for layers in ("stock", "sepconv")]
    assert records[0].train_loss == pytest.approx(records[1].train_loss, rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"amp": "bf16"},
        {"channels_last": False},
        {"image_size": 32, "stem_stride": 1},
        {"setting": "optimized-with-data", "row_stride": 2},
    ],
    ids=str,
)
def test_options_train(options):
    [record] = train(config(epochs=1, train_limit=8, test_limit=4, **options))
    assert 1 < record.train_loss < 5


def test_images_are_scaled_to_the_size_asked_for(tiny_network):
    run = training.Run(config(image_size=20), data.load("fashion-mnist-subset", train_limit=40), CPU)
    images, _ = run.prepare(*next(batches(run.images.train, torch.arange(8), 8)))
    assert images.shape == (8, 1, 20, 20)
    assert -1 <= float(images.min()) < -0.9
    assert 0.5 < float(images.max()) <= 1


def test_seed_decides_weights_and_order(tiny_network):
    first, again, other = (results(train(config(seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert first[0]["train_loss"] != other[0]["train_loss"]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_each_epoch_without_overlap(tiny_network, size):
    images = data.load("fashion-mnist-subset", train_limit=43)
    shares = []
    for rank in range(size):
        run = training.Run(config(), images, CPU)
        run.world = World(rank, size, CPU.device)
        shares.append(run._share())
        run.state.step = 2
        assert torch.equal(run._share(), shares[-1][2 * (8 // size) :])
    together = torch.cat(shares)
    assert len(together) == 40
    assert together.unique().numel() == 40
    run = training.Run(config(), images, CPU)
    steps = torch.stack([share.view(5, -1) for share in shares], 1).flatten()
    assert torch.equal(steps, run._share()), "the batches are the same however many processes share them"
    run.state.epoch = 2
    assert not torch.equal(steps, run._share())


def test_validation_counts_every_image_once_in_uneven_batches():
    images = MemoryImages(torch.arange(13, dtype=torch.uint8).view(13, 1, 1, 1), torch.arange(13) % 3)
    model = nn.Flatten()  # logits of one class: always right for label 0, with loss 0

    def one_logit(images, labels):
        return torch.cat([images.float(), images.float() + 1, -images.float()], 1), labels

    accuracy, loss = validate(model, batches(images, torch.arange(13), 5), one_logit, CPU)
    logits = one_logit(images.images, None)[0].flatten(1)
    assert accuracy == float((logits.argmax(1) == images.labels).double().mean())
    expected = nn.functional.cross_entropy(logits.double(), images.labels)
    assert loss == pytest.approx(float(expected), rel=1e-6)


def test_peak_memory_is_of_the_time_since_reset():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system keeps only the peak of the whole process (no /proc/self/clear_refs)")
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    before = memory.mib()
    with mmap.mmap(-1, 128 * 2**20) as pages:  # straight from the system: malloc may have memory at hand
        pages.write(bytes(len(pages)))
    assert memory.mib() - before > 100, "the peak stays"
    memory.reset()
    assert memory.mib() - before < 50


# --- checkpoints -------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill at one system call."""


@pytest.fixture
def uninterrupted(tiny_network, tmp_path):
    output = tmp_path / "uninterrupted"
    train(config(output=output, checkpoint_steps=2))
    return output


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("moment", range(9))
def test_run_stopped_at_any_write_resumes_to_the_same_bits(
    uninterrupted, tmp_path, monkeypatch, call, moment
):
    output = tmp_path / "stopped"
    options = {"output": output, "checkpoint_steps": 2, "resume": True}
    real, calls = getattr(os, call), 0

    def stopping(*arguments):
        nonlocal calls
        calls += 1
        if calls == moment + 1:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, stopping)
        with pytest.raises(Killed):
            train(config(**options))
    torch.manual_seed(99)  # whatever the next process starts with
    train(config(**options))
    assert_same_run(output, uninterrupted)


def test_every_file_is_whole_at_every_moment(tiny_network, tmp_path, monkeypatch):
    """Looks at the folder before every step of every write, as a kill there would leave it."""
    real = os.replace
    looks = []

    def looking(source, target):
        real(source, target)
        looks.append(Path(target).name)
        state = checkpoint.load(tmp_path)[0]
        if checkpoint.csv_path(tmp_path).exists():
            assert len(csv_rows(tmp_path)) in (len(state.records), len(state.records) - 1)

    monkeypatch.setattr(files.os, "replace", looking)
    train(config(output=tmp_path))
    assert looks == ["checkpoint.pt", "epochs.csv"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "epochs.csv"]


def test_killed_command_resumes_to_the_same_bits(tmp_path, one_thread):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"train_limit": 24, "checkpoint_steps": 1, "threads": 1}
    train(config(output=whole, **options))
    command = [sys.executable, "-m", "sepconv.models.train", *flags(killed, **options), "--resume"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not checkpoint.checkpoint_path(killed).exists():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline, "the command wrote no checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(checkpoint.load(killed)[0].records) < 2
    train(config(output=killed, resume=True, **options))
    assert_same_run(killed, whole)


def test_more_epochs_extend_a_finished_run(uninterrupted, tmp_path):
    longer, whole = tmp_path / "longer", tmp_path / "whole"
    train(config(output=longer, epochs=1))
    assert len(train(config(output=longer, epochs=2, resume=True))) == 2
    train(config(output=whole, epochs=2))
    assert_same_run(longer, whole)
    seen = []
    assert len(train(config(output=longer, epochs=1, resume=True), on_epoch=seen.append)) == 2
    assert seen == []


def test_layers_may_change_on_resume(tmp_path):
    options = {"train_limit": 8, "test_limit": 4, "output": tmp_path}
    train(config(epochs=1, layers="stock", **options))
    assert len(train(config(epochs=2, layers="sepconv", resume=True, **options))) == 2


def test_an_earlier_run_is_not_overwritten(uninterrupted):
    before = checkpoint.checkpoint_path(uninterrupted).read_bytes()
    with pytest.raises(ConfigError, match=r"output holds .*checkpoint\.pt"):
        train(config(output=uninterrupted))
    assert checkpoint.checkpoint_path(uninterrupted).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("seed", 5, "seed"),
        ("batch_size", 10, "batch_size"),
        ("lr", 0.1, "lr"),
        ("setting", "xception", "setting"),
        ("image_size", 32, "image_size"),
        ("train_limit", 20, "training images"),
    ],
)
def test_a_different_run_does_not_resume(uninterrupted, name, value, shown):
    with pytest.raises(ConfigError, match=rf"^{shown} must be .* to resume .*checkpoint\.pt, got"):
        train(config(output=uninterrupted, resume=True, **{name: value}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"model": {}}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save(files.read_torch(path) | {"format": 99}, path),
        lambda path: torch.save(files.read_torch(path) | {"model": {}}, path),
        lambda path: torch.save(files.read_torch(path) | {"optimizer": {}}, path),
    ],
    ids=["truncated", "empty", "parts missing", "list", "format", "no weights", "no optimizer"],
)
def test_broken_checkpoint_is_named(uninterrupted, damage):
    path = checkpoint.checkpoint_path(uninterrupted)
    damage(path)
    with pytest.raises(WeightsError) as caught:
        train(config(output=uninterrupted, resume=True))
    assert str(path) in str(caught.value)


def test_checkpoint_of_another_number_of_processes_keeps_the_losses():
    state = checkpoint.RunState.start()
    processes = [{"rng": torch.get_rng_state(), "loss_sum": loss} for loss in (1.5, 2.0)]
    checkpoint.restore_process(state, processes, CPU)
    assert state.loss_sum == 3.5
    checkpoint.restore_process(state, processes, World(1, 3, CPU.device))
    assert state.loss_sum == 0
    checkpoint.restore_process(state, processes, World(1, 2, CPU.device))
    assert state.loss_sum == 2.0


# --- torchrun ----------------------------------------------------------------------------------------------


# The command, in processes that fail if the parallel model outlives their group: it could then hang.
TRAIN_AND_LEAVE = """
import gc, sys
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from sepconv.models.train import main

def leave(leave=distributed.destroy_process_group):
    assert not any(type(thing) is DistributedDataParallel for thing in gc.get_objects())
    leave()

distributed.destroy_process_group = leave
sys.exit(main(sys.argv[1:]))
"""


def test_torchrun_goes_on_with_a_run_of_one_process(tmp_path, one_thread):
    options = {"train_limit": 16, "threads": 1}
    train(config(output=tmp_path, epochs=1, **options))
    [row] = csv_rows(tmp_path)
    script = tmp_path / "train_and_leave.py"
    script.write_text(TRAIN_AND_LEAVE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, script, *flags(tmp_path, epochs=2, **options), "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2:") == 1, "the main process alone reports"
    before, after = csv_rows(tmp_path)
    assert before == row
    accuracy, loss = validate_checkpoint(tmp_path)
    assert float(after["val_accuracy"]) == accuracy, "13 images shared by two processes count once each"
    assert float(after["val_loss"]) == pytest.approx(loss, rel=1e-5)
    assert len(files.read_torch(tmp_path / "checkpoint.pt")["processes"]) == 2


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with joined_world("cpu") as world:
        assert world == CPU
        assert world.sum([1.5, 2]) == [1.5, 2]
        assert world.max([3.0]) == [3.0]
        assert world.gather("x") == ["x"]


# --- the command -------------------------------------------------------------------------------------------


def test_command_prints_each_epoch(tiny_network, tmp_path, capsys):
    assert main(flags(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 1}, "batch_size"),
        ({"batch_size": 41}, "at most the 40 training images, got 41"),
        ({"data": "absent"}, "absent: no such file or folder"),
        ({"image_size": 6}, "image_size must be at least 7"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(tiny_network, tmp_path, capsys, options, words):
    assert main(flags(tmp_path, **options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"setting": "fast"}, r"setting must be one of 'xception', .* got 'fast'"),
        ({"layers": "keras"}, r"layers must be one of .* got 'keras'"),
        ({"amp": "fp8"}, r"amp must be one of .* got 'fp8'"),
        ({"download": "imagenet"}, r"download must be one of .* got 'imagenet'"),
        ({"epochs": 0}, r"epochs must be at least 1, got 0"),
        ({"checkpoint_steps": 0}, r"checkpoint_steps must be at least 1, got 0"),
        ({"workers": -1}, r"workers must be at least 0, got -1"),
        ({"lr": float("nan")}, r"lr must be above 0, got nan"),
        ({"stem_stride": 3}, r"stem_stride must be 1 or 2, got 3"),
        ({"row_stride": 2}, r"row_stride must be 1 with setting 'optimized', got 2"),
        ({"device": "abacus"}, r"device must be one that PyTorch knows, got 'abacus'"),
        ({"resume": True}, r"resume and checkpoint_steps need an output folder"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        config(**options)


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_progress_bar_with_and_without_tqdm(with_tqdm, monkeypatch, capsys):
    if with_tqdm:
        pytest.importorskip("tqdm", reason="tqdm is not installed: the plain bar alone is tested")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress_bar("epoch 1/2", total=4, initial=1) as bar:
        for _ in range(3):
            bar.set_postfix_str("loss 1.5", refresh=False)
            bar.update()
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown
    assert "4/4" in shown
    assert "loss 1.5" in shown


def test_disabled_progress_bar_is_silent(capsys):
    with progress_bar("epoch 1/2", total=4, enabled=False) as bar:
        bar.update()
        bar.set_postfix_str("loss 1.5")
    assert capsys.readouterr().err == ""
