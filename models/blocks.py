"""What both Xceptions are made of: stem, separable units, residual modules, classifier.

Chains of convolutions, batch norms and ReLUs are built from the layer set's ``sequential``, which may run a
chain as one operation. A chain ends where a tensor has two readers: where a shortcut begins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from .layers import LayerSet


def stem(
    in_channels: int, layers: LayerSet, *, stride: int = 2, row_average: bool = False, row_stride: int = 1
) -> nn.Sequential:
    """Two dense convolutions to 32 and 64 channels.

    Stride 2 is Xception's (no padding); stride 1 is for small images and pads, to keep their size.
    """
    if stride not in (1, 2):
        raise ValueError(f"stem_stride must be 1 or 2, got {stride}")
    if row_stride < 1:
        raise ValueError(f"row_stride must be at least 1, got {row_stride}")
    if row_stride != 1 and not row_average:
        raise ValueError(f"row_stride must be 1 without row_average, got {row_stride}")
    padding = 1 if stride == 1 else 0
    if row_average:
        conv1 = layers.row_average_conv2d(
            in_channels, 32, 3, stride=stride, padding=padding, bias=False, row_stride=row_stride
        )
    else:
        conv1 = nn.Conv2d(in_channels, 32, 3, stride=stride, padding=padding, bias=False)
    return layers.sequential(
        OrderedDict(
            conv1=conv1,
            bn1=nn.BatchNorm2d(32),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(32, 64, 3, padding=padding, bias=False),
            bn2=nn.BatchNorm2d(64),
            relu2=nn.ReLU(inplace=True),
        )
    )


def separable_unit(
    in_channels: int,
    out_channels: int,
    layers: LayerSet,
    *,
    relu: str | None = "before",
    inplace: bool = False,
) -> nn.Sequential:
    """[ReLU] → separable 3x3 convolution → batch norm [→ ReLU]; `relu` is 'before', 'after' or None."""
    unit: OrderedDict[str, nn.Module] = OrderedDict()
    if relu == "before":
        unit["relu"] = nn.ReLU(inplace=inplace)
    unit["conv"] = layers.separable_conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    unit["bn"] = nn.BatchNorm2d(out_channels)
    if relu == "after":
        unit["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(unit)


def separable_units(
    channels: Sequence[int], layers: LayerSet, *, leading_relu: bool = True, pool: bool = False
) -> nn.Sequential:
    """A chain of separable units through `channels`, then, with `pool`, a 3x3 max-pool of stride 2.

    Only the first ReLU reads the module's input, which a shortcut reads too: the others work in place. A unit
    by itself is a plain ``nn.Sequential``: it is the chain that decides how its units run.
    """
    units = [
        separable_unit(a, b, layers, relu="before" if i or leading_relu else None, inplace=i > 0)
        for i, (a, b) in enumerate(pairwise(channels))
    ]
    return layers.sequential(*units, *([nn.MaxPool2d(3, stride=2, padding=1)] if pool else []))


def projection(in_channels: int, out_channels: int, layers: LayerSet, *, stride: int = 1) -> nn.Sequential:
    """The linear shortcut: 1x1 convolution and batch norm."""
    return layers.sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
            bn=nn.BatchNorm2d(out_channels),
        )
    )


class Residual(nn.Module):
    """``body(x) + shortcut(x)``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.body(input) + self.shortcut(input)


def downsampling(channels: Sequence[int], layers: LayerSet, *, leading_relu: bool = True) -> Residual:
    """Separable units and a max-pool that halves the map, beside a projection of stride 2."""
    body = separable_units(channels, layers, leading_relu=leading_relu, pool=True)
    return Residual(body, projection(channels[0], channels[-1], layers, stride=2))


def last_units(layers: LayerSet) -> nn.Sequential:
    """The last module of both networks: 1024 → 1536 → 2048 channels, no residual."""
    return layers.sequential(
        separable_unit(1024, 1536, layers, relu="after"), separable_unit(1536, 2048, layers, relu="after")
    )


def classifier(features: int, hidden: Sequence[int], num_classes: int) -> nn.Sequential:
    """Fully connected layers with ReLU between them."""
    sizes = [features, *hidden]
    stages: list[nn.Module] = []
    for a, b in pairwise(sizes):
        stages += [nn.Linear(a, b), nn.ReLU(inplace=True)]
    return nn.Sequential(*stages, nn.Linear(sizes[-1], num_classes))


class XceptionNetwork(nn.Module):
    """The flow that both networks share; a subclass chooses the modules.

    Input: (N, in_channels, H, W) floating point. Output: (N, num_classes) logits.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        entry: nn.Module,
        middle: nn.Module,
        exit: nn.Module,
        last: nn.Module,
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.entry = entry
        self.middle = middle
        self.exit = exit
        self.last = last
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward_features(self, input: torch.Tensor) -> torch.Tensor:
        """The last feature map, (N, 2048, h, w)."""
        return self.last(self.exit(self.middle(self.entry(self.stem(input)))))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.pool(self.forward_features(input)), 1))


def check_positive(**sizes: int) -> None:
    """Raises ``ValueError`` for the first argument below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
