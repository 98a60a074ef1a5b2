"""The operators in plain torch: the specification that tests compare with, and the fallback.

Inputs are (N, C, H, W) or (C, H, W), of any device and dtype that torch's own convolutions take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from sepconv._types import Padding, Pair

if TYPE_CHECKING:
    from sepconv.chain import ChainUnit

# In the order of the numbers that the operators know them by.
ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish}


def separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
) -> Tensor:
    """A depthwise convolution, then a 1x1 convolution."""
    channels = input.shape[-3]
    middle = F.conv2d(input, depthwise_weight, depthwise_bias, stride, padding, dilation, groups=channels)
    return F.conv2d(middle, pointwise_weight, pointwise_bias)


def frozen_separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    prologue_activation: str | None = None,
    middle_activation: str | None = None,
    activation: str | None = None,
) -> Tensor:
    """A separable convolution with an activation before, between and after, the last one after a residual."""
    channels = input.shape[-3]
    input = ACTIVATIONS[prologue_activation](input)
    middle = F.conv2d(input, depthwise_weight, depthwise_bias, stride, padding, dilation, groups=channels)
    output = F.conv2d(ACTIVATIONS[middle_activation](middle), pointwise_weight, pointwise_bias)
    return ACTIVATIONS[activation](output if residual is None else output + residual)


def row_average(input: Tensor, stride: int = 1) -> Tensor:
    """The mean of the row above, the row itself and the row below, of those that exist."""
    if input.is_complex():  # torch's pooling takes no complex numbers
        return torch.complex(row_average(input.real, stride), row_average(input.imag, stride))
    return F.avg_pool2d(input, (3, 1), (stride, 1), (1, 0), count_include_pad=False)


def row_average_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    row_stride: int = 1,
) -> Tensor:
    """A convolution of the averaged rows."""
    return F.conv2d(row_average(input, row_stride), weight, bias, stride, padding, dilation)


def conv_chain(input: Tensor, units: Sequence[ChainUnit], activation: str | None = None) -> Tensor:
    """Units of [activation →] convolution → batch norm of the batch, then an activation."""
    for unit in units:
        input = ACTIVATIONS[unit.activation](input)
        window = (unit.stride, unit.padding, unit.dilation)
        if unit.depthwise_weight is not None:
            input = F.conv2d(input, unit.depthwise_weight, None, *window, groups=input.shape[1])
            window = (1, 0, 1)
        if unit.pointwise_weight is not None:
            input = F.conv2d(input, unit.pointwise_weight, None, *window)
        if unit.num_batches_tracked is not None:
            unit.num_batches_tracked.add_(1)
        input = F.batch_norm(
            input, unit.running_mean, unit.running_var, unit.weight, unit.bias, True, unit.momentum, unit.eps
        )
    return ACTIVATIONS[activation](input)
