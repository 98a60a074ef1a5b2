"""Tolerances: how far a result may lie from the float64 reference, and why.

No figure here is a matter of taste. A result may be as wrong as stock PyTorch's result for the same call,
twice over, or as wrong as a sum in the kernel's compute type can be, whichever is larger:

    |actual - exact| <= max(2 * max|stock - exact|, 4 * eps * sum|x||w|)

`exact` is the reference in float64 and `sum|x||w|`, the *magnitude*, is the same reference applied to
absolute values. bfloat16 and float16 results are accumulated in float32 and rounded once, when they are
stored: `eps` is float32's for them, plus the one rounding. Where the CPU multiplies bfloat16 itself, the
values between the two convolutions are rounded too: stock rounds the same ones, so its error bounds ours.

The bound on sums holds for values that are independent of each other. A sum of many equal values rounds the
same way at each step: compare such data by bits, with integers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STOCK_FACTOR = 2.0
SUM_FACTOR = 4.0
# The root mean square of a sum's rounding errors grows with the square root of its length: it stays far below
# the bound on a single element, so that a result that is everywhere slightly wrong is caught here.
RMS_FACTOR = 1.0
# Errors of round-to-nearest have no sign: their mean is within this many standard errors of zero, ...
BIAS_DEVIATIONS = 6.0
# ... or, where elements share a rounded intermediate, within this part of the root mean square's limit (a
# store that truncates costs about 0.3 of it).
BIAS_FACTOR = 0.15
BIAS_MIN_ELEMENTS = 256

_HALF = (torch.bfloat16, torch.float16)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type a kernel accumulates in."""
    return torch.float32 if dtype in _HALF else dtype


def sum_bound(exact: Tensor, magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """Elementwise bound of a sum in the compute type of `dtype` that is rounded once to `dtype`."""
    compute = torch.finfo(compute_dtype(dtype))
    factor = SUM_FACTOR * (2 if dtype is torch.float64 else 1)  # the float64 reference is rounded itself
    bound = factor * compute.eps * magnitude + compute.smallest_normal
    if dtype in _HALF:
        storage = torch.finfo(dtype)
        bound = bound + storage.eps * (exact.abs() + storage.smallest_normal)
    return bound


def assert_same_form(actual: Tensor, exact: Tensor, dtype: torch.dtype, name: str = "result") -> None:
    """Shape and dtype are right."""
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == dtype, f"{name}: dtype {actual.dtype}, expected {dtype}"


def assert_exact(actual: Tensor, exact: Tensor, dtype: torch.dtype, name: str = "result") -> None:
    """`actual` is the float64 result rounded once: for data whose sums are exact, such as small integers."""
    assert_same_form(actual, exact, dtype, name)
    expected = exact.to(dtype)
    wrong = ~((actual == expected) | (actual.isnan() & expected.isnan()))
    if wrong.any():
        raise AssertionError(f"{name}: {_describe(wrong, actual, expected)}")


def assert_near(
    actual: Tensor, exact: Tensor, magnitude: Tensor, dtype: torch.dtype, name: str = "result"
) -> None:
    """`actual` is within the bound on sums, whatever stock does: for small integers times a rounded 1/3."""
    assert_same_form(actual, exact, dtype, name)
    wrong = ~((actual.double() - exact).abs() <= sum_bound(exact, magnitude, dtype))
    if wrong.any():
        raise AssertionError(f"{name}: {_describe(wrong, actual, exact)}")


def assert_same_bits(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """The two are equal bit by bit, NaN payloads and the sign of zero included."""
    assert_same_form(actual, expected, expected.dtype, name)
    integer = _BITS[actual.element_size()]
    wrong = actual.contiguous().view(integer) != expected.contiguous().view(integer)
    if wrong.any():
        raise AssertionError(f"{name}: bits differ: {_describe(wrong, actual, expected)}")


def assert_same_special_values(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """NaN, +inf, -inf and finite values stand at the same places in both."""
    for kind, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = test(actual) != test(expected)
        if wrong.any():
            raise AssertionError(f"{name}: {kind} misplaced: {_describe(wrong, actual, expected)}")


def assert_as_accurate_as_stock(
    actual: Tensor, stock: Tensor, exact: Tensor, magnitude: Tensor, name: str = "result"
) -> None:
    """`actual` is at most twice as wrong as `stock` (same dtype) or as a rounded sum, in four measures.

    Element by element; in the root mean square; in direction (cosine); and in signed bias, because a kernel
    that truncates where it should round passes the first three and still shifts a network's activations.
    """
    assert_same_form(actual, exact, stock.dtype, name)
    if exact.numel() == 0:
        return
    assert_same_special_values(actual, exact, name)
    finite = exact.isfinite()
    values = _Values(
        stock.dtype, *(values.double()[finite] for values in (actual, stock, exact, magnitude)), name=name
    )
    _check_elements(values)
    _check_root_mean_square(values)
    _check_cosine(values)
    if exact.numel() >= BIAS_MIN_ELEMENTS:
        _check_signed_bias(values)


class _Values(NamedTuple):
    dtype: torch.dtype
    actual: Tensor
    stock: Tensor
    exact: Tensor
    magnitude: Tensor
    name: str

    @property
    def error(self) -> Tensor:
        return self.actual - self.exact

    @property
    def stock_error(self) -> Tensor:
        return self.stock - self.exact

    @property
    def rms_floor(self) -> float:
        return _rms(sum_bound(self.exact, self.magnitude * (RMS_FACTOR / SUM_FACTOR), self.dtype))


def _check_elements(values: _Values) -> None:
    error, stock = values.error.abs(), _max(values.stock_error.abs())
    bound = sum_bound(values.exact, values.magnitude, values.dtype).clamp_min(STOCK_FACTOR * stock)
    wrong = error > bound
    if wrong.any():
        worst = int((error - bound).argmax())
        raise AssertionError(
            f"{values.name}: {int(wrong.sum())} of {error.numel()} elements are wrong; the worst, at flat "
            f"index {worst}: got {values.actual[worst]:.9g}, exact {values.exact[worst]:.9g}, error "
            f"{error[worst]:.3e} above "
            f"{bound[worst]:.3e} (stock's largest {stock:.3e})"
        )


def _check_root_mean_square(values: _Values) -> None:
    error, limit = _rms(values.error), max(STOCK_FACTOR * _rms(values.stock_error), values.rms_floor)
    assert error <= limit, f"{values.name}: root mean square error {error:.3e} above {limit:.3e}"


def _check_cosine(values: _Values) -> None:
    size = _rms(values.exact)
    if size == 0:
        return
    deviation, stock = (
        1 - _cosine(_finite(result), values.exact) for result in (values.actual, values.stock)
    )
    limit = max(STOCK_FACTOR * stock, (values.rms_floor / size) ** 2 + 1e-14)
    assert deviation <= limit, f"{values.name}: 1 - cosine is {deviation:.3e}, above {limit:.3e}"


def _check_signed_bias(values: _Values) -> None:
    sign = values.exact.sign()
    bias, stock = (abs(_finite(error * sign).mean().item()) for error in (values.error, values.stock_error))
    limit = max(
        STOCK_FACTOR * stock,
        BIAS_DEVIATIONS * _rms(values.error) / values.exact.numel() ** 0.5,
        BIAS_FACTOR * values.rms_floor,
    )
    assert bias <= limit, f"{values.name}: signed bias {bias:.3e} above {limit:.3e}"


def _describe(wrong: Tensor, actual: Tensor, expected: Tensor) -> str:
    first = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at {first}: "
        f"got {actual[first].item()!r}, expected {expected[first].item()!r}"
    )


def _finite(values: Tensor) -> Tensor:
    """Where stock itself overflowed or read uninitialised memory, it excuses nothing."""
    return values.nan_to_num(0.0, 0.0, 0.0)


def _max(values: Tensor) -> float:
    return _finite(values).max().item() if values.numel() else 0.0


def _rms(values: Tensor) -> float:
    return _finite(values).square().mean().sqrt().item() if values.numel() else 0.0


def _cosine(a: Tensor, b: Tensor) -> float:
    product = a.norm() * b.norm()
    return (a @ b / product).item() if product > 0 else 1.0
