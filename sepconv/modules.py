"""Layers that own parameters and nothing else; the work is done in functional.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepconv import functional
from sepconv._types import Padding, Pair

__all__ = ["RowAverage", "RowAverageConv2d", "SeparableConv2d"]


class SeparableConv2d(nn.Module):
    """A depthwise and a 1x1 convolution in one pass: a drop-in for two ``nn.Conv2d`` in a row.

    The children ``depthwise`` and ``pointwise`` are real ``nn.Conv2d``, made in this order: state dict keys,
    and with the same seed the initial weights, are those of the two stock layers. They are the configuration,
    too: what is set on them after construction (a stride, a dilation, a weight) counts. When a child is no
    plain ``nn.Conv2d`` any more, or carries a hook (pruning, spectral norm, parametrisations, adapters), the
    module calls its children one after the other, so that nothing of theirs is lost but the speed.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: of the depthwise convolution, an int or (vertical, horizontal).
        stride: of the depthwise convolution.
        padding: of the depthwise convolution: numbers, ``'same'`` or ``'valid'``.
        dilation: of the depthwise convolution.
        bias: whether the pointwise convolution has a bias.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        depth_multiplier: depthwise outputs for each input channel.
        depthwise_bias: whether the depthwise convolution has a bias.
        device, dtype: of the parameters.

    Shape:
        (N, C_in, H, W) to (N, C_out, H', W'), or both without N, as ``nn.Conv2d`` sizes them.

    Raises:
        ValueError, RuntimeError: as ``nn.Conv2d``, and for a ``depth_multiplier`` below 1.

    Example:
        >>> import torch, sepconv
        >>> layer = sepconv.SeparableConv2d(8, 16, kernel_size=3, stride=2, padding=1)
        >>> layer(torch.randn(2, 8, 15, 15)).shape
        torch.Size([2, 16, 8, 8])
        >>> list(layer.state_dict())
        ['depthwise.weight', 'pointwise.weight', 'pointwise.bias']
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        depth_multiplier: int = 1,
        depthwise_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("depth_multiplier", depth_multiplier),
        ):
            if value < 1:
                raise ValueError(f"SeparableConv2d: {name} must be at least 1, got {value}")
        middle_channels = in_channels * depth_multiplier
        self.depthwise = nn.Conv2d(
            in_channels,
            middle_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=depthwise_bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.pointwise = nn.Conv2d(middle_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        depthwise, pointwise = self.depthwise, self.pointwise
        if not (is_depthwise(depthwise) and is_pointwise(pointwise)):
            return pointwise(depthwise(input))
        padding = depthwise.padding
        if depthwise.padding_mode != "zeros":
            input = F.pad(input, depthwise._reversed_padding_repeated_twice, mode=depthwise.padding_mode)
            padding = 0
        return functional.separable_conv2d(
            input,
            depthwise.weight,
            pointwise.weight,
            depthwise.bias,
            pointwise.bias,
            depthwise.stride,
            padding,
            depthwise.dilation,
        )


def is_plain(layer: object, *kinds: type[nn.Module]) -> bool:
    """Whether `layer` is of one of these very classes and calling it would do nothing but ``forward``."""
    return type(layer) in kinds and not (
        layer._forward_pre_hooks
        or layer._forward_hooks
        or layer._backward_pre_hooks
        or layer._backward_hooks
        or layer._compiled_call_impl is not None
        or "forward" in layer.__dict__
    )


def is_depthwise(layer: nn.Module) -> bool:
    return is_plain(layer, nn.Conv2d) and layer.groups == layer.in_channels


def is_pointwise(layer: nn.Module) -> bool:
    return (
        is_plain(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
    )


class RowAverage(nn.Module):
    """The mean of each row with the row above and the row below: :func:`sepconv.row_average` as a layer.

    Args:
        stride: distance between the rows that are kept, at least 1.

    Shape:
        (N, C, H, W) to (N, C, (H - 1) // stride + 1, W), or both without N.

    Raises:
        ValueError: ``stride`` is below 1.

    Example:
        >>> import torch, sepconv
        >>> sepconv.RowAverage(stride=2)(torch.randn(2, 3, 9, 5)).shape
        torch.Size([2, 3, 5, 5])
    """

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"RowAverage: stride must be at least 1, got {stride}")
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return functional.row_average(input, self.stride)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class RowAverageConv2d(nn.Conv2d):
    """``nn.Conv2d`` on averaged rows in one pass: :func:`sepconv.row_average_conv2d` as a layer.

    A dense ``nn.Conv2d`` in its parameters, their initial values and its state dict.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as ``nn.Conv2d``.
        device, dtype: of the parameters.
        row_stride: the stride of the row average, at least 1.

    Shape:
        (N, C_in, H, W) to (N, C_out, H', W'), or both without N.

    Raises:
        ValueError, RuntimeError: as ``nn.Conv2d``, and for a ``row_stride`` below 1.

    Example:
        >>> import torch, sepconv
        >>> layer = sepconv.RowAverageConv2d(3, 16, kernel_size=3, padding=1, row_stride=2)
        >>> layer(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 16, 16, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        bias: bool = True,
        row_stride: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if row_stride < 1:
            raise ValueError(f"RowAverageConv2d: row_stride must be at least 1, got {row_stride}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.row_stride = row_stride

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.row_average_conv2d(
            input, weight, bias, self.stride, self.padding, self.dilation, self.row_stride
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, row_stride={self.row_stride}"
