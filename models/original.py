"""Xception as published: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2016."""

from __future__ import annotations

from torch import nn

from .blocks import (
    Residual,
    XceptionNetwork,
    check_positive,
    classifier,
    downsampling,
    last_units,
    separable_units,
    stem,
)
from .layers import layer_set

MIDDLE_MODULES = 8
MIDDLE_CHANNELS = 728


class Xception(XceptionNetwork):
    """Xception; see :func:`xception`."""

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, layers: str = "sepconv", stem_stride: int = 2
    ) -> None:
        check_positive(num_classes=num_classes, in_channels=in_channels)
        chosen = layer_set(layers)
        width = MIDDLE_CHANNELS
        super().__init__(
            stem=stem(in_channels, chosen, stride=stem_stride),
            entry=nn.Sequential(
                downsampling([64, 128, 128], chosen, leading_relu=False),
                downsampling([128, 256, 256], chosen),
                downsampling([256, width, width], chosen),
            ),
            middle=nn.Sequential(
                *(
                    Residual(separable_units([width] * 4, chosen), nn.Identity())
                    for _ in range(MIDDLE_MODULES)
                )
            ),
            exit=downsampling([width, width, 1024], chosen),
            last=last_units(chosen),
            classifier=classifier(2048, (), num_classes),
        )


def xception(
    num_classes: int = 1000, in_channels: int = 3, layers: str = "sepconv", stem_stride: int = 2
) -> Xception:
    """Builds Xception (36 convolutional layers in 14 modules; 22,855,952 parameters with 1000 classes).

    Args:
        num_classes: size of the output.
        in_channels: channels of the input image.
        layers: ``'sepconv'`` or ``'stock'`` (pairs of ``nn.Conv2d``). Parameters have the same names and,
            with the same seed, the same initial values (PyTorch's defaults) either way.
        stem_stride: 2 as published (no padding in the stem), or 1 (padded) for small images.

    Returns:
        A module from (N, in_channels, H, W) to (N, num_classes).

    Raises:
        ValueError: an argument outside what is listed here, by name.

    >>> import torch
    >>> from sepconv.models import xception
    >>> model = xception(num_classes=10)
    >>> sum(p.numel() for p in model.parameters())
    20827442
    >>> model.eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    return Xception(num_classes, in_channels, layers, stem_stride)
