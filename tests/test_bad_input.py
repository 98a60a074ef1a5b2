"""Bad input: each function names the argument, what it got and what it wanted, whatever serves the call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import sepconv
from sepconv import functional

FLOAT, DOUBLE = torch.float32, torch.float64


def _good(function: str) -> dict[str, Any]:
    """Arguments of a call that works; (2, 3, 5, 6) in, 4 channels out."""
    tensors: dict[str, dict[str, Any]] = {
        "separable_conv2d": {
            "input": torch.randn(2, 3, 5, 6),
            "depthwise_weight": torch.randn(6, 1, 3, 3),
            "pointwise_weight": torch.randn(4, 6, 1, 1),
            "depthwise_bias": torch.randn(6),
            "pointwise_bias": torch.randn(4),
        },
        "row_average": {"input": torch.randn(2, 3, 5, 6)},
        "row_average_conv2d": {
            "input": torch.randn(2, 3, 5, 6),
            "weight": torch.randn(4, 3, 3, 3),
            "bias": torch.randn(4),
        },
    }
    return tensors[function]


FUNCTIONS = ("separable_conv2d", "row_average", "row_average_conv2d")
every_function = pytest.mark.parametrize("function", FUNCTIONS)
Case = tuple[str, dict[str, Any], str]


def _image_cases(function: str) -> Iterator[Case]:
    for shape in ((5, 6), (6,), (), (1, 2, 3, 5, 6)):
        listed = re.escape(str(shape))
        message = rf"input must have 4 dimensions \(N, C, H, W\) or 3 \(C, H, W\), got shape {listed}"
        yield function, {"input": torch.randn(shape)}, message
    for shape in ((2, 0, 5, 6), (2, 3, 0, 6), (2, 3, 5, 0), (0, 0, 5, 6)):
        listed = re.escape(str(shape))
        message = f"input must have at least one channel, row and column, got shape {listed}"
        yield function, {"input": torch.randn(shape)}, message


def _window_cases(function: str) -> Iterator[Case]:
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        for values in ([], [1], [1, 1, 1]):
            yield function, {name: values}, f"{name} must have 2 elements, got {len(values)}"
        for value in (least - 1, -3, 2**31):
            listed = re.escape(f"({value}, {value})")
            yield function, {name: value}, f"{name} must be between {least} and 2147483647, got {listed}"
        yield (
            function,
            {name: (2, least - 1)},
            rf"{name} must be between {least} and \d+, got \(2, {least - 1}\)",
        )
    too_large = "the dilated kernel must not be larger than the padded input, got input"
    yield (
        function,
        {"dilation": 4},
        rf"{too_large} \(5, 6\), kernel \(3, 3\), padding \(0, 0\), dilation \(4, 4\)",
    )
    yield function, {"input": torch.randn(2, 3, 2, 6)}, rf"{too_large} \(2, 6\)"
    yield function, {"padding": "full"}, "padding must be numbers, 'same' or 'valid', got 'full'"
    yield function, {"padding": "same", "stride": 2}, "padding 'same' needs a stride of 1, got 2"
    yield function, {"padding": "same", "dilation": [1]}, "dilation must have 2 elements, got 1"


def _weight_cases() -> Iterator[Case]:
    name = "separable_conv2d"
    depthwise = r"depthwise_weight must have shape \(C_in \* multiplier, 1, kh, kw\) with C_in = 3, got"
    for shape in ((4, 1, 3, 3), (0, 1, 3, 3), (6, 2, 3, 3)):
        listed = re.escape(str(shape))
        yield name, {"depthwise_weight": torch.randn(shape)}, f"{depthwise} {listed}"
    yield (
        name,
        {"depthwise_weight": torch.randn(6, 3, 3)},
        r"depthwise_weight must have 4 dimensions .*\(6, 3, 3\)",
    )
    yield (
        name,
        {"depthwise_weight": torch.randn(6, 3, 3), "padding": "same"},
        "depthwise_weight must have 4 dim",
    )
    yield name, {"depthwise_weight": torch.randn(6, 1, 0, 3)}, r"kernel size must be at least 1, got \(0, 3\)"
    for shape in ((4, 5, 1, 1), (4, 6, 1, 2), (4, 6, 3, 3)):
        listed = re.escape(str(shape))
        message = rf"pointwise_weight must have shape \(4, 6, 1, 1\), got {listed}"
        yield name, {"pointwise_weight": torch.randn(shape)}, message
    yield name, {"pointwise_weight": torch.randn(4, 6)}, r"pointwise_weight must have 4 dimensions .*\(4, 6\)"
    at_least_one = "pointwise_weight must have at least one output channel"
    yield name, {"pointwise_weight": torch.randn(0, 6, 1, 1)}, at_least_one
    yield name, {"depthwise_bias": torch.randn(3)}, r"depthwise_bias must have shape \(6,\), got \(3,\)"
    yield name, {"depthwise_bias": torch.randn(6, 1)}, r"depthwise_bias must have shape \(6,\), got \(6, 1\)"
    yield name, {"pointwise_bias": torch.randn(1)}, r"pointwise_bias must have shape \(4,\), got \(1,\)"

    name = "row_average_conv2d"
    weight = r"weight must have shape \(C_out, C_in, kh, kw\) with C_in = 3, got"
    for shape in ((4, 2, 3, 3), (0, 3, 3, 3), (4, 1, 3, 3)):
        listed = re.escape(str(shape))
        yield name, {"weight": torch.randn(shape)}, f"{weight} {listed}"
    yield name, {"weight": torch.randn(4, 3, 3)}, r"weight must have 4 dimensions .*\(4, 3, 3\)"
    yield name, {"weight": torch.randn(4, 3, 3, 0)}, r"kernel size must be at least 1, got \(3, 0\)"
    yield name, {"bias": torch.randn(5)}, r"bias must have shape \(4,\), got \(5,\)"
    for stride in (0, -1):
        yield name, {"row_stride": stride}, f"row_stride must be at least 1, got {stride}"
        yield "row_average", {"stride": stride}, f"stride must be at least 1, got {stride}"


def _dtype_cases() -> Iterator[Case]:
    for function in FUNCTIONS:
        for name, tensor in _good(function).items():
            if name != "input":
                yield function, {name: tensor.to(DOUBLE)}, f"{name} must have the dtype of input"
                yield function, {name: tensor.long()}, f"{name} must have the dtype of input"


CASES: list[Case] = [
    *(case for function in FUNCTIONS for case in _image_cases(function)),
    *(case for function in ("separable_conv2d", "row_average_conv2d") for case in _window_cases(function)),
    *_weight_cases(),
    *_dtype_cases(),
]


def _identify(case: Case) -> str:
    function, changes, _ = case
    described = (tuple(v.shape) if isinstance(v, Tensor) else v for v in changes.values())
    dtypes = (str(v.dtype)[6:] for v in changes.values() if isinstance(v, Tensor) and v.dtype != FLOAT)
    return "-".join([function, *map(str, changes), *map(str, described), *dtypes])


@pytest.mark.parametrize("served_by", ["kernel", "fake_kernel", "reference"])
@pytest.mark.parametrize("case", CASES, ids=_identify)
def test_the_message_names_the_argument_and_what_it_got_and_wanted(case, served_by, monkeypatch):
    function, changes, message = case
    arguments = {**_good(function), **changes}
    mode = nullcontext()
    if served_by == "reference":
        monkeypatch.setattr(functional, "has_kernel", lambda input: False)
    elif served_by == "fake_kernel":
        mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, pytest.raises(RuntimeError, match=f"^{function}: {message}"):
        getattr(sepconv, function)(**arguments)


@every_function
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool], ids=str)
def test_integers_are_refused(dtype, function):
    arguments = {name: tensor.to(dtype) for name, tensor in _good(function).items()}
    wanted = f"{function}: input must be floating-point or complex, got {dtype}"
    with pytest.raises(RuntimeError, match=wanted):
        getattr(sepconv, function)(**arguments)
    operator = getattr(torch.ops.sepconv, function)
    wanted = f"{function}: input must be float32, float64, bfloat16 or float16, got"
    with pytest.raises(RuntimeError, match=wanted):
        operator(**arguments)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match=wanted):
        operator(**arguments)


@every_function
@pytest.mark.parametrize("value", [None, 3, [[1.0]], "image"], ids=str)
def test_an_input_that_is_no_tensor_is_refused(value, function):
    arguments = {**_good(function), "input": value}
    with pytest.raises(TypeError, match=f"{function}: input must be a Tensor, got {type(value).__name__}"):
        getattr(sepconv, function)(**arguments)


@pytest.mark.parametrize("function", ["separable_conv2d", "row_average_conv2d"])
def test_mixed_devices_are_refused(function):
    good = _good(function)
    for name in good:
        arguments = {**good, name: good[name].to("meta")}
        with pytest.raises(RuntimeError, match="device"):
            getattr(sepconv, function)(**arguments)


@every_function
def test_sizes_that_cannot_be_counted_are_refused(function):
    huge = torch.zeros(1).expand(2**31, 3, 2**15, 2**14)  # 3 * 2^60 elements can be counted, bytes cannot
    with pytest.raises(RuntimeError, match=f"{function}: output .*more than 2\\^63 bytes"):
        getattr(sepconv, function)(**{**_good(function), "input": huge})


@every_function
def test_too_much_memory_is_an_error_of_the_allocator(function):
    huge = torch.zeros(1).expand(2**15, 3, 2**15, 2**15)
    with pytest.raises(RuntimeError, match="memory"):
        getattr(sepconv, function)(**{**_good(function), "input": huge})


# --- What looks odd and is not bad ----------------------------------------------------------------


@every_function
def test_an_empty_batch_gives_an_empty_batch_and_zero_weight_gradients(function):
    arguments = {name: tensor.requires_grad_() for name, tensor in _good(function).items()}
    arguments["input"] = torch.randn(0, 3, 5, 6, requires_grad=True)
    output = getattr(sepconv, function)(**arguments)
    assert output.shape == getattr(sepconv.reference, function)(**arguments).shape
    output.sum().backward()
    for name, tensor in arguments.items():
        assert torch.equal(tensor.grad, torch.zeros_like(tensor)), name


@every_function
def test_expanded_inputs_and_weights_are_read_as_stock_reads_them(function):
    arguments = {
        name: torch.randn((1,) * tensor.dim()).expand(tensor.shape)
        for name, tensor in _good(function).items()
    }
    actual = getattr(sepconv, function)(**arguments)
    torch.testing.assert_close(actual, getattr(sepconv.reference, function)(**arguments))


@every_function
def test_unbatched_input_is_a_batch_of_one(function):
    arguments = _good(function)
    batch = arguments["input"][:1]
    expected = getattr(sepconv, function)(**{**arguments, "input": batch})[0]
    actual = getattr(sepconv, function)(**{**arguments, "input": batch[0]})
    assert torch.equal(actual, expected)


def test_padding_may_exceed_the_kernel():
    arguments = _good("separable_conv2d")
    actual = sepconv.separable_conv2d(**arguments, padding=5)
    padded = torch.nn.functional.pad(arguments.pop("input"), (5, 5, 5, 5))
    torch.testing.assert_close(actual, sepconv.reference.separable_conv2d(padded, **arguments))


# --- Backward operators ---------------------------------------------------------------------------

WINDOW = ([1, 1], [0, 0], [1, 1])
BACKWARDS: list[tuple[str, Callable[[], tuple[Any, ...]], str]] = [
    *(
        (
            "separable_conv2d_backward",
            lambda length=length: (
                torch.randn(2, 4, 3, 4),
                *list(_good("separable_conv2d").values())[:4],
                *WINDOW,
                [True] * length,
            ),
            f"output_mask must have 5 elements, got {length}",
        )
        for length in (0, 4, 6)
    ),
    (
        "separable_conv2d_backward",
        lambda: (torch.randn(2, 4, 5, 6), *list(_good("separable_conv2d").values())[:4], *WINDOW, [True] * 5),
        r"grad_output must have shape \(2, 4, 3, 4\), got \(2, 4, 5, 6\)",
    ),
    (
        "separable_conv2d_backward",
        lambda: (
            torch.randn(2, 4, 3, 4, dtype=DOUBLE),
            *list(_good("separable_conv2d").values())[:4],
            *WINDOW,
            [True] * 5,
        ),
        "grad_output must have the dtype of input",
    ),
    (
        "separable_conv2d_backward",
        lambda: (
            torch.randn(2, 4, 3, 4),
            *list(_good("separable_conv2d").values())[:4],
            [1, 1],
            [],
            [1, 1],
            [True] * 5,
        ),
        "padding must have 2 elements, got 0",
    ),
    (
        "row_average_conv2d_backward",
        lambda: (
            torch.randn(2, 4, 3, 4),
            *list(_good("row_average_conv2d").values())[:2],
            *WINDOW,
            1,
            [True],
        ),
        "output_mask must have 3 elements, got 1",
    ),
    (
        "row_average_conv2d_backward",
        lambda: (
            torch.randn(1, 4, 3, 4),
            *list(_good("row_average_conv2d").values())[:2],
            *WINDOW,
            1,
            [True] * 3,
        ),
        r"grad_output must have shape \(2, 4, 3, 4\), got \(1, 4, 3, 4\)",
    ),
    (
        "row_average_backward",
        lambda: (torch.randn(2, 3, 5, 6), 5, 2),
        "grad_output must have 3 rows for height 5",
    ),
    ("row_average_backward", lambda: (torch.randn(2, 3, 5, 6), 5, 0), "stride must be at least 1, got 0"),
    ("row_average_backward", lambda: (torch.randn(2, 3, 1, 6), 0, 1), "height must be at least 1, got 0"),
    (
        "row_average_backward",
        lambda: (torch.randn(3, 5, 6), 5, 1),
        r"grad_output must have 4 dimensions \(N, C, H, W\), got shape \(3, 5, 6\)",
    ),
]


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake_kernel"])
@pytest.mark.parametrize("case", BACKWARDS, ids=lambda case: f"{case[0]}-{case[2]}")
def test_backward_operators_check_too(case, fake):
    name, make, message = case
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    arguments = make()
    with mode, pytest.raises(RuntimeError, match=f"^{name}: {message}"):
        getattr(torch.ops.sepconv, name)(*arguments)


def test_an_unknown_cpu_capability_is_refused():
    with pytest.raises(RuntimeError, match=r"set_cpu_capability: name must be one of .*, got 'sse2'"):
        torch.ops.sepconv.set_cpu_capability("sse2")


# --- Layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sepconv.SeparableConv2d(0, 4, 3), "in_channels must be at least 1, got 0"),
        (lambda: sepconv.SeparableConv2d(4, 0, 3), "out_channels must be at least 1, got 0"),
        (
            lambda: sepconv.SeparableConv2d(4, 4, 3, depth_multiplier=0),
            "depth_multiplier must be at least 1, got 0",
        ),
        (lambda: sepconv.SeparableConv2d(4, 4, 3, padding="full"), "padding"),
        (lambda: sepconv.SeparableConv2d(4, 4, 3, padding_mode="mirror"), "padding_mode"),
        (
            lambda: sepconv.SeparableConv2d(4, 4, 3, padding="same", stride=2),
            "padding='same' is not supported",
        ),
        (lambda: sepconv.RowAverage(0), "RowAverage: stride must be at least 1, got 0"),
        (lambda: sepconv.RowAverageConv2d(3, 4, 3, row_stride=0), "row_stride must be at least 1, got 0"),
    ],
)
def test_layers_refuse_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_pass_on_what_the_functions_say():
    with pytest.raises(RuntimeError, match=r"separable_conv2d: depthwise_weight .* C_in = 5"):
        sepconv.SeparableConv2d(4, 4, 3)(torch.randn(1, 5, 8, 8))
