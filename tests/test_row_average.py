"""The 3-row average agrees with avg_pool2d over the rows that exist, forward and backward."""

from __future__ import annotations

import profiles  # noqa: F401 (loads the hypothesis profile)
import pytest
import torch
from cases import INDEPENDENT_VALUES
from cases import ROW_AVERAGE_FACTORS as FACTORS
from cases import row_average as build
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_as_accurate_as_stock, assert_same_bits
from operators import ROW_AVERAGE, check, check_backward, check_forward
from samples import (
    DTYPES,
    LAYOUTS,
    identify,
    integers,
    normals,
    pairwise,
    uninitialized_memory_is_nan,  # noqa: F401 (an autouse fixture)
)


@pytest.mark.parametrize("case", pairwise(FACTORS, seed=0), ids=identify)
def test_results_are_exact_where_means_are_integers(case, capability):
    check(ROW_AVERAGE, *build(integers, **case), exact=True)


@pytest.mark.parametrize("case", pairwise(FACTORS | INDEPENDENT_VALUES, seed=1), ids=identify)
def test_results_are_as_accurate_as_stock(case, capability):
    check(ROW_AVERAGE, *build(normals, **case))


@pytest.mark.parametrize("height", range(1, 13))
def test_every_height_and_stride_is_averaged_over_the_rows_that_exist(height, capability):
    for stride in range(1, height + 2):
        check(ROW_AVERAGE, *build(height=height, width=5, stride=stride), exact=True)


def test_a_mean_is_over_the_rows_that_exist(capability):
    """The definition in numbers, without a reference: the first and last rows have one neighbour each."""
    image = torch.tensor([6.0, 12.0, 24.0, 60.0]).view(1, 1, 4, 1)
    assert torch.ops.sepconv.row_average(image, 1).flatten().tolist() == pytest.approx(
        [9.0, 14.0, 32.0, 42.0]
    )
    assert torch.ops.sepconv.row_average(image, 2).flatten().tolist() == pytest.approx([9.0, 32.0])
    assert torch.ops.sepconv.row_average(image, 4).flatten().tolist() == [9.0]
    grad = torch.tensor([6.0, 12.0, 24.0, 60.0]).view(1, 1, 4, 1)
    assert torch.ops.sepconv.row_average_backward(grad, 4, 1).flatten().tolist() == pytest.approx(
        [7.0, 15.0, 42.0, 38.0]
    )


@pytest.mark.parametrize("stride", [2**31 - 1, 2**31, 2**62, 2**63 - 1])
def test_a_stride_of_any_size_leaves_the_first_average_or_is_rejected(stride, capability):
    """Sums of the stride and the height must not overflow: gradients would come from foreign memory."""
    image = integers(2, 3, 6, 4, unit=6)
    expected = torch.ops.sepconv.row_average_backward(image[:, :, :1], 6, 100)
    try:
        output = torch.ops.sepconv.row_average(image, stride)
        gradient = torch.ops.sepconv.row_average_backward(image[:, :, :1], 6, stride)
    except RuntimeError as error:
        assert stride >= 2**31 and "stride must be" in str(error), error
        return
    assert_same_bits(output, torch.ops.sepconv.row_average(image, 100), "output")
    assert_same_bits(gradient, expected, "gradient")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_view_works_as_input_and_as_grad_output(layout, dtype, capability):
    for channels in (4, 37):
        check(ROW_AVERAGE, *build(dtype=dtype, channels=channels, width=18, layout=layout), exact=True)
        check(ROW_AVERAGE, *build(dtype=dtype, channels=channels, width=18, grad_layout=layout), exact=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_empty_batch_gives_an_empty_output(layout, dtype, capability):
    check(ROW_AVERAGE, *build(batch=0, dtype=dtype, layout=layout), exact=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_long_columns_do_not_drift(stride, capability):
    """A running sum would carry a large value's error to all later rows; each mean has its own three."""
    tensors, config, _ = build(normals, height=400, width=3, stride=stride)
    tensors["input"][:, :, 7] = 1e8
    actual = ROW_AVERAGE.forward(tensors, config)
    stock, exact, magnitude = (
        ROW_AVERAGE.reference(values, **config)[:, :, 10:]
        for values in (tensors["input"], tensors["input"].double(), tensors["input"].double().abs())
    )
    assert_as_accurate_as_stock(actual[:, :, 10:], stock, exact, magnitude)


@pytest.mark.parametrize("layout", ["contiguous", "some_channels_last"])
def test_arguments_are_not_modified(layout, capability):
    tensors, config, grad_output = build(normals, layout=layout, grad_layout=layout)
    before = tensors["input"].clone(), grad_output.clone()
    ROW_AVERAGE.forward(tensors, config)
    ROW_AVERAGE.gradients(grad_output, tensors, config)
    assert_same_bits(tensors["input"], before[0])
    assert_same_bits(grad_output, before[1])


@given(
    case=st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(DTYPES),
            "batch": st.integers(0, 4),
            "channels": st.integers(1, 70),
            "height": st.integers(1, 40),
            "width": st.integers(1, 60),
            "stride": st.integers(1, 50),
            "layout": st.sampled_from(list(LAYOUTS)),
            "grad_layout": st.sampled_from(list(LAYOUTS)),
        }
    )
)
def test_any_shape_gives_exact_results(case, capability):
    tensors, config, grad_output = build(integers, **case)
    check_forward(ROW_AVERAGE, tensors, config, exact=True)
    check_backward(ROW_AVERAGE, tensors, config, grad_output, exact=True)
