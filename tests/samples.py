"""What tests feed to the operators: data, memory layouts, and few cases that meet every pair of factors."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Around one and two vectors of every ISA and dtype (4 to 16 lanes), and no multiple of anything.
CHANNELS = (1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 100)
NAN = float("nan")
CUDA_ROUNDS_TWICE = pytest.mark.skipif(
    os.environ.get("SEPCONV_TEST_KERNELS") == "cuda_host",
    reason="on CUDA the depthwise result is rounded to its dtype, as stock's is",
)


def integers(*shape: int, dtype: torch.dtype = torch.float32, unit: int = 1, seed: int = 0) -> Tensor:
    """-unit, 0 and unit: their sums of products are exact in every dtype, to be compared by bits."""
    values = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed))
    return (values * unit).to(dtype)


def normals(*shape: int, dtype: torch.dtype = torch.float32, unit: int = 1, seed: int = 0) -> Tensor:
    """Normally distributed values."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * unit).to(dtype)


# ------------------------------------------------------------------------------------------------------------
# Memory layouts. Each function returns a tensor of the same shape; storage outside of it is NaN, so that a
# kernel that reads a value which is not the tensor's shows.
# ------------------------------------------------------------------------------------------------------------


def _inside(
    values: Tensor, order: Sequence[int], before: Sequence[int], after: Sequence[int], step: Sequence[int]
):
    """`values` stored with its axes in `order`, within margins and with steps (by stored axis)."""
    stored = values.permute(*order)
    shape = [b + n * s + a for n, b, a, s in zip(stored.shape, before, after, step, strict=True)]
    buffer = values.new_full(shape, NAN)
    view = buffer[tuple(slice(b, b + n * s, s) for n, b, s in zip(stored.shape, before, step, strict=True))]
    view.copy_(stored)
    return view.permute(*sorted(range(4), key=lambda axis: order[axis]))


_NCHW, _NHWC = (0, 1, 2, 3), (0, 2, 3, 1)


def _unaligned(values: Tensor, order: Sequence[int]) -> Tensor:
    stored = values.permute(*order)
    buffer = values.new_full((stored.numel() + 2,), NAN)
    view = buffer[1:-1].view(stored.shape)
    view.copy_(stored)
    return view.permute(*sorted(range(4), key=lambda axis: order[axis]))


def _overlapping(values: Tensor) -> Tensor:
    """Rows and columns share storage: element (n, c, h, w) is element (n, c, h + 1, w - 1)."""
    n, c, h, w = values.shape
    buffer = values.new_full((n, c, h + w), NAN)
    buffer[..., : h + w - 1] = torch.cat((values[..., 0], values[:, :, -1, 1:]), 2) if values.numel() else 0
    return buffer.as_strided((n, c, h, w), (c * (h + w), h + w, 1, 1))


LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: _inside(x, _NCHW, (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)),
    "channels_last": lambda x: _inside(x, _NHWC, (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)),
    "cropped": lambda x: _inside(x, _NCHW, (0, 0, 2, 1), (0, 0, 1, 2), (1, 1, 1, 1)),
    "cropped_channels_last": lambda x: _inside(x, _NHWC, (1, 2, 1, 0), (0, 1, 2, 0), (1, 1, 1, 1)),
    "some_channels": lambda x: _inside(x, _NCHW, (0, 2, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1)),
    "some_channels_last": lambda x: _inside(x, _NHWC, (0, 0, 0, 3), (0, 0, 0, 2), (1, 1, 1, 1)),
    "every_second_channel": lambda x: _inside(x, _NHWC, (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 2)),
    "every_second_pixel": lambda x: _inside(x, _NCHW, (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 2, 3)),
    "every_second_pixel_last": lambda x: _inside(x, _NHWC, (0, 0, 0, 0), (0, 0, 0, 0), (2, 2, 3, 1)),
    "transposed": lambda x: _inside(x, (0, 1, 3, 2), (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)),
    "transposed_channels_last": lambda x: _inside(x, (0, 3, 2, 1), (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)),
    "batch_innermost": lambda x: _inside(x, (1, 2, 3, 0), (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)),
    "unaligned": lambda x: _unaligned(x, _NCHW),
    "unaligned_channels_last": lambda x: _unaligned(x, _NHWC),
    "expanded_batch": lambda x: x[:1].clone().expand(x.shape) if len(x) else x,
    "expanded_channels": lambda x: x[:, :1].clone().expand(x.shape),
    "expanded_rows": lambda x: x[:, :, :1].clone().expand(x.shape),
    "expanded_columns_last": lambda x: (
        x[..., :1].contiguous(memory_format=torch.channels_last).expand(x.shape)
    ),
    "expanded_everywhere": lambda x: x[:1, :1, :1, :1].clone().expand(x.shape) if len(x) else x,
    "overlapping": _overlapping,
}

# A few of each kind, for sweeps over other factors as well.
FEW_LAYOUTS = (
    "contiguous",
    "channels_last",
    "cropped",
    "some_channels_last",
    "every_second_channel",
    "every_second_pixel",
    "transposed",
    "batch_innermost",
    "unaligned_channels_last",
    "expanded_batch",
    "overlapping",
)
# Layouts whose elements are independent values: rounding errors of their sums are random (see numerics.py).
FEW_INDEPENDENT_LAYOUTS = tuple(
    name for name in FEW_LAYOUTS if not name.startswith(("expanded", "overlapping"))
)


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan() -> Iterator[None]:
    """What a kernel forgets to write is NaN: for every test of a module that imports this."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


# ------------------------------------------------------------------------------------------------------------
# Pairwise sweeps
# ------------------------------------------------------------------------------------------------------------


def pairwise(factors: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Cases in which every pair of values of two different factors occurs, many times fewer than the product.

    Greedy: each case starts from one missing pair and takes, factor by factor, the value that meets most of
    the missing pairs, ties broken by a seeded generator. The list is the same in every process.
    """
    generator = random.Random(seed)
    names = list(factors)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(len(factors[names[a]]))
        for j in range(len(factors[names[b]]))
    }
    cases = []
    while missing:
        chosen = dict(min(missing))
        others = [axis for axis in range(len(names)) if axis not in chosen]
        generator.shuffle(others)
        for axis in others:
            scores = [
                (
                    sum(tuple(sorted(((axis, value), pick))) in missing for pick in chosen.items()),
                    generator.random(),
                    value,
                )
                for value in range(len(factors[names[axis]]))
            ]
            chosen[axis] = max(scores)[2]
        missing -= set(itertools.combinations(sorted(chosen.items()), 2))
        cases.append({name: factors[name][chosen[axis]] for axis, name in enumerate(names)})
    return cases


def identify(case: Mapping[str, Any]) -> str:
    """A short test id that names every factor's value."""
    return "-".join(f"{name}={_short(value)}" for name, value in case.items())


def _short(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "x".join(map(_short, value))
    return str(value).removeprefix("torch.")
