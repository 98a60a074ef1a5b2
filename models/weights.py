"""Loads weights that users hold: this library's, timm's ``legacy_xception`` and Cadene's ``xception``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from .files import WeightsError, read_torch

Model = TypeVar("Model", bound=nn.Module)

# What training scripts wrap a state dict in; this library's own checkpoints use "model".
_WRAPPERS = ("model", "state_dict")

# timm and Cadene number entry, middle and exit modules through: block1 to block12.
_BLOCKS = (
    {f"block{i + 1}": f"entry.{i}" for i in range(3)}
    | {f"block{i + 4}": f"middle.{i}" for i in range(8)}
    | {"block12": "exit"}
)
_PREFIXES = {
    "conv1": "stem.conv1",
    "bn1": "stem.bn1",
    "conv2": "stem.conv2",
    "bn2": "stem.bn2",
    "conv3.conv1": "last.0.conv.depthwise",
    "conv3.pointwise": "last.0.conv.pointwise",
    "bn3": "last.0.bn",
    "conv4.conv1": "last.1.conv.depthwise",
    "conv4.pointwise": "last.1.conv.pointwise",
    "bn4": "last.1.bn",
    "fc": "classifier.0",
    "last_linear": "classifier.0",
}
_IN_BLOCK = re.compile(
    r"(?P<block>block\d+)\.(?:rep\.(?P<index>\d+)(?:\.(?P<conv>conv1|pointwise))?|(?P<skip>skip|skipbn))"
)
_CONVS = {"conv1": "conv.depthwise", "pointwise": "conv.pointwise", None: "bn"}
_SKIPS = {"skip": "shortcut.conv", "skipbn": "shortcut.bn"}


def _renamed(key: str) -> str:
    """The name that this library has for timm's or Cadene's `key`; a foreign key comes back as it is."""
    prefix, _, leaf = key.rpartition(".")
    if prefix in _PREFIXES:
        return f"{_PREFIXES[prefix]}.{leaf}"
    match = _IN_BLOCK.fullmatch(prefix)
    if match is None or match["block"] not in _BLOCKS:
        return key
    block = _BLOCKS[match["block"]]
    if match["skip"]:
        return f"{block}.{_SKIPS[match['skip']]}.{leaf}"
    # Every unit takes three places of `rep` (ReLU, convolution, batch norm). The first ReLU of block1 is
    # missing, which moves its convolutions from 1, 4 to 0, 3: a division by three hides that.
    return f"{block}.body.{int(match['index']) // 3}.{_CONVS[match['conv']]}.{leaf}"


def _unwrapped(state: object, origin: str) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{origin}: expected a state dict, got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"{origin}: expected names and tensors, got {key!r}: {type(value).__name__}")
    # DistributedDataParallel and torch.compile put their own names in front.
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in state.items()}


def _matched(state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if any(key not in own for key in state):
        state = {_renamed(key): value for key, value in state.items()}
    for key, value in state.items():
        # Files from before the ports to PyTorch's Conv2d hold pointwise weights as plain matrices.
        if key.endswith("pointwise.weight") and value.dim() == 2:
            state[key] = value[:, :, None, None]
    for key, value in own.items():
        # PyTorch before 0.4.1 did not count batches; nothing here depends on the count.
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value))
    return state


def _differences(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    missing = [f"{key} is missing" for key in own if key not in state]
    unexpected = [f"{key} is unexpected" for key in state if key not in own]
    shapes = [
        f"{key} has shape {tuple(state[key].shape)} where the model has {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    return shapes + missing + unexpected


def load_pretrained(
    model: Model, state_dict_or_path: Mapping[str, torch.Tensor] | str | os.PathLike[str]
) -> Model:
    """Loads weights into `model`, strictly: every name and shape has to fit, or nothing is changed.

    Takes this library's own names, and for :func:`~sepconv.models.xception` also those of timm's
    ``legacy_xception`` and of Cadene's ``xception`` (``pretrainedmodels``); both expect 299x299 images
    scaled by mean 0.5 and standard deviation 0.5.

    Args:
        model: a network of ``sepconv.models``, with as many classes and channels as the weights.
        state_dict_or_path: a state dict; or a file made by ``torch.save`` (read with ``weights_only=True``)
            or a ``.safetensors`` file. A checkpoint of ``sepconv.models.train`` serves as well.

    Returns:
        `model`, for chaining.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: (a ``ValueError``) the file cannot be read, or its contents do not fit; the message
            names the file.

    >>> from sepconv.models import load_pretrained, xception
    >>> trained = xception(num_classes=10, layers='stock')
    >>> model = load_pretrained(xception(num_classes=10), trained.state_dict())
    """
    if isinstance(state_dict_or_path, (str, os.PathLike)):
        origin = os.fspath(state_dict_or_path)
        state = read_torch(Path(state_dict_or_path))
    else:
        origin = "state_dict"
        state = state_dict_or_path
    own = model.state_dict()
    renamed = _matched(_unwrapped(state, origin), own)
    differences = _differences(renamed, own)
    if differences:
        shown = "; ".join(differences[:5])
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise WeightsError(f"{origin}: does not fit {type(model).__name__}: {shown}{more}")
    model.load_state_dict(renamed)
    return model
