"""sepconv_edge against NumPy in float64: results, gradients, layouts, dtypes, threads, what it refuses."""

from __future__ import annotations

import doctest
import os
import signal
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference
from numpy.typing import NDArray

import sepconv_edge
from sepconv_edge import _core, functional

Array = NDArray[Any]

# In units of the dtype's rounding error times the sum of absolute values, as for the other front ends.
EPSILON = {
    np.dtype(np.float32): 2.0**-24,
    np.dtype(np.float64): 2.0**-53,
    np.dtype(np.float16): 2.0**-11,
    np.dtype(ml_dtypes.bfloat16): 2.0**-8,
}
DTYPES = list(EPSILON)
# n, c_in, multiplier, c_out, h, w, kernel, stride, padding, dilation
SEPARABLE = {
    "3x3": (2, 40, 1, 70, 13, 9, (3, 3), (1, 1), (1, 1), (1, 1)),
    "5x3 strided": (1, 16, 1, 33, 12, 15, (5, 3), (2, 1), (2, 0), (1, 1)),
    "multiplier": (2, 6, 3, 20, 7, 7, (3, 3), (1, 2), (1, 1), (1, 1)),
    "dilation": (1, 24, 1, 16, 11, 10, (3, 3), (1, 1), (2, 2), (2, 2)),
    "1x1 map": (3, 96, 1, 130, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "one channel": (1, 1, 1, 1, 4, 5, (2, 2), (1, 1), (0, 0), (1, 1)),
}
# n, c_in, c_out, h, w, kernel, stride, padding, dilation, row stride
DENSE = {
    "stem": (2, 3, 32, 17, 19, (3, 3), (2, 2), (0, 0), (1, 1), 1),
    "rows": (1, 5, 10, 16, 9, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "dilation": (1, 4, 7, 20, 12, (3, 2), (1, 1), (2, 1), (2, 2), 3),
}
ISAS = os.environ.get("SEPCONV_EDGE_ISAS", sepconv_edge.cpu_capability()).split()


@pytest.fixture(params=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest) -> Any:
    before = sepconv_edge.cpu_capability()
    _core.set_cpu_capability(request.param)
    yield request.param
    _core.set_cpu_capability(before)


def random(seed: int, *shape: int, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def as_layout(x: Array, layout: str) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if layout == "NHWC" else x


def as_nchw(x: Array, layout: str) -> Array:
    return x.transpose(0, 3, 1, 2) if layout == "NHWC" else x


def check(got: Array, exact: Array, bound: Array, terms: int, dtype: Any) -> None:
    dtype = np.dtype(dtype)
    assert got.dtype == dtype
    sums = 2.0**-53 if dtype == np.float64 else 2.0**-24
    allowed = bound * (EPSILON[dtype] + 2 * sums * terms) + 1e-30
    worst = np.max(np.abs(got.astype(np.float64) - exact) / allowed, initial=0)
    assert worst <= 1, f"{worst:.2f} of what rounding allows"


def separable(name: str, dtype: Any) -> tuple[list[Array], dict[str, Any], int]:
    n, c, m, out, h, w, kernel, stride, padding, dilation = SEPARABLE[name]
    shapes = (n, c, h, w), (c * m, 1, *kernel), (out, c * m), (c * m,), (out,)
    arrays = [random(i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    return arrays, window, kernel[0] * kernel[1] + c * m


def dense(name: str, dtype: Any) -> tuple[list[Array], dict[str, Any], int]:
    n, c, out, h, w, kernel, stride, padding, dilation, row_stride = DENSE[name]
    shapes = (n, c, h, w), (out, c, *kernel), (out,)
    arrays = [random(i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]
    window = {"stride": stride, "padding": padding, "dilation": dilation, "row_stride": row_stride}
    return arrays, window, 3 + c * kernel[0] * kernel[1]


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_conv2d(name: str, dtype: Any, layout: str) -> None:
    (x, *weights), window, terms = separable(name, dtype)
    got = sepconv_edge.separable_conv2d(as_layout(x, layout), *weights, **window, layout=layout)
    wide = [array.astype(np.float64) for array in (x, *weights)]
    exact = reference.separable_conv2d(*wide, **window)
    bound = reference.separable_conv2d(*map(np.abs, wide), **window)
    check(as_nchw(got, layout), exact, bound, terms, dtype)
    matrix_as_weight = [weights[0], weights[1][:, :, None, None], *weights[2:]]
    again = sepconv_edge.separable_conv2d(
        as_layout(x, layout), *matrix_as_weight, **window, layout=layout, threads=1
    )
    np.testing.assert_array_equal(again, got)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_row_average_conv2d(name: str, dtype: Any, layout: str) -> None:
    (x, *weights), window, terms = dense(name, dtype)
    got = sepconv_edge.row_average_conv2d(as_layout(x, layout), *weights, **window, layout=layout)
    wide = [array.astype(np.float64) for array in (x, *weights)]
    exact = reference.row_average_conv2d(*wide, **window)
    bound = reference.row_average_conv2d(*map(np.abs, wide), **window)
    check(as_nchw(got, layout), exact, bound, terms, dtype)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_average(dtype: Any, stride: int, layout: str) -> None:
    x = random(0, 2, 5, 6, 11, dtype=dtype)
    got = sepconv_edge.row_average(as_layout(x, layout), stride, layout=layout)
    wide = x.astype(np.float64)
    exact, bound = reference.row_average(wide, stride), reference.row_average(np.abs(wide), stride)
    check(as_nchw(got, layout), exact, bound, 3, dtype)


# --- Gradients: each operator is linear in every argument, so that <g, f(dx)> = <grad_x, dx> for any dx ----


def dot(a: Array, b: Array) -> float:
    return float(np.vdot(a.astype(np.float64), b.astype(np.float64)))


def check_gradients(gradients: Any, arrays: list[Array], g: Array, forward: Any, dtype: Any) -> None:
    """`forward` takes the arrays of `gradients`, in float64."""
    wide = [array.astype(np.float64) for array in arrays]
    base = forward(*wide)
    for i, (name, gradient) in enumerate(zip(gradients._fields, gradients, strict=True)):
        assert gradient.shape == arrays[i].shape and gradient.dtype == np.dtype(dtype), name
        step = random(100 + i, *arrays[i].shape)
        moved = forward(*wide[:i], wide[i] + step, *wide[i + 1 :])
        expected, got = dot(g, moved - base), dot(gradient, step)
        # Errors of single values are independent: they add up like the values' squares do.
        scale = np.linalg.norm(gradient.astype(np.float64)) * np.linalg.norm(step)
        assert abs(got - expected) <= 64 * EPSILON[np.dtype(dtype)] * scale + 1e-12, name


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_conv2d_backward(name: str, dtype: Any, layout: str) -> None:
    (x, *weights), window, _ = separable(name, dtype)
    shape = reference.separable_conv2d(*(a.astype(np.float64) for a in (x, *weights)), **window).shape
    g = random(50, *shape, dtype=dtype)
    gradients = sepconv_edge.separable_conv2d_backward(
        as_layout(g, layout), as_layout(x, layout), *weights[:3], **window, layout=layout
    )
    gradients = gradients._replace(input=np.ascontiguousarray(as_nchw(gradients.input, layout)))
    check_gradients(gradients, [x, *weights], g, lambda *a: reference.separable_conv2d(*a, **window), dtype)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", DENSE)
def test_row_average_conv2d_backward(name: str, dtype: Any, layout: str) -> None:
    (x, *weights), window, _ = dense(name, dtype)
    shape = reference.row_average_conv2d(*(a.astype(np.float64) for a in (x, *weights)), **window).shape
    g = random(50, *shape, dtype=dtype)
    gradients = sepconv_edge.row_average_conv2d_backward(
        as_layout(g, layout), as_layout(x, layout), weights[0], **window, layout=layout
    )
    gradients = gradients._replace(input=np.ascontiguousarray(as_nchw(gradients.input, layout)))
    check_gradients(gradients, [x, *weights], g, lambda *a: reference.row_average_conv2d(*a, **window), dtype)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_row_average_backward(stride: int, layout: str) -> None:
    x = random(0, 2, 5, 6, 11)
    g = random(1, *reference.row_average(x, stride).shape)
    got = sepconv_edge.row_average_backward(as_layout(g, layout), 6, stride, layout=layout)
    assert dot(as_nchw(got, layout), x) == pytest.approx(dot(g, reference.row_average(x, stride)), rel=1e-12)


def test_only_the_gradients_that_are_wanted_are_computed() -> None:
    (x, *weights), window, _ = separable("3x3", np.float32)
    arguments = random(9, 2, 70, 13, 9, dtype=np.float32), x, *weights[:3]
    every = sepconv_edge.separable_conv2d_backward(*arguments, **window, layout="NCHW")
    for name in every._fields:
        one = sepconv_edge.separable_conv2d_backward(*arguments, **window, layout="NCHW", wanted=[name])
        for field, got, expected in zip(every._fields, one, every, strict=True):
            if field == name:
                np.testing.assert_array_equal(got, expected)
            else:
                assert got is None


# --- Manners -----------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    (x, *weights), window, _ = separable("3x3", np.float32)
    g = random(9, 2, 70, 13, 9, dtype=np.float32)
    results = [
        (
            sepconv_edge.separable_conv2d(x, *weights, **window, layout="NCHW", threads=threads),
            *sepconv_edge.separable_conv2d_backward(
                g, x, *weights[:3], **window, layout="NCHW", threads=threads
            ),
        )
        for threads in (1, 2, 3, 8)
    ]
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, expected)


def test_arrays_of_any_strides_are_read() -> None:
    (x, *weights), window, _ = separable("3x3", np.float64)
    expected = sepconv_edge.separable_conv2d(as_layout(x, "NHWC"), *weights, **window)
    wide = np.zeros((2, 26, 9, 40))
    wide[:, ::2] = as_layout(x, "NHWC")
    spread = np.zeros((70, 80))
    spread[:, ::2] = weights[1]
    got = sepconv_edge.separable_conv2d(wide[:, ::2], weights[0], spread[:, ::2], *weights[2:], **window)
    np.testing.assert_array_equal(got, expected)
    reversed_rows = as_layout(x, "NHWC")[:, ::-1]
    np.testing.assert_array_equal(
        sepconv_edge.row_average(reversed_rows), sepconv_edge.row_average(reversed_rows.copy())
    )


def test_an_empty_batch() -> None:
    (x, *weights), window, _ = separable("3x3", np.float32)
    got = sepconv_edge.separable_conv2d(x[:0], *weights, **window, layout="NCHW")
    assert got.shape == (0, 70, 13, 9)
    gradients = sepconv_edge.separable_conv2d_backward(got, x[:0], *weights[:3], **window, layout="NCHW")
    assert gradients.input.shape == (0, 40, 13, 9) and not gradients.pointwise_weight.any()


X, DEPTHWISE, POINTWISE = (np.zeros(shape, np.float32) for shape in ((1, 5, 5, 4), (4, 1, 3, 3), (6, 4)))
WEIGHT = np.zeros((6, 4, 3, 3), np.float32)
REFUSED = {
    "separable_conv2d: input must have 4 dimensions, (N, H, W, C), got shape (5, 5, 4)": (
        "separable_conv2d", (X[0], DEPTHWISE, POINTWISE), {}),
    "separable_conv2d: input must be float32, float64, float16 or bfloat16, got int64": (
        "separable_conv2d", (X.astype(np.int64), DEPTHWISE, POINTWISE), {}),
    "separable_conv2d: input must be float32, float64, float16 or bfloat16, got >f4": (
        "separable_conv2d", (X.astype(">f4"), DEPTHWISE, POINTWISE), {}),
    "separable_conv2d: depthwise_weight must be of dtype float32, got float64": (
        "separable_conv2d", (X, DEPTHWISE.astype(np.float64), POINTWISE), {}),
    "depthwise_weight must have shape (C_in * multiplier, 1, kh, kw) with C_in = 4, got (6, 1, 3, 3)": (
        "separable_conv2d", (X, np.zeros((6, 1, 3, 3), np.float32), POINTWISE), {}),
    "pointwise_weight must have shape (C_out, 4) or (C_out, 4, 1, 1), got (6, 5)": (
        "separable_conv2d", (X, DEPTHWISE, np.zeros((6, 5), np.float32)), {}),
    "depthwise_bias must have shape (4,), got (6,)": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE, np.zeros(6, np.float32)), {}),
    "separable_conv2d: stride must be an int or a pair of them, got (1, 2, 3)": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE), {"stride": (1, 2, 3)}),
    "separable_conv2d: stride must be ": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE), {"stride": 0}),
    "separable_conv2d: stride must be an int, got 1.0": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE), {"stride": 1.0}),
    "separable_conv2d: padding must be below 2^31, got 1180591620717411303424": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE), {"padding": (0, 2**70)}),
    "separable_conv2d: threads must be an int, got '2'": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE), {"threads": "2"}),
    "separable_conv2d: input must be an array: ": (
        "separable_conv2d", ([[1.0], [2.0, 3.0]], DEPTHWISE, POINTWISE), {}),
    "separable_conv2d: layout must be 'NHWC' or 'NCHW', got None": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE), {"layout": None}),
    "layout must be 'NHWC' or 'NCHW', got 'HWC'": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE), {"layout": "HWC"}),
    "separable_conv2d: threads must be between 1 and 1024, got 0": (
        "separable_conv2d", (X, DEPTHWISE, POINTWISE), {"threads": 0}),
    "grad_output must have shape (1, 3, 3, 6), got (1, 3, 3, 5)": (
        "separable_conv2d_backward", (np.zeros((1, 3, 3, 5), np.float32), X, DEPTHWISE, POINTWISE), {}),
    "wanted must be some of input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, got": (
        "separable_conv2d_backward", (np.zeros((1, 3, 3, 6), np.float32), X, DEPTHWISE, POINTWISE),
        {"wanted": []}),
    "pointwise_bias, got [['input']]": (
        "separable_conv2d_backward", (np.zeros((1, 3, 3, 6), np.float32), X, DEPTHWISE, POINTWISE),
        {"wanted": [["input"]]}),
    "row_average: stride must be at least 1, got 0": ("row_average", (X, 0), {}),
    "row_average_backward: height must be an int, got 5.0": ("row_average_backward", (X, 5.0), {}),
    "row_average_backward: grad_output must have shape (1, 3, 5, 4), got (1, 5, 5, 4)": (
        "row_average_backward", (X, 6, 2), {}),
    "row_average_conv2d: weight must have shape (C_out, 4, kh, kw), got (6, 4)": (
        "row_average_conv2d", (X, POINTWISE), {}),
    "row_average_conv2d: row_stride must be at least 1, got 0": (
        "row_average_conv2d", (X, WEIGHT), {"row_stride": 0}),
    "row_average_conv2d_backward: grad_output must have shape (1, 3, 3, 6), got (1, 5, 5, 4)": (
        "row_average_conv2d_backward", (X, X, WEIGHT), {}),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_named(message: str) -> None:
    function, arguments, options = REFUSED[message]
    with pytest.raises(ValueError) as error:
        getattr(sepconv_edge, function)(*arguments, **options)
    assert message in str(error.value) and str(error.value).startswith(function + ": ")


def test_numpys_integers_are_integers() -> None:
    expected = sepconv_edge.separable_conv2d(X, DEPTHWISE, POINTWISE, stride=2, padding=(1, 2))
    for stride, padding in ((np.int64(2), np.array([1, 2])), ([2, np.int8(2)], (np.uint8(1), 2))):
        got = sepconv_edge.separable_conv2d(X, DEPTHWISE, POINTWISE, stride=stride, padding=padding)
        np.testing.assert_array_equal(got, expected)


def test_misaligned_arrays_are_read() -> None:
    x = random(0, 1, 6, 5, 4, dtype=np.float32)
    misaligned = np.frombuffer(b"?" + x.tobytes(), np.float32, x.size, 1).reshape(x.shape)
    assert not misaligned.flags.aligned
    np.testing.assert_array_equal(sepconv_edge.row_average(misaligned), sepconv_edge.row_average(x))


def test_what_no_memory_holds_is_an_error() -> None:
    huge = np.broadcast_to(np.float32(0), (1, 1 << 20, 1 << 20, 32))
    with pytest.raises(MemoryError):
        sepconv_edge.row_average_backward(huge, 1 << 20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_wait_for_threads() -> None:
    expected = sepconv_edge.row_average(random(0, 1, 64, 64, 64), threads=4)
    child = os.fork()
    if child == 0:
        again = sepconv_edge.row_average(random(0, 1, 64, 64, 64), threads=4)
        os._exit(0 if np.array_equal(again, expected) else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="'sse9'"):
        _core.set_cpu_capability("sse9")


def test_examples() -> None:
    failed, ran = doctest.testmod(functional, globs={})
    assert (failed, ran > 10) == (0, True)
