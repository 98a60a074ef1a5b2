"""The three settings that arXiv 2411.07544 compares, by name."""

from __future__ import annotations

from .blocks import XceptionNetwork
from .optimized import optimized_xception
from .original import xception

SETTINGS = ("xception", "optimized", "optimized-with-data")


def build_model(
    setting: str,
    num_classes: int,
    in_channels: int,
    *,
    layers: str = "sepconv",
    stem_stride: int = 2,
    row_stride: int = 1,
) -> XceptionNetwork:
    """Builds the network of `setting`; `row_stride` concerns ``'optimized-with-data'`` alone.

    Raises ``ValueError`` for an unknown setting, or for arguments that its network rejects.
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting must be one of {', '.join(map(repr, SETTINGS))}, got {setting!r}")
    row_average = setting == "optimized-with-data"
    if row_stride != 1 and not row_average:
        raise ValueError(f"row_stride must be 1 with setting {setting!r}, got {row_stride}")
    if setting == "xception":
        return xception(num_classes, in_channels, layers=layers, stem_stride=stem_stride)
    return optimized_xception(
        num_classes,
        in_channels,
        row_average=row_average,
        row_stride=row_stride,
        stem_stride=stem_stride,
        layers=layers,
    )
