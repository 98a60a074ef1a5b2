"""The tolerances catch wrong results and accept right ones: each helper against seeded mistakes."""

from __future__ import annotations

import itertools

import pytest
import torch
from numerics import (
    assert_as_accurate_as_stock,
    assert_exact,
    assert_near,
    assert_same_bits,
    assert_same_special_values,
)
from samples import DTYPES, LAYOUTS, integers, normals, pairwise
from torch.nn import functional as F

HALF = (torch.bfloat16, torch.float16)


def results(dtype, change=lambda x, w, b: (x, w, b), **options):
    """A convolution with a mistake in `dtype`, the same without, the exact one, and its magnitude."""
    # Cases: enough values for the signed bias, channels and taps enough for sums to matter.
    x = normals(2, 16, 9, 10, dtype=dtype)
    w = normals(8, 16, 3, 3, dtype=dtype, seed=1)
    b = normals(8, dtype=dtype, seed=2)
    xs, ws, bs = x.double(), w.double(), b.double()
    exact, magnitude = F.conv2d(xs, ws, bs, padding=1), F.conv2d(xs.abs(), ws.abs(), bs.abs(), padding=1)
    stock = exact.to(dtype) if dtype in HALF else F.conv2d(x, w, b, padding=1)
    wrong = F.conv2d(*change(xs, ws, bs), **{"padding": 1, **options}).to(dtype)
    return wrong, stock, exact, magnitude


def _without(tensor, *index):
    changed = tensor.clone()
    changed[index] = 0
    return changed


MISTAKES = {
    "last input channel dropped": lambda x, w, b: (x, _without(w, slice(None), -1), b),
    "last output channel dropped": lambda x, w, b: (x, _without(w, -1), _without(b, -1)),
    "last tap dropped": lambda x, w, b: (x, _without(w, ..., -1, -1), b),
    "taps in reverse order": lambda x, w, b: (x, w.flip(-1), b),
    "taps transposed": lambda x, w, b: (x, w.transpose(2, 3), b),
    "bias skipped": lambda x, w, b: (x, w, None),
    "bias of the neighbour": lambda x, w, b: (x, w, b.roll(1)),
    "last column zero": lambda x, w, b: (_without(x, ..., -1), w, b),
    "first row replicated": lambda x, w, b: (F.pad(x, (0, 0, 1, 0), "replicate")[:, :, :-1], w, b),
    "last image missing": lambda x, w, b: (_without(x, -1), w, b),
    "first image repeated": lambda x, w, b: (x[:1].expand(x.shape), w, b),
    "one weight off by a percent": lambda x, w, b: (x, w + 0.01 * w * _one_hot(w), b),
}


def _one_hot(w):
    mask = torch.zeros_like(w)
    mask[3, 5, 1, 1] = 1
    return mask


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_results_are_accepted(dtype):
    assert_as_accurate_as_stock(*results(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_caught(mistake, dtype):
    if mistake == "one weight off by a percent" and dtype in HALF:
        mistake = "last tap dropped"  # a percent is what a half dtype rounds away
    with pytest.raises(AssertionError, match=r"wrong|bias|error|cosine"):
        assert_as_accurate_as_stock(*results(dtype, MISTAKES[mistake]))


def test_one_wrong_element_among_many_is_caught():
    actual, stock, exact, magnitude = results(torch.float32)
    actual[1, 7, 8, 9] += 1e-3
    with pytest.raises(AssertionError, match=r"1 of 1440 elements are wrong.*1439"):
        assert_as_accurate_as_stock(actual, stock, exact, magnitude)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_store_that_truncates_is_caught_by_its_signed_bias(dtype):
    _, stock, exact, magnitude = results(dtype)
    toward_zero = torch.where(stock.double().abs() > exact.abs(), _previous(stock), stock)
    with pytest.raises(AssertionError, match="signed bias"):
        assert_as_accurate_as_stock(toward_zero, stock, exact, magnitude)


def _previous(values):
    """The next representable value toward zero."""
    return (values.view(torch.int16) - 1).view(values.dtype)


def test_accumulation_in_half_precision_is_caught():
    dtype = torch.bfloat16
    x, w = normals(64, 300, dtype=dtype), normals(300, 16, dtype=dtype, seed=1)
    exact, magnitude = x.double() @ w.double(), x.double().abs() @ w.double().abs()
    total = torch.zeros(64, 16, dtype=dtype)
    for k in range(300):
        total = total + x[:, k : k + 1] * w[k]
    with pytest.raises(AssertionError):
        assert_as_accurate_as_stock(total, exact.to(dtype), exact, magnitude)


def test_a_slight_error_everywhere_is_caught_by_the_root_mean_square():
    _, stock, exact, magnitude = results(torch.float32)
    noise = integers(*exact.shape, dtype=torch.float64, seed=9)
    actual = (exact + noise * 3 * torch.finfo(torch.float32).eps * magnitude).float()
    with pytest.raises(AssertionError, match="root mean square"):
        assert_as_accurate_as_stock(actual, stock, exact, magnitude)


def test_a_wrong_direction_is_caught_by_the_cosine(monkeypatch):
    """The cosine stands on its own: with the other measures switched off, it still sees noise."""
    actual, stock, exact, magnitude = results(torch.float32, MISTAKES["last tap dropped"])
    for name in ("_check_elements", "_check_root_mean_square", "_check_signed_bias"):
        monkeypatch.setattr(f"numerics.{name}", lambda values: None)
    with pytest.raises(AssertionError, match="cosine"):
        assert_as_accurate_as_stock(actual, stock, exact, magnitude)
    assert_as_accurate_as_stock(stock, stock, exact, magnitude)


def test_a_factor_is_caught_by_the_signed_bias(monkeypatch):
    """Likewise for the signed bias, which sees a factor that the cosine cannot see."""
    _, stock, exact, magnitude = results(torch.float32)
    for name in ("_check_elements", "_check_root_mean_square"):
        monkeypatch.setattr(f"numerics.{name}", lambda values: None)
    with pytest.raises(AssertionError, match="signed bias"):
        assert_as_accurate_as_stock((exact * (1 + 3e-6)).float(), stock, exact, magnitude)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_misplaced_special_values_are_caught(special):
    actual, stock, exact, magnitude = results(torch.float32)
    exact[0, 1, 2, 3] = stock[0, 1, 2, 3] = special
    with pytest.raises(AssertionError, match=r"misplaced.*\(0, 1, 2, 3\)"):
        assert_as_accurate_as_stock(actual, stock, exact, magnitude)
    with pytest.raises(AssertionError, match="misplaced"):
        assert_same_special_values(actual, exact)
    actual[0, 1, 2, 3] = special
    assert_as_accurate_as_stock(actual, stock, exact, magnitude)


def test_a_result_of_nothing_but_nan_is_not_accepted_for_its_lack_of_errors():
    actual, stock, exact, magnitude = results(torch.float32)
    with pytest.raises(AssertionError, match="NaN misplaced: 1440 of 1440"):
        assert_as_accurate_as_stock(torch.full_like(actual, float("nan")), stock, exact, magnitude)


def test_nan_in_stock_does_not_excuse_an_error():
    actual, stock, exact, magnitude = results(torch.float32)
    stock[0, 0, 0, 0] = float("nan")
    assert_as_accurate_as_stock(actual, stock, exact, magnitude)
    actual[1, 1, 1, 1] += 1
    with pytest.raises(AssertionError, match="1 of 1440"):
        assert_as_accurate_as_stock(actual, stock, exact, magnitude)


def test_shapes_and_dtypes_must_agree():
    actual, stock, exact, magnitude = results(torch.float32)
    with pytest.raises(AssertionError, match="shape"):
        assert_as_accurate_as_stock(actual[:, :-1], stock, exact, magnitude)
    with pytest.raises(AssertionError, match="dtype"):
        assert_as_accurate_as_stock(actual.double(), stock, exact, magnitude)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exactness_means_the_reference_rounded_once(dtype):
    exact = torch.tensor([0.0, 1.0, 257.0, -4097.0, 1 / 3], dtype=torch.float64)
    right = exact.to(dtype)
    assert_exact(right, exact, dtype)
    for index in range(5):
        wrong = right.clone()
        wrong[index] += 16 * torch.finfo(dtype).eps * max(1, abs(exact[index].item()))
        with pytest.raises(AssertionError, match=rf"1 of 5 elements are wrong, the first at \({index},\)"):
            assert_exact(wrong, exact, dtype)
    with pytest.raises(AssertionError, match="5 of 5"):
        assert_exact(torch.full_like(right, float("nan")), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearness_allows_rounding_and_no_wrong_integer(dtype):
    exact = integers(200, unit=6, dtype=torch.float64)
    right = (exact * (1 + torch.finfo(torch.float32 if dtype in HALF else dtype).eps)).to(dtype)
    assert_near(right, exact, exact.abs() + 6, dtype)
    for wrong in (right + 1, right.roll(1), -right, torch.full_like(right, float("nan"))):
        with pytest.raises(AssertionError, match="of 200 elements are wrong"):
            assert_near(wrong, exact, exact.abs() + 6, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_tell_zeros_and_last_places_apart(dtype):
    values = torch.tensor([0.0, 1.0, float("nan")], dtype=dtype)
    assert_same_bits(values.clone(), values)
    for index, other in ((0, -0.0), (1, 1 + torch.finfo(dtype).eps), (2, 0.0)):
        changed = values.clone()
        changed[index] = other
        with pytest.raises(AssertionError, match="bits differ: 1 of 3"):
            assert_same_bits(changed, values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values_and_have_the_strides_they_name(layout):
    values = normals(3, 4, 5, 6)
    view = LAYOUTS[layout](values)
    assert view.shape == values.shape
    if layout.startswith("expanded"):
        assert 0 in view.stride()
    elif layout == "overlapping":
        assert view.stride()[2:] == (1, 1)
        assert torch.equal(view[:, :, :, 0], values[:, :, :, 0])
    else:
        assert torch.equal(view, values)
    strides = {LAYOUTS[name](values).stride() for name in LAYOUTS}
    assert len(strides) >= len(LAYOUTS) - 4, "layouts that differ in their margins only"


def test_pairwise_cases_meet_every_pair():
    factors = {"a": range(5), "b": range(3), "c": range(4), "d": range(2)}
    cases = pairwise(factors)
    for (x, xs), (y, ys) in itertools.combinations(factors.items(), 2):
        assert {(case[x], case[y]) for case in cases} == set(itertools.product(xs, ys))
    assert len(cases) < 30 < 5 * 3 * 4 * 2
    assert cases == pairwise(factors), "the list must be the same in every process"
