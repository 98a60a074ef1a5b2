"""Weights that users hold load strictly and give the same logits; broken files are named."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from sepconv.models import load_pretrained, optimized_xception, xception


def randomize(model: nn.Module) -> nn.Module:
    """Makes every tensor count: fresh batch norms are nearly identities, which would hide swapped keys."""
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.uniform_(-0.3, 0.3, generator=generator)
        norm.momentum = 1.0  # the next batch sets the running statistics
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 149, 149, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def timm_model():
    timm = pytest.importorskip("timm", reason="timm is not installed: its legacy_xception is the reference")
    torch.manual_seed(0)
    return randomize(timm.create_model("legacy_xception", pretrained=False, num_classes=1000))


@pytest.fixture(scope="module")
def timm_logits(timm_model):
    torch.manual_seed(2)
    images = torch.randn(1, 3, 149, 149)
    with torch.no_grad():
        return images, timm_model(images)


def assert_same_logits(model: nn.Module, images: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.05, "logits that hardly vary would prove nothing"
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", ["sepconv", "stock"])
def test_timm_weights_give_the_logits_of_timm(timm_model, timm_logits, layers):
    model = load_pretrained(xception(1000, layers=layers), timm_model.state_dict())
    assert_same_logits(model, *timm_logits)


def test_cadene_weights_give_the_same_logits(timm_model, timm_logits, tmp_path):
    state = {}
    for key, value in timm_model.state_dict().items():
        # Cadene's file: another name for the classifier, pointwise weights as matrices, no batch counts.
        if not key.endswith("num_batches_tracked"):
            is_matrix = key.endswith("pointwise.weight")
            state[key.replace("fc.", "last_linear.")] = value[:, :, 0, 0] if is_matrix else value
    path = tmp_path / "xception.pth"
    torch.save(state, path)
    assert_same_logits(load_pretrained(xception(1000), path), *timm_logits)


def test_safetensors_file_as_timm_publishes_it(timm_model, timm_logits, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = tmp_path / "model.safetensors"
    safetensors.save_file(timm_model.state_dict(), path)
    assert_same_logits(load_pretrained(xception(1000), str(path)), *timm_logits)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_own_weights_load_however_they_were_wrapped(prefix, wrapper, tmp_path):
    model = optimized_xception()
    state = {prefix + key: value for key, value in model.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    loaded = load_pretrained(optimized_xception(layers="stock"), path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_what_does_not_fit_is_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "other.pt"
    state = xception(10, layers="stock").state_dict()
    del state["exit.shortcut.conv.weight"]
    state["surplus"] = torch.zeros(1)
    torch.save(state, path)
    model = xception(9)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_pretrained(model, path)
    message = str(caught.value)
    assert str(path) in message
    assert "classifier.0.weight has shape (10, 2048) where the model has (9, 2048)" in message
    assert "exit.shortcut.conv.weight is missing" in message
    assert "surplus is unexpected" in message
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_xception_weights_do_not_fit_the_optimized_network():
    with pytest.raises(ValueError, match="state_dict: does not fit OptimizedXception"):
        load_pretrained(optimized_xception(), xception(10).state_dict())


class RunsCode:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def truncated(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404</html>"),
    "truncated": truncated,
    "unsafe": lambda path: path.write_bytes(pickle.dumps({"a": RunsCode()}, protocol=2)),
    "not tensors": lambda path: torch.save({"a": 1}, path),
    "no dict": lambda path: torch.save(torch.zeros(3), path),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_broken_files_are_named(kind, suffix, tmp_path, monkeypatch):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    BROKEN[kind](path)
    with torch.device("meta"):
        model = optimized_xception()
    with pytest.raises(ValueError) as caught:
        load_pretrained(model, path)
    assert str(path) in str(caught.value)
    assert not Path("ran").exists()


def test_missing_file_is_named(tmp_path):
    with torch.device("meta"):
        model = optimized_xception()
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        load_pretrained(model, tmp_path / "absent.pt")
