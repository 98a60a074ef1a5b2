"""What a run may add to plain Adam: augmentation, a schedule of the learning rate, an average of the weights.

Augmentation and schedule are functions of seed, epoch and step and keep no state, so that a resumed run goes
on with the same bits, by however many processes.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

AUGMENTATIONS = ("none", "crop-flip")
SCHEDULES = ("constant", "one-cycle")

CROP_PADDING = 4
# The one cycle: up from lr / 25 for 30 % of the steps, then down to lr / 250,000, both along a cosine.
WARM_UP = 0.3
FIRST_FACTOR = 1 / 25
LAST_FACTOR = FIRST_FACTOR / 1e4


def draw_crops(count: int, seed: int, epoch: int, step: int) -> torch.Tensor:
    """How each of `count` images of a batch is cut out: int64 rows (top, left, flipped or not)."""
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63)
    corners = torch.randint(2 * CROP_PADDING + 1, (count, 2), generator=generator)
    return torch.cat([corners, torch.randint(2, (count, 1), generator=generator)], 1)


def crop_and_flip(images: torch.Tensor, crops: torch.Tensor) -> torch.Tensor:
    """Cuts windows of the images' own size out of images padded by zeros, and mirrors some.

    Args:
        images: uint8 (N, C, H, W).
        crops: as :func:`draw_crops` gives them, a row an image.

    >>> image = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2)
    >>> crop_and_flip(image, torch.tensor([[4, 4, 1]])).tolist()
    [[[[2, 1], [4, 3]]]]
    >>> crop_and_flip(image, torch.tensor([[5, 4, 0]])).tolist()
    [[[[3, 4], [0, 0]]]]
    """
    height, width = images.shape[-2:]
    top, left, flipped = (column[:, None] for column in crops.unbind(1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(flipped.bool(), columns.flip(1), columns)
    padded = F.pad(images, (CROP_PADDING,) * 4)
    number = torch.arange(len(images))[:, None, None]
    # Indices around a slice put what they index first: (N, H, W, C).
    return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def one_cycle(step: int, steps: int) -> float:
    """The factor of the learning rate at `step` of `steps`, from 0; as ``torch.optim``'s ``OneCycleLR``.

    >>> [round(one_cycle(step, 10), 3) for step in (0, 1, 2, 9)]
    [0.04, 0.52, 1.0, 0.0]
    """
    peak = max(WARM_UP * steps - 1, 0.0)
    if step < peak:
        start, end, part = FIRST_FACTOR, 1.0, step / peak
    else:
        start, end, part = 1.0, LAST_FACTOR, (step - peak) / max(steps - 1 - peak, 1.0)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy that follows `model`, buffers included: at each update `decay` of it stays."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
