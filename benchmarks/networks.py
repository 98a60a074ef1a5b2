"""Whole networks as contestants: which layers they are built from, which layout, compiled or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sepconv import models

MODELS = {"xception": models.xception, "optimized_xception": models.optimized_xception}


@dataclass(frozen=True)
class Setup:
    layers: str  # as sepconv.models knows them
    memory_format: torch.memory_format
    compiled: bool = False


SETUPS = {
    "sepconv": Setup("sepconv", torch.channels_last),
    "sepconv-nchw": Setup("sepconv", torch.contiguous_format),
    "sepconv-compile": Setup("sepconv", torch.channels_last, compiled=True),
    "stock-nhwc": Setup("stock", torch.channels_last),
    "stock-nchw": Setup("stock", torch.contiguous_format),
    "compile": Setup("stock", torch.channels_last, compiled=True),
}


def build(model: str, layers: str, num_classes: int, stem_stride: int = 2) -> nn.Module:
    """The network with the weights of seed 0, which do not depend on `layers`."""
    torch.manual_seed(0)
    return MODELS[model](num_classes=num_classes, stem_stride=stem_stride, layers=layers)


def images(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def relative_error(values: torch.Tensor, exact: torch.Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())
