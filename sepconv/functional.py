"""The documented functions: each runs its compiled operator, or the plain-torch reference without one.

The reference serves when the compiled library is missing, for devices and dtypes without kernels (complex
numbers, for example), inside the gradient transforms of ``torch.func`` and under forward-mode automatic
differentiation. Results and gradients mean the same either way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sepconv import _checks, _loader, reference
from sepconv._checks import pair
from sepconv._types import Padding, Pair

__all__ = ["row_average", "row_average_conv2d", "separable_conv2d"]

if _loader.load().loaded:
    from sepconv.ops import has_kernel
else:

    def has_kernel(input: Tensor) -> bool:
        return False


_ops = torch.ops.sepconv


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
    """Depthwise separable convolution: a depthwise and a 1x1 convolution in one pass over the input.

    Equal, up to rounding, to ::

        middle = conv2d(input, depthwise_weight, depthwise_bias, stride, padding, dilation, groups=C_in)
        output = conv2d(middle, pointwise_weight, pointwise_bias)

    but ``middle`` is never stored: it exists a tile at a time, and the backward recomputes it. Saved for the
    backward are the inputs alone. Gradients of any order are supported.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W); N may be 0, strides may be any. float32, float64, bfloat16 or
            float16; the last two accumulate in float32.
        depthwise_weight: (C_in * m, 1, kh, kw), as ``nn.Conv2d(C_in, C_in * m, k, groups=C_in)`` has it,
            with a depth multiplier m of at least 1.
        pointwise_weight: (C_out, C_in * m, 1, 1), as ``nn.Conv2d(C_in * m, C_out, 1)`` has it.
        depthwise_bias: (C_in * m,), added before the 1x1 convolution.
        pointwise_bias: (C_out,), added after it.
        stride: an int, or (vertical, horizontal).
        padding: zeros on each side, an int or (vertical, horizontal); ``'valid'`` for none; ``'same'`` for an
            output as large as the input, which needs a stride of 1 and pads an odd total more at the end.
        dilation: an int, or (vertical, horizontal).

    Returns:
        (N, C_out, H', W') or (C_out, H', W'), in the memory format of ``input`` (channels_last stays so).

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: a shape, dtype, device or number does not fit; the message names the argument, what it
            got and what it wanted.

    The fusion is that of Howard et al., "MobileNets" (arXiv 1704.04861), section 3.1, and Chollet, "Xception"
    (arXiv 1610.02357), which define the layer.

    Example:
        >>> import torch, sepconv
        >>> image = torch.randn(2, 8, 15, 15)
        >>> depthwise, pointwise = torch.randn(8, 1, 3, 3), torch.randn(16, 8, 1, 1)
        >>> sepconv.separable_conv2d(image, depthwise, pointwise, stride=2, padding=1).shape
        torch.Size([2, 16, 8, 8])
    """
    name = "separable_conv2d"
    if is_unbatched(name, input):
        biases = depthwise_bias, pointwise_bias
        batch = input.unsqueeze(0)
        return separable_conv2d(
            batch, depthwise_weight, pointwise_weight, *biases, stride, padding, dilation
        ).squeeze(0)
    if isinstance(padding, str):
        weight = "depthwise_weight", depthwise_weight
        padding, extra = explicit_padding(name, padding, *weight, stride, dilation)
        if any(extra):
            input = F.pad(input, extra)
    arguments = (
        input,
        depthwise_weight,
        pointwise_weight,
        depthwise_bias,
        pointwise_bias,
        pair(stride),
        pair(padding),
        pair(dilation),
    )
    if has_kernel(input):
        return run_operator(_ops.separable_conv2d.default, *arguments)
    if not torch.compiler.is_compiling():
        _check_dtype(name, input)
        _checks.separable_conv2d(name, *arguments)
    return reference.separable_conv2d(*arguments)


def row_average(input: Tensor, stride: int = 1) -> Tensor:
    """The mean of each row with the row above and the row below, of those that exist.

    Equal to ``avg_pool2d(input, (3, 1), (stride, 1), (1, 0), count_include_pad=False)``: the preprocessing of
    Hasan and Dey, "Depthwise Separable Convolutions with Deep Residual Convolutions" (arXiv 2411.07544),
    section 4.3.

    Args:
        input: (N, C, H, W) or (C, H, W); N may be 0, strides may be any. float32, float64, bfloat16 or
            float16.
        stride: distance between the rows that are kept, at least 1.

    Returns:
        (N, C, (H - 1) // stride + 1, W), without N if ``input`` has none, in the memory format of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: a shape, dtype or number does not fit; the message names the argument, what it got and
            what it wanted.

    Example:
        >>> import torch, sepconv
        >>> rows = torch.tensor([[[0.0], [3.0], [9.0], [6.0]]])
        >>> sepconv.row_average(rows).flatten().tolist()
        [1.5, 4.0, 6.0, 7.5]
        >>> sepconv.row_average(rows, stride=2).flatten().tolist()
        [1.5, 6.0]
    """
    name = "row_average"
    if is_unbatched(name, input):
        return row_average(input.unsqueeze(0), stride).squeeze(0)
    if has_kernel(input):
        return run_operator(_ops.row_average.default, input, stride)
    if not torch.compiler.is_compiling():
        _check_dtype(name, input)
        _checks.row_average(name, input, stride)
    return reference.row_average(input, stride)


def row_average_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    row_stride: int = 1,
) -> Tensor:
    """A dense convolution of averaged rows, in one pass over the input.

    Equal, up to rounding, to ::

        conv2d(row_average(input, row_stride), weight, bias, stride, padding, dilation)

    but the averaged rows are never stored. Zero padding comes after the average, as there.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W); N may be 0, strides may be any. float32, float64, bfloat16 or
            float16; the last two accumulate in float32.
        weight: (C_out, C_in, kh, kw).
        bias: (C_out,).
        stride, padding, dilation: those of the convolution, as :func:`separable_conv2d` takes them.
        row_stride: the stride of the row average, at least 1.

    Returns:
        (N, C_out, H', W') or (C_out, H', W'), in the memory format of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: a shape, dtype, device or number does not fit; the message names the argument, what it
            got and what it wanted.

    The average as part of a convolution is that of Hasan and Dey (arXiv 2411.07544), section 5.2.

    Example:
        >>> import torch, sepconv
        >>> image = torch.randn(2, 3, 32, 32)
        >>> sepconv.row_average_conv2d(image, torch.randn(16, 3, 3, 3), padding=1, row_stride=2).shape
        torch.Size([2, 16, 16, 32])
    """
    name = "row_average_conv2d"
    if is_unbatched(name, input):
        input = input.unsqueeze(0)
        return row_average_conv2d(input, weight, bias, stride, padding, dilation, row_stride).squeeze(0)
    if isinstance(padding, str):
        padding, extra = explicit_padding(name, padding, "weight", weight, stride, dilation)
        if any(extra):  # unequal padding of averaged rows is no padding of the input: two steps
            averaged = F.pad(row_average(input, row_stride), extra)
            return F.conv2d(averaged, weight, bias, stride, padding, dilation)
    arguments = (input, weight, bias, pair(stride), pair(padding), pair(dilation), row_stride)
    if has_kernel(input):
        return run_operator(_ops.row_average_conv2d.default, *arguments)
    if not torch.compiler.is_compiling():
        _check_dtype(name, input)
        _checks.row_average_conv2d(name, *arguments)
    return reference.row_average_conv2d(*arguments)


def run_operator(operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call an operator; under ``no_grad`` past its autograd, which is Python and takes its time for nothing.

    Under inference mode the dispatcher does so by itself.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def is_unbatched(function: str, input: Tensor) -> bool:
    if not isinstance(input, Tensor):
        raise TypeError(f"{function}: input must be a Tensor, got {type(input).__name__}")
    dimensions = input.dim()
    if dimensions not in (3, 4):
        raise RuntimeError(
            f"{function}: input must have 4 dimensions (N, C, H, W) or 3 (C, H, W), "
            f"got shape {tuple(input.shape)}"
        )
    return dimensions == 3


def _check_dtype(function: str, input: Tensor) -> None:
    if not (input.is_floating_point() or input.is_complex()):
        raise RuntimeError(f"{function}: input must be floating-point or complex, got {input.dtype}")


def explicit_padding(
    function: str, padding: str, weight_name: str, weight: Tensor, stride: Pair, dilation: Pair
) -> tuple[Pair, tuple[int, int, int, int]]:
    """Numbers for 'valid' and 'same', and what F.pad has to add at the ends: (left, right, top, bottom)."""
    if padding == "valid":
        return 0, (0, 0, 0, 0)
    if padding != "same":
        raise RuntimeError(f"{function}: padding must be numbers, 'same' or 'valid', got {padding!r}")
    if any(step != 1 for step in pair(stride)):
        raise RuntimeError(f"{function}: padding 'same' needs a stride of 1, got {stride}")
    if weight.dim() != 4:
        shape = tuple(weight.shape)
        raise RuntimeError(f"{function}: {weight_name} must have 4 dimensions, got shape {shape}")
    dilation = pair(dilation)
    if len(dilation) != 2:
        raise RuntimeError(f"{function}: dilation must have 2 elements, got {len(dilation)}")
    vertical, horizontal = (step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True))
    return (vertical // 2, horizontal // 2), (0, horizontal % 2, 0, vertical % 2)
