"""What a caller may get wrong, in plain Python: for fake kernels and for the reference.

The compiled kernels make the same checks in the same words (csrc/torch/checks.h), so that a call fails alike
when it runs, when it is traced and when the reference serves it. Sizes may be symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Size = Sequence[int]

_LARGEST = 2**31 - 1  # far above any real window, and low enough that sums with any tensor size fit 64 bits


def _listed(values: Size) -> str:
    return str(tuple(values))


def pair(value: int | Size) -> Size:
    """(v, v) for an int, as convolutions in torch read one; anything else as it is."""
    return (value, value) if isinstance(value, (int, torch.SymInt)) else value


def autocasts(input: Tensor) -> bool:
    device = input.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class Checks:
    """Raises RuntimeError("op: argument must be ..., got ...")."""

    def __init__(self, op: str) -> None:
        self.op = op

    def require(self, holds: bool, message: str) -> None:
        # A fact about an unbacked size becomes an assertion of the traced program.
        torch._check(holds, lambda: f"{self.op}: {message}")

    def length(self, name: str, values: Sequence[object], expected: int) -> None:
        self.require(len(values) == expected, f"{name} must have {expected} elements, got {len(values)}")

    def at_least(self, name: str, value: int, least: int) -> None:
        self.require(value >= least, f"{name} must be at least {least}, got {value}")

    def dimensions(self, name: str, tensor: Tensor, meaning: str) -> None:
        self.require(
            tensor.dim() == 4, f"{name} must have 4 dimensions {meaning}, got shape {_listed(tensor.shape)}"
        )

    def image(self, name: str, tensor: Tensor) -> None:
        self.dimensions(name, tensor, "(N, C, H, W)")
        for size in tensor.shape[1:]:  # the batch may be empty
            self.require(
                size > 0,
                f"{name} must have at least one channel, row and column, got shape {_listed(tensor.shape)}",
            )

    def shape(self, name: str, tensor: Tensor, expected: Size) -> None:
        message = f"{name} must have shape {_listed(expected)}, got {_listed(tensor.shape)}"
        self.require(tensor.dim() == len(expected), message)
        for size, wanted in zip(tensor.shape, expected, strict=True):
            self.require(size == wanted, message)

    def vector(self, name: str, tensor: Tensor | None, channels: int) -> None:
        if tensor is not None:
            message = f"{name} must have shape ({channels},), got {_listed(tensor.shape)}"
            self.require(tensor.dim() == 1, message)
            self.require(tensor.shape[0] == channels, message)

    def like_input(self, name: str, tensor: Tensor | None, input: Tensor) -> None:
        if tensor is None:
            return
        if not autocasts(input):  # autocast gives all of them one dtype
            self.same_dtype(name, tensor, input)
        self.same_device(name, tensor, input)

    def same_dtype(self, name: str, tensor: Tensor, first: Tensor, first_name: str = "input") -> None:
        self.require(
            tensor.dtype == first.dtype,
            f"{name} must have the dtype of {first_name}, {first.dtype}, got {tensor.dtype}",
        )

    def same_device(self, name: str, tensor: Tensor, first: Tensor, first_name: str = "input") -> None:
        self.require(
            tensor.device == first.device,
            f"{name} must be on the device of {first_name}, {first.device}, got {tensor.device}",
        )

    def output_size(
        self,
        input: Tensor,
        kernel: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        height: int | None = None,
    ) -> tuple[int, int]:
        """Check a window and return the (height, width) of a convolution's output.

        `height` replaces the input's where rows are averaged with a stride first.
        """
        self.require(
            kernel[0] > 0 and kernel[1] > 0, f"kernel size must be at least 1, got {_listed(kernel)}"
        )
        for name, values, least in (
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        ):
            self.length(name, values, 2)
            for value in values:
                self.require(
                    least <= value <= _LARGEST,
                    f"{name} must be between {least} and {_LARGEST}, got {_listed(values)}",
                )
        sizes = (input.shape[2] if height is None else height, input.shape[3])
        reaches = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padded = [size + 2 * p for size, p in zip(sizes, padding, strict=True)]
        for reach, extent in zip(reaches, padded, strict=True):
            self.require(
                reach < extent,
                "the dilated kernel must not be larger than the padded input, got input "
                f"{_listed(sizes)}, kernel {_listed(kernel)}, padding {_listed(padding)}, "
                f"dilation {_listed(dilation)}",
            )
        rows, columns = ((e - r - 1) // s + 1 for e, r, s in zip(padded, reaches, stride, strict=True))
        return rows, columns


def separable_conv2d(
    op: str,
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: Size,
    padding: Size,
    dilation: Size,
) -> tuple[int, int, int, int]:
    """Check the arguments of a separable convolution and return its output's shape."""
    check = Checks(op)
    check.image("input", input)
    check.like_input("depthwise_weight", depthwise_weight, input)
    check.like_input("pointwise_weight", pointwise_weight, input)
    check.like_input("depthwise_bias", depthwise_bias, input)
    check.like_input("pointwise_bias", pointwise_bias, input)
    check.dimensions("depthwise_weight", depthwise_weight, "(C_in * multiplier, 1, kh, kw)")
    channels = input.shape[1]
    middle, one, *kernel = depthwise_weight.shape
    check.require(
        middle > 0 and middle % channels == 0 and one == 1,
        f"depthwise_weight must have shape (C_in * multiplier, 1, kh, kw) with C_in = {channels}, "
        f"got {_listed(depthwise_weight.shape)}",
    )
    check.vector("depthwise_bias", depthwise_bias, middle)
    check.dimensions("pointwise_weight", pointwise_weight, "(C_out, C_in * multiplier, 1, 1)")
    out_channels = pointwise_weight.shape[0]
    check.require(
        out_channels > 0,
        "pointwise_weight must have at least one output channel, "
        f"got shape {_listed(pointwise_weight.shape)}",
    )
    check.shape("pointwise_weight", pointwise_weight, (out_channels, middle, 1, 1))
    check.vector("pointwise_bias", pointwise_bias, out_channels)
    size = check.output_size(input, kernel, stride, padding, dilation)
    return input.shape[0], out_channels, *size


def pack_separable_conv2d(op: str, depthwise_weight: Tensor, pointwise_weight: Tensor) -> None:
    """Check the weights that are to be packed."""
    check = Checks(op)
    first = depthwise_weight, "depthwise_weight"
    check.same_dtype("pointwise_weight", pointwise_weight, *first)
    check.same_device("pointwise_weight", pointwise_weight, *first)
    check.dimensions("depthwise_weight", depthwise_weight, "(C_in * multiplier, 1, kh, kw)")
    middle, one, height, width = depthwise_weight.shape
    check.require(
        middle > 0 and one == 1 and height > 0 and width > 0,
        "depthwise_weight must have shape (C_in * multiplier, 1, kh, kw), "
        f"got {_listed(depthwise_weight.shape)}",
    )
    check.dimensions("pointwise_weight", pointwise_weight, "(C_out, C_in * multiplier, 1, 1)")
    out_channels = pointwise_weight.shape[0]
    check.at_least("C_out of pointwise_weight", out_channels, 1)
    check.shape("pointwise_weight", pointwise_weight, (out_channels, middle, 1, 1))


def frozen_separable_conv2d(
    op: str,
    input: Tensor,
    packed: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    residual: Tensor | None,
    out_channels: int,
    depth_multiplier: int,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
    activations: Sequence[int],
) -> tuple[int, int, int, int]:
    """Check the arguments of a frozen separable convolution and return its output's shape.

    What the bytes of `packed` hold is for the kernel to see.
    """
    check = Checks(op)
    check.image("input", input)
    check.at_least("out_channels", out_channels, 1)
    check.at_least("depth_multiplier", depth_multiplier, 1)
    check.length("kernel_size", kernel_size, 2)
    rows, columns = check.output_size(input, kernel_size, stride, padding, dilation)
    shape = (input.shape[0], out_channels, rows, columns)
    for name, value in zip(
        ("prologue_activation", "middle_activation", "activation"), activations, strict=True
    ):
        check.require(
            0 <= value <= 3, f"{name} must be 0 (none), 1 (ReLU), 2 (ReLU6) or 3 (hard swish), got {value}"
        )
    given = {"depthwise_bias": depthwise_bias, "pointwise_bias": pointwise_bias, "residual": residual}
    for name, tensor in given.items():
        if tensor is not None:  # nothing casts here under autocast
            check.same_dtype(name, tensor, input)
            check.same_device(name, tensor, input)
    check.vector("depthwise_bias", depthwise_bias, input.shape[1] * depth_multiplier)
    check.vector("pointwise_bias", pointwise_bias, out_channels)
    if residual is not None:
        check.shape("residual", residual, shape)
    check.require(
        packed.dtype == torch.uint8 and packed.dim() == 1,
        "packed must be a tensor that pack_separable_conv2d made, got another one of shape "
        f"{_listed(packed.shape)}",
    )
    check.same_device("packed", packed, input)
    return shape


def row_average(op: str, input: Tensor, stride: int) -> tuple[int, int, int, int]:
    """Check the arguments of a row average and return its output's shape."""
    check = Checks(op)
    check.image("input", input)
    check.at_least("stride", stride, 1)
    batch, channels, height, width = input.shape
    return batch, channels, (height - 1) // stride + 1, width


def row_average_backward(op: str, grad_output: Tensor, height: int, stride: int) -> tuple[int, int, int, int]:
    """Check the arguments of a row average's backward and return the gradient's shape."""
    check = Checks(op)
    check.image("grad_output", grad_output)
    check.at_least("stride", stride, 1)
    check.at_least("height", height, 1)
    rows = (height - 1) // stride + 1
    batch, channels, given, width = grad_output.shape
    check.require(
        given == rows,
        f"grad_output must have {rows} rows for height {height} and stride {stride}, "
        f"got shape {_listed(grad_output.shape)}",
    )
    return batch, channels, height, width


def row_average_conv2d(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    dilation: Size,
    row_stride: int,
) -> tuple[int, int, int, int]:
    """Check the arguments of a convolution of averaged rows and return its output's shape."""
    check = Checks(op)
    check.image("input", input)
    channels = input.shape[1]
    check.like_input("weight", weight, input)
    check.like_input("bias", bias, input)
    check.dimensions("weight", weight, "(C_out, C_in, kh, kw)")
    out_channels, in_channels, *kernel = weight.shape
    check.require(
        out_channels > 0 and in_channels == channels,
        f"weight must have shape (C_out, C_in, kh, kw) with C_in = {channels}, got {_listed(weight.shape)}",
    )
    check.vector("bias", bias, out_channels)
    check.at_least("row_stride", row_stride, 1)
    rows = (input.shape[2] - 1) // row_stride + 1
    size = check.output_size(input, kernel, stride, padding, dilation, rows)
    return input.shape[0], out_channels, *size
