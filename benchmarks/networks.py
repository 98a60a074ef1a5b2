"""Whole networks as contestants: which layers they are built from, which layout, compiled or not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import mobilenets
import torch
from torch import nn

from sepconv import models

XCEPTIONS = {
    "xception": models.xception,
    "optimized_xception": models.optimized_xception,
    "optimized_xception_with_data": partial(models.optimized_xception, row_average=True),
}
NAMES = (*XCEPTIONS, *mobilenets.NAMES)


@dataclass(frozen=True)
class Setup:
    """How a network runs, and what of: `layers` as sepconv.models knows them."""

    layers: str
    memory_format: torch.memory_format
    compiled: bool = False
    dtype: torch.dtype = torch.float32  # bfloat16: by autocast

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast("cpu", self.dtype)

    def call(self, model: nn.Module) -> nn.Module:
        """`model`, compiled if this setup is."""
        return torch.compile(model, dynamic=False) if self.compiled else model


SETUPS = {
    "sepconv": Setup("sepconv", torch.channels_last),
    "sepconv-nchw": Setup("sepconv", torch.contiguous_format),
    "sepconv-compile": Setup("sepconv", torch.channels_last, compiled=True),
    "stock-nhwc": Setup("stock", torch.channels_last),
    "stock-nchw": Setup("stock", torch.contiguous_format),
    "compile": Setup("stock", torch.channels_last, compiled=True),
}
AUTOCAST_SETUPS = {
    "sepconv-bfloat16": Setup("sepconv", torch.channels_last, dtype=torch.bfloat16),
    "stock-bfloat16": Setup("stock", torch.channels_last, dtype=torch.bfloat16),
    "stock-bfloat16-nchw": Setup("stock", torch.contiguous_format, dtype=torch.bfloat16),
    "compile-bfloat16": Setup("stock", torch.channels_last, compiled=True, dtype=torch.bfloat16),
}


def build(model: str, layers: str, num_classes: int, stem_stride: int = 2) -> nn.Module:
    """The network with the weights of seed 0, which do not depend on `layers`."""
    torch.manual_seed(0)
    if model in XCEPTIONS:
        return XCEPTIONS[model](num_classes=num_classes, stem_stride=stem_stride, layers=layers)
    stock = mobilenets.create(model, num_classes)
    return stock if layers == "stock" else mobilenets.fused(stock)


def images(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All their elements, in float64."""
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def relative_error(values: torch.Tensor, exact: torch.Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())
