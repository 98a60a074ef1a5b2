"""The functions in plain NumPy and float64, images NCHW: what the results are compared with.

Their bounds are the same sums of absolute values; rounding errors are in proportion to these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pair = tuple[int, int]


def windows(x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Array:
    """(N, C, H', W', kh, kw): the values under each window."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    every = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(2, 3))
    return every[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def row_average(x: Array, stride: int) -> Array:
    height = x.shape[2]
    rows = [x[:, :, max(0, r - 1) : r + 2].mean(axis=2) for r in range(0, height, stride)]
    return np.stack(rows, axis=2)


def separable_conv2d(
    x: Array,
    depthwise: Array,
    pointwise: Array,
    depthwise_bias: Array,
    pointwise_bias: Array,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Array:
    channels, (n, _, *kernel) = x.shape[1], depthwise.shape
    under = windows(x, tuple(kernel), stride, padding, dilation)
    taps = depthwise.reshape(channels, n // channels, *kernel)
    middle = np.einsum("nchwij,cmij->ncmhw", under, taps)
    middle = middle.reshape(len(x), n, *middle.shape[3:]) + depthwise_bias[:, None, None]
    return np.einsum("nchw,oc->nohw", middle, pointwise) + pointwise_bias[:, None, None]


def row_average_conv2d(
    x: Array, weight: Array, bias: Array, stride: Pair, padding: Pair, dilation: Pair, row_stride: int
) -> Array:
    under = windows(row_average(x, row_stride), weight.shape[2:], stride, padding, dilation)
    return np.einsum("nchwij,ocij->nohw", under, weight) + bias[:, None, None]
