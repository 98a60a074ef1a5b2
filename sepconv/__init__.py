"""Fused depthwise separable convolutions for PyTorch.

>>> import torch, sepconv
>>> layer = sepconv.SeparableConv2d(64, 128, kernel_size=3, padding=1)
>>> layer(torch.randn(1, 64, 19, 19)).shape
torch.Size([1, 128, 19, 19])
"""

import importlib
from types import ModuleType

from sepconv import functional
from sepconv.build_info import info
from sepconv.chain import ChainUnit, conv_chain
from sepconv.frozen import FrozenSeparableConv2d
from sepconv.functional import row_average, row_average_conv2d, separable_conv2d
from sepconv.memory import empty_cache, memory_reserved
from sepconv.modules import RowAverage, RowAverageConv2d, SeparableConv2d
from sepconv.sequential import FusedSequential

__version__ = "0.1.0"

__all__ = [
    "ChainUnit",
    "FrozenSeparableConv2d",
    "FusedSequential",
    "RowAverage",
    "RowAverageConv2d",
    "SeparableConv2d",
    "conv_chain",
    "empty_cache",
    "functional",
    "info",
    "memory_reserved",
    "row_average",
    "row_average_conv2d",
    "separable_conv2d",
]


def __getattr__(name: str) -> ModuleType:
    if name == "models":  # imported when first asked for: layers alone need no networks
        return importlib.import_module("sepconv.models")
    raise AttributeError(f"module 'sepconv' has no attribute {name!r}")
