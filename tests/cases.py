"""What to run: a case is a dict of factors by name, and a build function makes the tensors of it.

Factors are chosen around what kernels divide by: vectors, register tiles, pixel tiles, windows that
hang over the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from operators import ROW_AVERAGE, ROW_AVERAGE_CONV2D, SEPARABLE_CONV2D, Operator, output_shape
from samples import CHANNELS, DTYPES, FEW_INDEPENDENT_LAYOUTS, FEW_LAYOUTS, LAYOUTS, integers
from torch import Tensor, float32

WINDOWS = {
    "output_size": ((1, 1), (2, 3), (5, 13), (7, 7), (14, 14), (1, 29), (33, 2), (12, 17)),
    "kernel": ((1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (2, 5), (7, 3), (4, 6), (9, 9)),
    "stride": ((1, 1), (2, 2), (1, 2), (3, 1), (2, 5)),
    "padding": ((0, 0), (1, 1), (3, 2), (0, 4), (9, 1)),
    "dilation": ((1, 1), (2, 2), (1, 3), (4, 1)),
    "unused_pixels": (0, 1, 2),
}
VIEWS = {"layout": FEW_LAYOUTS, "grad_layout": FEW_LAYOUTS}
SEPARABLE_CONV2D_FACTORS = {
    "dtype": DTYPES,
    "batch": (1, 2, 3),
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "depth_multiplier": (1, 2, 3),
    "biases": ((), ("depthwise_bias",), ("pointwise_bias",), ("depthwise_bias", "pointwise_bias")),
    **WINDOWS,
    **VIEWS,
}
ROW_AVERAGE_FACTORS = {
    "dtype": DTYPES,
    "batch": (1, 2, 3),
    "channels": CHANNELS,
    "height": (1, 2, 3, 4, 5, 6, 7, 9, 16, 33),
    "width": (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100),
    "stride": (1, 2, 3, 4, 7),
    **VIEWS,
}
ROW_AVERAGE_CONV2D_FACTORS = {
    "dtype": DTYPES,
    "batch": (1, 2, 3),
    "in_channels": (1, 3, 4, 7, 8, 16, 17, 33),
    "out_channels": CHANNELS,
    "row_stride": (1, 2, 3),
    "bias": (False, True),
    **WINDOWS,
    **VIEWS,
}
INDEPENDENT_VALUES = dict.fromkeys(VIEWS, FEW_INDEPENDENT_LAYOUTS)
DEFAULTS = {
    "dtype": float32,
    "batch": 2,
    "in_channels": 5,
    "out_channels": 6,
    "depth_multiplier": 1,
    "output_size": (4, 5),
    "kernel": (3, 3),
    "stride": (1, 1),
    "padding": (1, 1),
    "dilation": (1, 1),
    "unused_pixels": 0,
    "row_stride": 1,
    "layout": "contiguous",
    "grad_layout": "contiguous",
    "biases": ("depthwise_bias", "pointwise_bias"),
    "bias": True,
}
# Multiples of 6, so that means of two and of three rows are integers too.
ROW_AVERAGE_UNIT = 6


class Built(NamedTuple):
    tensors: dict[str, Tensor | None]
    config: dict[str, Any]
    grad_output: Tensor


def separable_conv2d(data: Callable[..., Tensor] = integers, **factors: Any) -> Built:
    """A separable convolution; factors not named have the value of DEFAULTS."""
    case = {**DEFAULTS, **factors}
    middle = case["in_channels"] * case["depth_multiplier"]
    shapes = {
        "input": (case["batch"], case["in_channels"], *_input_size(case)),
        "depthwise_weight": (middle, 1, *case["kernel"]),
        "pointwise_weight": (case["out_channels"], middle, 1, 1),
        "depthwise_bias": (middle,) if "depthwise_bias" in case["biases"] else None,
        "pointwise_bias": (case["out_channels"],) if "pointwise_bias" in case["biases"] else None,
    }
    return _build(SEPARABLE_CONV2D, data, case, shapes, ("stride", "padding", "dilation"))


def row_average(data: Callable[..., Tensor] = integers, **factors: Any) -> Built:
    """A row average of (batch, channels, height, width)."""
    case = {**DEFAULTS, "channels": 5, "height": 6, "width": 7, "stride": 1, **factors}
    shapes = {"input": (case["batch"], case["channels"], case["height"], case["width"])}
    return _build(ROW_AVERAGE, data, case, shapes, ("stride",), ROW_AVERAGE_UNIT)


def row_average_conv2d(data: Callable[..., Tensor] = integers, **factors: Any) -> Built:
    """A row average with its convolution; factors not named have the value of DEFAULTS."""
    case = {**DEFAULTS, **factors}
    height, width = _input_size(case)
    height = (height - 1) * case["row_stride"] + 1 + min(case["unused_pixels"], case["row_stride"] - 1)
    shapes = {
        "input": (case["batch"], case["in_channels"], height, width),
        "weight": (case["out_channels"], case["in_channels"], *case["kernel"]),
        "bias": (case["out_channels"],) if case["bias"] else None,
    }
    names = ("stride", "padding", "dilation", "row_stride")
    return _build(ROW_AVERAGE_CONV2D, data, case, shapes, names, ROW_AVERAGE_UNIT)


BUILD = {
    "separable_conv2d": separable_conv2d,
    "row_average": row_average,
    "row_average_conv2d": row_average_conv2d,
}


def _input_size(case: dict[str, Any]) -> list[int]:
    """What `output_size` needs, plus up to `unused_pixels` that no window reaches, and one pixel at least.

    Because of the latter the output of a much padded case can be larger.
    """
    axes = zip(
        *(case[name] for name in ("output_size", "kernel", "stride", "padding", "dilation")), strict=True
    )
    return [
        max(
            1,
            (out - 1) * stride
            + dilation * (kernel - 1)
            + 1
            - 2 * padding
            + min(case["unused_pixels"], stride - 1),
        )
        for out, kernel, stride, padding, dilation in axes
    ]


def _build(
    operator: Operator,
    data: Callable[..., Tensor],
    case: dict[str, Any],
    shapes: dict[str, tuple[int, ...] | None],
    config_names: tuple[str, ...],
    unit: int = 1,
) -> Built:
    config = {name: case[name] for name in config_names}
    tensors = {
        name: None
        if shape is None
        else data(*shape, dtype=case["dtype"], unit=unit if name == "input" else 1, seed=seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    tensors["input"] = LAYOUTS[case["layout"]](tensors["input"])
    size = output_shape(operator, tensors, config)
    grad_output = data(*size, dtype=case["dtype"], unit=unit, seed=len(shapes))
    return Built(tensors, config, LAYOUTS[case["grad_layout"]](grad_output))
