"""Chains of layers that train as one operator, and their twins of stock."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sepconv import FusedSequential, SeparableConv2d

Layers = Callable[[], list[nn.Module]]


def separable(a: int, b: int, **window) -> SeparableConv2d:
    return SeparableConv2d(a, b, 3, padding=window.pop("padding", 1), bias=False, **window)


def depthwise(channels: int, kernel: int = 3, **window) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False, **window)


def pointwise(a: int, b: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 1, stride=stride, bias=False)


CHAINS: dict[str, Layers] = {
    "xception": lambda: [nn.ReLU(), separable(6, 19), nn.BatchNorm2d(19)],
    "no_relu": lambda: [separable(6, 6), nn.BatchNorm2d(6)],
    "relu_after": lambda: [separable(6, 35), nn.BatchNorm2d(35), nn.ReLU(inplace=True)],
    "three": lambda: [
        nn.ReLU(),
        separable(6, 17),
        nn.BatchNorm2d(17),
        nn.ReLU(inplace=True),
        separable(17, 9, stride=2),
        nn.BatchNorm2d(9),
        nn.ReLU6(),
        separable(9, 6, dilation=2, padding=2),
        nn.BatchNorm2d(6),
    ],
    "mobilenet_v1": lambda: [
        depthwise(6, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        pointwise(6, 20),
        nn.BatchNorm2d(20),
        nn.ReLU6(),
    ],
    "mobilenet_v2": lambda: [
        pointwise(6, 36),
        nn.BatchNorm2d(36),
        nn.ReLU6(inplace=True),
        depthwise(36, 5),
        nn.BatchNorm2d(36),
        nn.ReLU6(inplace=True),
        pointwise(36, 10),
        nn.BatchNorm2d(10),
    ],
    "projection": lambda: [pointwise(6, 40, stride=2), nn.BatchNorm2d(40)],
    "no_activation_between": lambda: [
        pointwise(6, 8),
        nn.BatchNorm2d(8),
        depthwise(8, 3),
        nn.BatchNorm2d(8),
    ],
    "multiplier": lambda: [nn.ReLU6(), separable(6, 5, depth_multiplier=3), nn.BatchNorm2d(5)],
    "batch_norm": lambda: [nn.BatchNorm2d(6)],
    "batch_norm_relu": lambda: [nn.BatchNorm2d(6), nn.ReLU()],
    "batch_norm_first": lambda: [
        nn.BatchNorm2d(6),
        nn.ReLU(),
        separable(6, 7),
        nn.BatchNorm2d(7),
        nn.ReLU(),
    ],
    "one_by_one_map": lambda: [separable(6, 8, stride=9), nn.BatchNorm2d(8)],
    # Its last result is smaller than the weights that made it, and kept.
    "small_maps": lambda: [
        separable(6, 21, stride=5),
        nn.BatchNorm2d(21),
        nn.ReLU(),
        separable(21, 24),
        nn.BatchNorm2d(24),
        nn.ReLU6(),
    ],
    # Channels that vectors hold, in every place where a batch norm is applied on load.
    "short_vectors": lambda: [
        pointwise(6, 8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        separable(8, 16),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        separable(16, 16, stride=2),
        nn.BatchNorm2d(16),
    ],
    "vectors": lambda: [
        pointwise(6, 8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        separable(8, 16),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        separable(16, 16, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        depthwise(16, 5),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        depthwise(16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        pointwise(16, 8, stride=2),
        nn.BatchNorm2d(8),
    ],
}
MEMORY_FORMATS = (torch.channels_last, torch.contiguous_format)


def twins(name: str, dtype: torch.dtype = torch.float64) -> tuple[FusedSequential, nn.Sequential]:
    """A fused container and its twin of stock, with batch norm parameters away from one and zero."""
    stock = nn.Sequential(*CHAINS[name]()).to(dtype)
    for layer in stock.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.uniform_(layer.bias, -1, 1)
    return FusedSequential(*copy.deepcopy(stock)), stock


def images(dtype: torch.dtype = torch.float64, batch: int = 3) -> Tensor:
    return torch.randn(batch, 6, 9, 8, dtype=dtype) * 2 + 0.5


def gradients(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = module(x)
    output.backward(grad)
    parameters = [parameter.grad for parameter in module.parameters()]
    return output.detach(), x.grad, *parameters


def grad_like(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.randn_like(copy.deepcopy(module)(x))
