"""timm's MobileNets, and the same networks as chains for ``sepconv.FusedSequential``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn

from sepconv import FusedSequential

NAMES = ("mobilenetv1_100", "mobilenetv2_100")


def create(name: str, num_classes: int) -> nn.Module:
    """timm's network with fresh weights; ends the program if timm is not installed."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise SystemExit(f"{name} is one of timm's networks: pip install timm ({error})") from error
    return timm.create_model(name, pretrained=False, num_classes=num_classes)


class Skip(FusedSequential):
    """``input + chain(input)``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


def fused(network: nn.Module) -> FusedSequential:
    """`network` as one chain on the same parameters and buffers, under the same names.

    Only residual blocks interrupt it: elsewhere a block's last activation is applied by the next block.
    """
    return FusedSequential(OrderedDict(_layers(network)))


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from timm.layers import BatchNormAct2d, SelectAdaptivePool2d
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

    for name, child in module.named_children():
        if type(child) is BatchNormAct2d:
            yield name, _batch_norm(child)
            if type(child.act) is not nn.Identity:
                yield f"{name}_act", child.act
        elif type(child) in (DepthwiseSeparableConv, InvertedResidual):
            yield name, (Skip if child.has_skip else nn.Sequential)(OrderedDict(_layers(child)))
        elif type(child) is nn.Sequential:
            yield name, nn.Sequential(OrderedDict(_layers(child)))
        elif type(child) in (nn.Conv2d, nn.Linear, SelectAdaptivePool2d):
            yield name, child
        elif type(child) is not nn.Identity:
            raise TypeError(f"{name}: no chain is known for a {type(child).__name__}")


def _batch_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The plain batch norm inside timm's, with its very tensors."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta").train(norm.training)
    plain.weight, plain.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(plain, name, buffer)
    return plain
