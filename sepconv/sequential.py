"""A container that trains what stands in a row in it as one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sepconv import chain
from sepconv._checks import autocasts, pair
from sepconv.chain import ChainUnit, conv_chain
from sepconv.modules import SeparableConv2d, is_depthwise, is_plain, is_pointwise

__all__ = ["FusedSequential"]


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` that trains runs of [activation →] convolution → batch norm as one operator.

    Children, state dict keys and results are those of ``nn.Sequential``; only time and memory differ. In
    training mode each longest run of units, and an activation behind it, is a :func:`sepconv.conv_chain`.
    A unit is

    - ``nn.ReLU`` or ``nn.ReLU6``, or none,
    - :class:`sepconv.SeparableConv2d`, or a depthwise ``nn.Conv2d``, or a 1x1 ``nn.Conv2d`` of any stride,
      all without bias and padded with zeros,
    - ``nn.BatchNorm2d`` with affine parameters, running statistics and a momentum; or, first in a run, such
      a batch norm alone.

    Plain containers inside (``nn.Sequential``, ``FusedSequential``) are looked into. All else is called as
    ``nn.Sequential`` calls it: other layers, subclasses such as ``nn.SyncBatchNorm``, layers with hooks or
    parametrisations, evaluation mode, devices without kernels, and everything under ``torch.compile``,
    tracing, ``torch.func`` and forward-mode differentiation. A leading activation that works in place does
    so.

    Example:
        >>> import torch, sepconv
        >>> from torch import nn
        >>> block = sepconv.FusedSequential(
        ...     nn.ReLU(), sepconv.SeparableConv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        ... )
        >>> block(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 16, 5, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        if (
            not (self.training and chain.has_kernel(input) and input.dim() == 4 and input.shape[0] > 0)
            or torch.nn.modules.module._has_any_global_hook()
        ):
            return super().forward(input)
        layers = list(_flat(self))
        position = 0
        while position < len(layers):
            units, activation, end = _run(layers, position, input)
            if units:
                input = conv_chain(input, units, activation)
            else:
                end = position + 1
                input = layers[position](input)
            position = end
        return input


def _flat(container: nn.Sequential) -> Iterator[nn.Module]:
    for layer in container:
        if is_plain(layer, nn.Sequential, FusedSequential):
            yield from _flat(layer)
        else:
            yield layer


def _run(layers: list[nn.Module], start: int, input: Tensor) -> tuple[list[ChainUnit], str | None, int]:
    """The units of the longest run from `start` on, the activation behind it, and where the run ends."""
    dtype = input.dtype
    if autocasts(input) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
    units: list[ChainUnit] = []
    position, size = start, input.shape
    while True:
        activation, at = _activation(layers, position, first=not units)
        unit = _unit(
            layers,
            at,
            activation,
            input,
            dtype,
            alone=not units and activation is None and input.dtype == dtype,
        )
        if unit is not None:
            size = _output_size(size, unit)
        if unit is None or size[0] * size[2] * size[3] <= 1:  # batch norm says what is wrong with such
            break
        units.append(unit)
        position = at + (1 if unit.depthwise_weight is None and unit.pointwise_weight is None else 2)
    if not units:
        return units, None, start
    return units, activation, at


def _activation(layers: list[nn.Module], position: int, first: bool) -> tuple[str | None, int]:
    """The activation at `position` and what comes after it; a run's first one must leave its input alone."""
    if position < len(layers):
        layer = layers[position]
        for name, kind in ("relu", nn.ReLU), ("relu6", nn.ReLU6):
            if is_plain(layer, kind) and not (first and layer.inplace):
                return name, position + 1
    return None, position


def _unit(
    layers: list[nn.Module],
    position: int,
    activation: str | None,
    input: Tensor,
    dtype: torch.dtype,
    alone: bool,
) -> ChainUnit | None:
    """Convolution and batch norm at `position`, or batch norm `alone`; None if they are not there.

    `dtype` is what the run computes in, on the device of its `input`.
    """
    if position >= len(layers):
        return None
    layer = layers[position]
    depthwise = pointwise = None
    if is_plain(layer, SeparableConv2d):
        depthwise, pointwise = layer.depthwise, layer.pointwise
        if not (is_depthwise(depthwise) and is_pointwise(pointwise)):
            return None
    elif is_plain(layer, nn.Conv2d):
        if layer.kernel_size == (1, 1) and layer.groups == 1:
            pointwise = layer
        elif is_depthwise(layer):
            depthwise = layer
        else:
            return None
    elif not alone:
        return None
    convolutions = [conv for conv in (depthwise, pointwise) if conv is not None]
    norm = layers[position + 1] if convolutions and position + 1 < len(layers) else layer
    compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if not _trains_with_batch_statistics(norm, compute_dtype, input.device):
        return None
    window = (1, 0, 1)
    if convolutions:
        first = convolutions[0]
        window = (first.stride, first.padding, first.dilation)
        if not all(
            conv.bias is None and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
            for conv in convolutions
        ):
            return None
        if depthwise is None and pointwise.padding != (0, 0):
            return None
        if not _fits_all(convolutions, dtype, input.device):
            return None
    return ChainUnit(
        norm.weight,
        norm.bias,
        None if depthwise is None else depthwise.weight,
        None if pointwise is None else pointwise.weight,
        activation,
        *window,
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
        norm.eps,
        norm.momentum,
    )


def _fits_all(convolutions: list[nn.Conv2d], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the operator takes the weights: what autocast would cast, or what has the dtype already."""
    autocast = torch.is_autocast_enabled(device.type)
    return all(
        _is_plain_tensor(weight) and (weight.dtype == dtype or (autocast and weight.dtype != torch.float64))
        for weight in (conv.weight for conv in convolutions)
    )


def _is_plain_tensor(tensor: Tensor | None) -> bool:
    """Subclasses (sharded, quantised) have operators of their own."""
    return type(tensor) in (nn.Parameter, Tensor)


def _trains_with_batch_statistics(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    if not (
        is_plain(layer, nn.BatchNorm2d)
        and layer.training
        and layer.affine
        and layer.track_running_stats
        and layer.momentum is not None
        and layer.eps > 0
    ):
        return False
    batches = layer.num_batches_tracked
    return all(
        _is_plain_tensor(vector)
        and vector.dtype == dtype
        and vector.device == device
        and vector.is_contiguous()
        for vector in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    ) and (
        batches is None
        or (_is_plain_tensor(batches) and batches.dtype == torch.int64 and batches.device == device)
    )


def _output_size(size: torch.Size, unit: ChainUnit) -> tuple[int, int, int, int]:
    batch, channels, *extent = size
    kernel = (1, 1)
    if unit.depthwise_weight is not None:
        channels, _, *kernel = unit.depthwise_weight.shape
    if unit.pointwise_weight is not None:
        channels = unit.pointwise_weight.shape[0]
    stride, padding, dilation = map(pair, (unit.stride, unit.padding, unit.dilation))
    height, width = (
        (extent[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    )
    return batch, channels, height, width
