"""The "optimized Xception" of Hasan & Dey, "Depthwise Separable Convolutions with Deep Residual
Convolutions", arXiv 2411.07544: a reconstruction.

The paper gives 26 convolutional layers in 12 modules, linear residual connections, fully connected layers
and 7.43 M parameters; it prints neither widths nor sizes of the fully connected layers. This network keeps
Xception's stem, entry rhythm and exit, uses one middle width of 256, and meets those numbers. Which middle
residuals carry a projection, and the fully connected sizes, are arguments because near neighbours meet
7.43 M too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from . import pretrained
from .blocks import (
    Residual,
    XceptionNetwork,
    check_positive,
    classifier,
    downsampling,
    last_units,
    projection,
    separable_units,
    stem,
)
from .layers import LayerSet, layer_set

MIDDLE_CHANNELS = 256
MIDDLE_FLOW_1_MODULES = 4

SHORTCUTS = ("every", "second", "module")


def _residual_pair(first_units: int, shortcuts: str, layers: LayerSet) -> nn.Module:
    """A middle module with two linear residual blocks: `first_units` separable units, then one more."""
    width = MIDDLE_CHANNELS
    if shortcuts == "module":
        return Residual(
            separable_units([width] * (first_units + 2), layers), projection(width, width, layers)
        )
    first = projection(width, width, layers) if shortcuts == "every" else nn.Identity()
    return nn.Sequential(
        Residual(separable_units([width] * (first_units + 1), layers), first),
        Residual(separable_units([width] * 2, layers), projection(width, width, layers)),
    )


def _middle(shortcuts: str, layers: LayerSet) -> nn.Sequential:
    if shortcuts not in SHORTCUTS:
        raise ValueError(f"shortcuts must be one of {', '.join(map(repr, SHORTCUTS))}, got {shortcuts!r}")
    width = MIDDLE_CHANNELS
    around = projection(width, width, layers) if shortcuts == "module" else nn.Identity()
    return nn.Sequential(
        *(_residual_pair(1, shortcuts, layers) for _ in range(MIDDLE_FLOW_1_MODULES)),
        Residual(separable_units([width] * 4, layers), around),
        _residual_pair(2, shortcuts, layers),
    )


class OptimizedXception(XceptionNetwork):
    """The reconstructed optimized Xception; see :func:`optimized_xception`."""

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        row_average: bool = False,
        row_stride: int = 1,
        stem_stride: int = 2,
        shortcuts: str = "every",
        hidden: Sequence[int] = (128,),
        layers: str = "sepconv",
    ) -> None:
        check_positive(num_classes=num_classes, in_channels=in_channels)
        hidden = tuple(hidden)
        check_positive(**{f"hidden[{i}]": size for i, size in enumerate(hidden)})
        chosen = layer_set(layers)
        super().__init__(
            stem=stem(
                in_channels, chosen, stride=stem_stride, row_average=row_average, row_stride=row_stride
            ),
            entry=nn.Sequential(
                downsampling([64, 64, 64], chosen, leading_relu=False),
                downsampling([64, 128, 128], chosen),
                downsampling([128, 256, MIDDLE_CHANNELS], chosen),
            ),
            middle=_middle(shortcuts, chosen),
            exit=downsampling([MIDDLE_CHANNELS, 256, 1024], chosen),
            last=last_units(chosen),
            classifier=classifier(2048, hidden, num_classes),
        )


def optimized_xception(
    num_classes: int = 10,
    in_channels: int = 3,
    row_average: bool = False,
    row_stride: int = 1,
    stem_stride: int | None = None,
    shortcuts: str = "every",
    hidden: Sequence[int] = (128,),
    layers: str = "sepconv",
    weights: str | None = None,
) -> OptimizedXception:
    """Builds the optimized Xception of arXiv 2411.07544, as reconstructed (7,433,450 parameters).

    Args:
        num_classes: size of the output.
        in_channels: channels of the input image.
        row_average: averages three rows of the image (above, current, below) inside the first convolution:
            the paper's "optimized with data".
        row_stride: with `row_average`, keeps every row (1) or every second, third, … averaged row.
        stem_stride: 2 as in Xception (no padding in the stem), or 1 (padded) for small images. By default 2,
            or what `weights` were trained with.
        shortcuts: where the middle flow has a projection (1x1 convolution and batch norm): ``'every'``, on
            every residual of the modules with two; ``'second'``, only on the second of the two, the first
            is an identity; ``'module'``, one around each of the six middle modules as a whole.
        hidden: sizes of the fully connected layers before the last.
        layers: ``'sepconv'`` or ``'stock'`` (pairs of ``nn.Conv2d``, ``avg_pool2d``). Parameters have the
            same names and, with the same seed, the same initial values (PyTorch's defaults) either way.
        weights: ``'cifar10'`` loads trained weights (stem stride 1; images scaled by mean and deviation 0.5),
            where the package has them; None leaves the initial ones.

    Returns:
        A module from (N, in_channels, H, W) to (N, num_classes).

    Raises:
        ValueError: an argument outside what is listed here, or one that `weights` do not fit, by name.
        FileNotFoundError: the package came without the weights asked for.

    >>> import torch
    >>> from sepconv.models import optimized_xception
    >>> model = optimized_xception(row_average=True)
    >>> sum(p.numel() for p in model.parameters())
    7433450
    >>> model.eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    given = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "row_average": row_average,
        "row_stride": row_stride,
        "stem_stride": stem_stride,
        "shortcuts": shortcuts,
        "hidden": tuple(hidden),
    }
    if weights is None:
        return OptimizedXception(
            **given | {"stem_stride": 2 if stem_stride is None else stem_stride}, layers=layers
        )
    return pretrained.load(
        weights, pretrained.OPTIMIZED_XCEPTION, given, partial(OptimizedXception, layers=layers)
    )
