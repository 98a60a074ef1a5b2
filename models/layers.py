"""The two sets of layers a network can be built from: sepconv's, or pairs of stock PyTorch layers.

Both hold the same parameters under the same names and create them in the same order, so that state dicts
fit either way and one seed gives one set of initial weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from sepconv import FusedSequential, RowAverageConv2d, SeparableConv2d


class StockSeparableConv2d(nn.Module):
    """Depthwise then pointwise ``nn.Conv2d``, called one after the other: what sepconv replaces."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.depthwise(input))


class StockRowAverageConv2d(nn.Conv2d):
    """``avg_pool2d`` over three rows, then ``nn.Conv2d``; holds what ``nn.Conv2d`` holds."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        row_stride: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.row_stride = row_stride

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = F.avg_pool2d(input, (3, 1), (self.row_stride, 1), (1, 0), count_include_pad=False)
        return super().forward(rows)


@dataclass(frozen=True)
class LayerSet:
    """The classes that a network is built from."""

    separable_conv2d: type[nn.Module]
    row_average_conv2d: type[nn.Module]
    sequential: type[nn.Sequential]  # of what stands around them


LAYERS = {
    "sepconv": LayerSet(SeparableConv2d, RowAverageConv2d, FusedSequential),
    "stock": LayerSet(StockSeparableConv2d, StockRowAverageConv2d, nn.Sequential),
}


def layer_set(name: str) -> LayerSet:
    """Returns the set called `name`; raises ``ValueError`` that lists the names there are."""
    if name not in LAYERS:
        raise ValueError(f"layers must be one of {', '.join(map(repr, LAYERS))}, got {name!r}")
    return LAYERS[name]
