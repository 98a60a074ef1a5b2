"""Separable convolutions and row averages on NumPy arrays, for devices without PyTorch.

The kernels are those of the ``sepconv`` package, by way of its C library. Images are NHWC unless ``layout``
says otherwise, weights are shaped as PyTorch has them. float32, float64, float16, and bfloat16 where
``ml_dtypes`` brings it to NumPy; the last two are computed in float32 and rounded once.
"""

from . import _core
from .functional import (
    RowAverageConv2dGradients,
    SeparableConv2dGradients,
    row_average,
    row_average_backward,
    row_average_conv2d,
    row_average_conv2d_backward,
    separable_conv2d,
    separable_conv2d_backward,
)

__all__ = [
    "RowAverageConv2dGradients",
    "SeparableConv2dGradients",
    "cpu_capability",
    "row_average",
    "row_average_backward",
    "row_average_conv2d",
    "row_average_conv2d_backward",
    "separable_conv2d",
    "separable_conv2d_backward",
]
__version__ = _core.version()


def cpu_capability() -> str:
    """The instruction set in use, as ``'avx2'`` or ``'neon'``; ``SEPCONV_CPU_CAPABILITY`` caps it."""
    return _core.cpu_capability()
