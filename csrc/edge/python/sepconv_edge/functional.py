"""The functions, with names and defaults of their arguments; what fits is checked in ``_core``."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core

Array: TypeAlias = NDArray[np.generic]
Layout: TypeAlias = Literal["NHWC", "NCHW"]
Pair: TypeAlias = "int | tuple[int, int]"


class SeparableConv2dGradients(NamedTuple):
    """What :func:`separable_conv2d_backward` returns: None for a gradient that was not wanted."""

    input: Array | None
    depthwise_weight: Array | None
    pointwise_weight: Array | None
    depthwise_bias: Array | None
    pointwise_bias: Array | None


class RowAverageConv2dGradients(NamedTuple):
    """What :func:`row_average_conv2d_backward` returns: None for a gradient that was not wanted."""

    input: Array | None
    weight: Array | None
    bias: Array | None


_SEPARABLE = dict(
    zip(
        SeparableConv2dGradients._fields,
        (
            *(_core.GRAD_INPUT, _core.GRAD_DEPTHWISE_WEIGHT, _core.GRAD_POINTWISE_WEIGHT),
            *(_core.GRAD_DEPTHWISE_BIAS, _core.GRAD_POINTWISE_BIAS),
        ),
        strict=True,
    )
)
_DENSE = dict(
    zip(
        RowAverageConv2dGradients._fields,
        (_core.GRAD_INPUT, _core.GRAD_WEIGHT, _core.GRAD_BIAS),
        strict=True,
    )
)


def separable_conv2d(
    input: ArrayLike,
    depthwise_weight: ArrayLike,
    pointwise_weight: ArrayLike,
    depthwise_bias: ArrayLike | None = None,
    pointwise_bias: ArrayLike | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    *,
    layout: Layout = "NHWC",
    threads: int | None = None,
) -> Array:
    """Depthwise separable convolution: a depthwise and a 1x1 convolution in one pass over the input.

    Args:
        input: (N, H, W, C_in), or (N, C_in, H, W) with ``layout='NCHW'``; N may be 0. Arrays that are not
            dense in C order are copied first.
        depthwise_weight: (C_in * m, 1, kh, kw), with a depth multiplier m of at least 1.
        pointwise_weight: (C_out, C_in * m) or (C_out, C_in * m, 1, 1).
        depthwise_bias: (C_in * m,), added before the 1x1 convolution.
        pointwise_bias: (C_out,), added after it.
        stride, padding, dilation: of the depthwise convolution: an int, or (vertical, horizontal).
        layout: of ``input`` and the result.
        threads: how many tasks run at once; None for one on each CPU that this process may use. In a process
            that was forked, one. The result has the same bits for any number.

    Returns:
        (N, H', W', C_out) or (N, C_out, H', W'), of the dtype of ``input``, which all arrays share.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument, what it got and
            what it wanted.

    Example:
        >>> import numpy as np, sepconv_edge
        >>> image = np.ones((2, 15, 15, 8), np.float32)
        >>> depthwise, pointwise = np.ones((8, 1, 3, 3), np.float32), np.ones((16, 8), np.float32)
        >>> sepconv_edge.separable_conv2d(image, depthwise, pointwise, stride=2, padding=1).shape
        (2, 8, 8, 16)
    """
    name = "separable_conv2d"
    return _core.separable_conv2d(
        _array(name, "input", input),
        _array(name, "depthwise_weight", depthwise_weight),
        _array(name, "pointwise_weight", pointwise_weight),
        _optional(name, "depthwise_bias", depthwise_bias),
        _optional(name, "pointwise_bias", pointwise_bias),
        *_window(name, stride, padding, dilation),
        _is_nhwc(name, layout),
        _threads(name, threads),
    )


def separable_conv2d_backward(
    grad_output: ArrayLike,
    input: ArrayLike,
    depthwise_weight: ArrayLike,
    pointwise_weight: ArrayLike,
    depthwise_bias: ArrayLike | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    *,
    layout: Layout = "NHWC",
    wanted: Collection[str] = SeparableConv2dGradients._fields,
    threads: int | None = None,
) -> SeparableConv2dGradients:
    """Gradients of :func:`separable_conv2d`, which recompute the depthwise output: nothing of it was kept.

    Args:
        grad_output: of the shape of the result.
        input, depthwise_weight, pointwise_weight, depthwise_bias, stride, padding, dilation, layout, threads:
            as the function was called. The pointwise bias has no part in any gradient.
        wanted: which gradients to compute, names of fields of the result, at least one.

    Returns:
        The gradients, each of the shape of what it is the gradient of.

    Raises:
        ValueError: as :func:`separable_conv2d`.

    Example:
        >>> import numpy as np, sepconv_edge
        >>> image = np.ones((1, 4, 4, 8))
        >>> weights = np.ones((8, 1, 3, 3)), np.ones((16, 8))
        >>> gradients = sepconv_edge.separable_conv2d_backward(
        ...     np.ones((1, 4, 4, 16)), image, *weights, padding=1, wanted=["input", "pointwise_bias"]
        ... )
        >>> gradients.input.shape, gradients.depthwise_weight, float(gradients.pointwise_bias[0])
        ((1, 4, 4, 8), None, 16.0)
    """
    name = "separable_conv2d_backward"
    gradients = _core.separable_conv2d_backward(
        _array(name, "grad_output", grad_output),
        _array(name, "input", input),
        _array(name, "depthwise_weight", depthwise_weight),
        _array(name, "pointwise_weight", pointwise_weight),
        _optional(name, "depthwise_bias", depthwise_bias),
        *_window(name, stride, padding, dilation),
        _is_nhwc(name, layout),
        _mask(name, wanted, _SEPARABLE),
        _threads(name, threads),
    )
    return SeparableConv2dGradients(*gradients)


def row_average(
    input: ArrayLike, stride: int = 1, *, layout: Layout = "NHWC", threads: int | None = None
) -> Array:
    """The mean of each row with the row above and the row below, of those that exist.

    The preprocessing of Hasan and Dey, "Depthwise Separable Convolutions with Deep Residual Convolutions"
    (arXiv 2411.07544), section 4.3.

    Args:
        input: (N, H, W, C), or (N, C, H, W) with ``layout='NCHW'``.
        stride: distance between the rows that are kept, at least 1.
        layout, threads: as :func:`separable_conv2d` takes them.

    Returns:
        (N, (H - 1) // stride + 1, W, C) or (N, C, (H - 1) // stride + 1, W), of the dtype of ``input``.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument, what it got and
            what it wanted.

    Example:
        >>> import numpy as np, sepconv_edge
        >>> rows = np.array([0.0, 3.0, 9.0, 6.0]).reshape(1, 4, 1, 1)
        >>> sepconv_edge.row_average(rows).ravel().round(6).tolist()
        [1.5, 4.0, 6.0, 7.5]
    """
    name = "row_average"
    return _core.row_average(
        _array(name, "input", input),
        _integer(name, "stride", stride, least=1),
        _is_nhwc(name, layout),
        _threads(name, threads),
    )


def row_average_backward(
    grad_output: ArrayLike,
    height: int,
    stride: int = 1,
    *,
    layout: Layout = "NHWC",
    threads: int | None = None,
) -> Array:
    """The gradient of the input of :func:`row_average`.

    Args:
        grad_output: of the shape of the result.
        height: of the input.
        stride, layout, threads: as the function was called.

    Returns:
        (N, height, W, C) or (N, C, height, W).

    Raises:
        ValueError: as :func:`row_average`.

    Example:
        >>> import numpy as np, sepconv_edge
        >>> sepconv_edge.row_average_backward(np.ones((1, 3, 1, 1)), height=3).ravel().round(4).tolist()
        [0.8333, 1.3333, 0.8333]
    """
    name = "row_average_backward"
    return _core.row_average_backward(
        _array(name, "grad_output", grad_output),
        _integer(name, "height", height, least=1),
        _integer(name, "stride", stride, least=1),
        _is_nhwc(name, layout),
        _threads(name, threads),
    )


def row_average_conv2d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    row_stride: int = 1,
    *,
    layout: Layout = "NHWC",
    threads: int | None = None,
) -> Array:
    """A dense convolution of averaged rows, in one pass over the input: the averaged rows are never stored.

    Args:
        input: (N, H, W, C_in), or (N, C_in, H, W) with ``layout='NCHW'``.
        weight: (C_out, C_in, kh, kw).
        bias: (C_out,).
        stride, padding, dilation: of the convolution; zero padding comes after the average.
        row_stride: the stride of the row average, at least 1.
        layout, threads: as :func:`separable_conv2d` takes them.

    Returns:
        (N, H', W', C_out) or (N, C_out, H', W'), of the dtype of ``input``, which all arrays share.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument, what it got and
            what it wanted.

    The average as part of a convolution is that of Hasan and Dey (arXiv 2411.07544), section 5.2.

    Example:
        >>> import numpy as np, sepconv_edge
        >>> image, weight = np.ones((2, 32, 32, 3), np.float32), np.ones((16, 3, 3, 3), np.float32)
        >>> sepconv_edge.row_average_conv2d(image, weight, padding=1, row_stride=2).shape
        (2, 16, 32, 16)
    """
    name = "row_average_conv2d"
    return _core.row_average_conv2d(
        _array(name, "input", input),
        _array(name, "weight", weight),
        _optional(name, "bias", bias),
        *_window(name, stride, padding, dilation),
        _integer(name, "row_stride", row_stride, least=1),
        _is_nhwc(name, layout),
        _threads(name, threads),
    )


def row_average_conv2d_backward(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    row_stride: int = 1,
    *,
    layout: Layout = "NHWC",
    wanted: Collection[str] = RowAverageConv2dGradients._fields,
    threads: int | None = None,
) -> RowAverageConv2dGradients:
    """Gradients of :func:`row_average_conv2d`.

    Args:
        grad_output: of the shape of the result.
        input, weight, stride, padding, dilation, row_stride, layout, threads: as the function was called.
        wanted: which gradients to compute, names of fields of the result, at least one.

    Returns:
        The gradients, each of the shape of what it is the gradient of.

    Raises:
        ValueError: as :func:`row_average_conv2d`.

    Example:
        >>> import numpy as np, sepconv_edge
        >>> image, weight = np.ones((2, 8, 8, 3)), np.ones((4, 3, 3, 3))
        >>> sepconv_edge.row_average_conv2d_backward(np.ones((2, 6, 6, 4)), image, weight).bias.tolist()
        [72.0, 72.0, 72.0, 72.0]
    """
    name = "row_average_conv2d_backward"
    gradients = _core.row_average_conv2d_backward(
        _array(name, "grad_output", grad_output),
        _array(name, "input", input),
        _array(name, "weight", weight),
        *_window(name, stride, padding, dilation),
        _integer(name, "row_stride", row_stride, least=1),
        _is_nhwc(name, layout),
        _mask(name, wanted, _DENSE),
        _threads(name, threads),
    )
    return RowAverageConv2dGradients(*gradients)


# --- Arguments ---------------------------------------------------------------------------------------------

_MOST_THREADS = 1024
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# OpenMP's threads stay with the parent, and it waits for them in a child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _array(function: str, name: str, value: ArrayLike) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{function}: {name} must be an array: {error}") from error


def _optional(function: str, name: str, value: ArrayLike | None) -> Array | None:
    return None if value is None else _array(function, name, value)


def _integer(function: str, name: str, value: Any, least: int = -(2**31)) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{function}: {name} must be an int, got {value!r}") from None
    if not least <= number < 2**31:
        limit = f"at least {least}" if number < least else "below 2^31"
        raise ValueError(f"{function}: {name} must be {limit}, got {number}")
    return number


def _pair(function: str, name: str, value: Any) -> tuple[int, int]:
    try:
        first, second = value if np.ndim(value) else (value, value)
    except (TypeError, ValueError):
        raise ValueError(f"{function}: {name} must be an int or a pair of them, got {value!r}") from None
    return _integer(function, name, first), _integer(function, name, second)


def _window(function: str, stride: Pair, padding: Pair, dilation: Pair) -> list[tuple[int, int]]:
    named = ("stride", stride), ("padding", padding), ("dilation", dilation)
    return [_pair(function, name, value) for name, value in named]


def _is_nhwc(function: str, layout: Layout) -> bool:
    if layout not in ("NHWC", "NCHW"):
        raise ValueError(f"{function}: layout must be 'NHWC' or 'NCHW', got {layout!r}")
    return layout == "NHWC"


def _threads(function: str, threads: int | None) -> int:
    if _forked:
        return 1  # and the same bits
    if threads is not None:
        return _integer(function, "threads", threads)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(len(cpus), _MOST_THREADS)


def _mask(function: str, wanted: Collection[str], bits: dict[str, int]) -> int:
    try:
        names = {wanted} if isinstance(wanted, str) else set(wanted)
    except TypeError:
        names = set()
    if not names or not names <= set(bits):
        raise ValueError(f"{function}: wanted must be some of {', '.join(bits)}, got {wanted!r}")
    return sum(bits[name] for name in names)
