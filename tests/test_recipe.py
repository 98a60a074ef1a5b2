"""Augmentation, schedule and averaged weights: what they compute, and that such runs resume."""

from __future__ import annotations

import copy
import os

import pytest
import test_training
import torch
from test_training import assert_same_run, config
from torch import nn
from torch.nn import functional as F

from sepconv.models import (
    checkpoint,
    data,
    export,
    files,
    load_pretrained,
    optimized_xception,
    pretrained,
    recipe,
    training,
)
from sepconv.models.config import ConfigError
from sepconv.models.distributed import World
from sepconv.models.files import WeightsError
from sepconv.models.train import train

MODERN = {"augment": "crop-flip", "schedule": "one-cycle", "label_smoothing": 0.1, "ema": 0.9}

tiny_network = test_training.tiny_network


def test_crops_are_windows_of_the_padded_image():
    images = torch.randint(256, (64, 3, 9, 11), dtype=torch.uint8)
    crops = recipe.draw_crops(64, seed=3, epoch=2, step=5)
    got = recipe.crop_and_flip(images, crops)
    padded = F.pad(images, (4, 4, 4, 4))
    for image, (top, left, flipped), cut in zip(padded, crops.tolist(), got, strict=True):
        expected = image[:, top : top + 9, left : left + 11]
        assert torch.equal(cut, expected.flip(2) if flipped else expected)
    assert crops[:, :2].unique().tolist() == list(range(9)), "every shift from -4 to 4 occurs"
    assert 0 < crops[:, 2].sum() < 64
    assert got.dtype == torch.uint8


def test_crops_depend_on_seed_epoch_and_step_alone():
    torch.manual_seed(1)
    first = recipe.draw_crops(16, 0, 1, 0)
    torch.manual_seed(2)
    assert torch.equal(recipe.draw_crops(16, 0, 1, 0), first)
    for others in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert not torch.equal(recipe.draw_crops(16, *others), first)


def test_processes_cut_what_one_would(tiny_network):
    images = data.load("fashion-mnist-subset", train_limit=40)
    run = training.Run(config(augment="crop-flip"), images, test_training.CPU)
    batch = images.train.images[:8]
    whole = run._augmented(batch)
    assert not torch.equal(whole, batch)
    parts = []
    for rank in range(2):
        run.world = World(rank, 2, test_training.CPU.device)
        parts.append(run._augmented(batch[4 * rank : 4 * rank + 4]))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("steps", [10, 37, 1000])
def test_the_schedule_is_that_of_torch(steps):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        [group] = optimizer.param_groups
        assert recipe.one_cycle(step, steps) == pytest.approx(group["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_schedule_of_hardly_any_steps_is_finite(steps):
    assert all(0 < recipe.one_cycle(step, steps) <= 1 for step in range(steps))


def recipe_run(count: int) -> training.Run:
    """A run of steps of 8 images each; without dropout, whose draws a step by hand would have to repeat."""
    options = {"epochs": 1, "batch_size": 8, **MODERN, "augment": "none"}
    images = data.load("fashion-mnist-subset", train_limit=count)
    run = training.Run(config(**options), images, test_training.CPU)
    run.model[3].p = 0.0
    return run


def test_the_training_loss_is_smoothed(tiny_network):
    run = recipe_run(8)
    model, images = copy.deepcopy(run.model), run.images.train
    expected = F.cross_entropy(model(images.images / 127.5 - 1), images.labels, label_smoothing=0.1)
    run.train_epoch()
    assert run.state.loss_sum == pytest.approx(expected.item(), rel=1e-5)


def test_steps_follow_the_schedule_and_the_average_follows_the_steps(tiny_network):
    run = recipe_run(16)
    rates, states = [], []

    def note(*_):
        rates.append(run.optimizer.param_groups[0]["lr"])
        states.append(copy.deepcopy(run.model.state_dict()))

    run.optimizer.register_step_post_hook(note)
    run.train_epoch()
    assert rates == [1e-3 * recipe.one_cycle(step, 2) for step in range(2)]
    for name, value in run.average.module.named_parameters():
        torch.testing.assert_close(value, 0.9 * states[0][name] + 0.1 * states[1][name])


def test_the_average_is_what_is_validated_and_exported(tmp_path):
    output = tmp_path / "run"
    [record] = train(config(epochs=1, train_limit=16, output=output, **MODERN))
    content = files.read_torch(checkpoint.checkpoint_path(output))
    differing = [k for k, v in content["model"].items() if not torch.equal(v, content["average"][k])]
    assert len(differing) > 50
    target = tmp_path / "weights.pt"
    assert export.main([str(checkpoint.checkpoint_path(output)), str(target)]) == 0
    assert target.stat().st_size < 16e6
    exact, model = (optimized_xception(in_channels=1).eval() for _ in range(2))
    load_pretrained(model, target)
    load_pretrained(exact, content["average"])
    for (name, got), value in zip(model.state_dict().items(), content["average"].values(), strict=True):
        assert got.dtype == value.dtype
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-6, msg=name)
    test = data.load("fashion-mnist-subset", test_limit=13).test
    with torch.no_grad():
        loss = F.cross_entropy(exact(test.images.float() / 127.5 - 1), test.labels)
    assert record.val_loss == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("moment", [0, 2, 3, 5])
def test_a_stopped_run_with_a_recipe_resumes_to_the_same_bits(tiny_network, tmp_path, monkeypatch, moment):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {"checkpoint_steps": 2, **MODERN}
    train(config(output=whole, **options))
    real, calls = checkpoint.save, 0

    def stopping(*arguments, **content):
        nonlocal calls
        calls += 1
        if calls == moment + 1:
            raise KeyboardInterrupt
        real(*arguments, **content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config(output=stopped, **options))
    torch.manual_seed(99)
    train(config(output=stopped, resume=True, **options))
    assert_same_run(stopped, whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augment": "none"}, "augment must be 'crop-flip' to resume"),
        ({"schedule": "constant"}, "schedule must be 'one-cycle' to resume"),
        ({"label_smoothing": 0.0}, "label_smoothing must be 0.1 to resume"),
        ({"ema": 0.0}, "ema must be 0.9 to resume"),
        ({"epochs": 3}, "epochs of the schedule must be 1 to resume"),
    ],
)
def test_another_recipe_does_not_resume(tiny_network, tmp_path, options, words):
    base = {"epochs": 1, "output": tmp_path, **MODERN}
    train(config(**base))
    with pytest.raises(ConfigError, match=words):
        train(config(**base | options, resume=True))


def test_a_checkpoint_from_before_recipes_resumes(tiny_network, tmp_path):
    train(config(epochs=1, output=tmp_path))
    path = checkpoint.checkpoint_path(tmp_path)
    content = files.read_torch(path)
    for name in (*MODERN, "epochs of the schedule"):
        del content["identity"][name]
    torch.save(content, path)
    assert len(train(config(epochs=2, output=tmp_path, resume=True))) == 2


def test_a_checkpoint_without_its_average_is_named(tiny_network, tmp_path):
    train(config(epochs=1, output=tmp_path, ema=0.9))
    path = checkpoint.checkpoint_path(tmp_path)
    content = files.read_torch(path)
    del content["average"]
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: does not fit this run"):
        train(config(epochs=1, output=tmp_path, ema=0.9, resume=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augment": "mixup"}, r"augment must be one of 'none', 'crop-flip', got 'mixup'"),
        ({"schedule": "step"}, r"schedule must be one of 'constant', 'one-cycle', got 'step'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"ema": -0.1}, r"ema must be at least 0 and below 1, got -0.1"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        config(**options)


# --- weights by name ---------------------------------------------------------------------------------------


def test_weights_that_are_not_shipped_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    name = "cifar10"
    with pytest.raises(FileNotFoundError, match=r"cifar10\.pt: the weights 'cifar10' are not shipped"):
        optimized_xception(weights=name)


def test_shipped_weights_classify():
    path = os.environ.get("SEPCONV_CIFAR_NPZ")
    if path is None:
        pytest.skip("SEPCONV_CIFAR_NPZ does not name an .npz of CIFAR-10's JPEGs")
    test = data.load(path).test
    images = (test.images[:1000].float() / 255 - 0.5) / 0.5
    model = optimized_xception(weights="cifar10").eval()
    with torch.no_grad():
        found = torch.cat([model(some).argmax(1) for some in images.split(250)])
    assert (found == test.labels[:1000]).sum() > 780  # recorded: 8305 of all 10000


def test_shipped_weights_are_whole():
    model = optimized_xception(weights="cifar10").eval()
    assert pretrained.OPTIMIZED_XCEPTION["cifar10"].path.stat().st_size < 16e6
    assert model.stem.conv1.stride == (1, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_433_450
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert min(norm.running_var.min() for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)) >= 0


def test_exported_weights_load_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    path = pretrained.OPTIMIZED_XCEPTION["cifar10"].path
    trained = optimized_xception(stem_stride=1)
    torch.save({"model": trained.state_dict()}, tmp_path / "checkpoint.pt")
    export.export(tmp_path / "checkpoint.pt", path)
    assert path.stat().st_size < 16e6
    model = optimized_xception(weights="cifar10")
    assert model.stem.conv1.stride == (1, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name].half().to(value.dtype)), name
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"cifar10\.pt: cannot be read"):
        optimized_xception(weights="cifar10")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "imagenet"}, "weights must be one of 'cifar10', got 'imagenet'"),
        ({"weights": "cifar10", "stem_stride": 2}, "stem_stride must be 1 with weights 'cifar10', got 2"),
        (
            {"weights": "cifar10", "num_classes": 100},
            "num_classes must be 10 with weights 'cifar10', got 100",
        ),
        ({"weights": "cifar10", "hidden": []}, r"hidden must be \(128,\) with weights 'cifar10', got \(\)"),
    ],
)
def test_arguments_that_weights_do_not_fit_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        optimized_xception(**options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {}}, "is no checkpoint"),
        ([1], "is no checkpoint"),
        ({"model": {"a": torch.tensor([1e6])}}, "a holds values that float16 cannot"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(content, words, tmp_path, capsys):
    path, target = tmp_path / "checkpoint.pt", tmp_path / "weights.pt"
    torch.save(content, path)
    assert export.main([str(path), str(target)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}")
    assert words in error
    assert not target.exists()
    assert export.main([str(tmp_path / "absent.pt"), str(target)]) == 2
