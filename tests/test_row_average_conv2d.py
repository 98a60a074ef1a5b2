"""The convolution of averaged rows agrees with avg_pool2d followed by conv2d, forward and backward."""

from __future__ import annotations

import itertools

import profiles  # noqa: F401 (loads the hypothesis profile)
import pytest
import torch
from cases import INDEPENDENT_VALUES
from cases import ROW_AVERAGE_CONV2D_FACTORS as FACTORS
from cases import row_average_conv2d as build
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_exact, assert_same_bits
from operators import ROW_AVERAGE_CONV2D, check, check_backward, check_forward
from samples import (
    CHANNELS,
    DTYPES,
    LAYOUTS,
    identify,
    integers,
    normals,
    pairwise,
    uninitialized_memory_is_nan,  # noqa: F401 (an autouse fixture)
)


@pytest.mark.parametrize("case", pairwise(FACTORS, seed=0), ids=identify)
def test_results_are_exact_where_sums_are_exact(case, capability):
    check(ROW_AVERAGE_CONV2D, *build(integers, **case), exact=True)


@pytest.mark.parametrize("case", pairwise(FACTORS | INDEPENDENT_VALUES, seed=1), ids=identify)
def test_results_are_as_accurate_as_stock(case, capability):
    check(ROW_AVERAGE_CONV2D, *build(normals, **case))


@pytest.mark.parametrize("channels", CHANNELS)
def test_any_number_of_channels_works(channels, capability):
    for layout in ("contiguous", "channels_last"):
        for counts in ({"in_channels": channels}, {"out_channels": channels}):
            check(ROW_AVERAGE_CONV2D, *build(**counts, layout=layout, grad_layout=layout), exact=True)


@pytest.mark.parametrize(
    "pixels", [n + d for n in (6, 12, 14, 28, 48, 96, 112, 192, 256) for d in (-1, 0, 1)]
)
def test_any_number_of_pixels_works(pixels, capability):
    for batch, size in ((1, (1, pixels)), (1, (pixels, 1)), (pixels, (1, 1))):
        check(ROW_AVERAGE_CONV2D, *build(batch=batch, out_channels=35, output_size=size), exact=True)


@pytest.mark.parametrize(
    "factors",
    [
        {
            "in_channels": 3,
            "out_channels": 32,
            "stride": (2, 2),
            "padding": (0, 0),
            "output_size": (74, 74),
            "batch": 1,
        },
        {"in_channels": 3, "out_channels": 32, "output_size": (16, 16), "row_stride": 2, "batch": 8},
        {"in_channels": 1, "out_channels": 64, "kernel": (7, 7), "padding": (3, 3), "output_size": (28, 28)},
        {"in_channels": 128, "out_channels": 160, "output_size": (5, 5)},
        {"in_channels": 3, "out_channels": 8, "kernel": (11, 11), "stride": (4, 4), "output_size": (12, 15)},
        {"in_channels": 2, "out_channels": 5, "output_size": (2, 900)},
    ],
    ids=identify,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_stems_are_as_accurate_as_stock(factors, layout, capability):
    check(ROW_AVERAGE_CONV2D, *build(normals, **factors, layout=layout, grad_layout=layout))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_view_works_as_input_and_as_grad_output(layout, dtype, capability):
    for channels in (3, 18):
        factors = {"dtype": dtype, "in_channels": channels, "out_channels": channels + 2, "row_stride": 2}
        check(ROW_AVERAGE_CONV2D, *build(**factors, layout=layout), exact=True)
        check(ROW_AVERAGE_CONV2D, *build(**factors, layout="channels_last", grad_layout=layout), exact=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_empty_batch_gives_an_empty_output_and_zero_weight_gradients(layout, dtype, capability):
    tensors, config, grad_output = build(batch=0, dtype=dtype, layout=layout)
    check(ROW_AVERAGE_CONV2D, tensors, config, grad_output, exact=True)
    gradients = ROW_AVERAGE_CONV2D.gradients(grad_output, tensors, config)
    for name in ("weight", "bias"):
        assert_exact(gradients[name], torch.zeros_like(tensors[name], dtype=torch.float64), dtype, name)


def test_each_gradient_is_the_same_whichever_others_are_asked_for(capability):
    tensors, config, grad_output = build(normals, out_channels=21)
    every = ROW_AVERAGE_CONV2D.backward(grad_output, tensors, config, [True] * 3)
    for mask in itertools.product([False, True], repeat=3):
        some = ROW_AVERAGE_CONV2D.backward(grad_output, tensors, config, mask)
        for name, wanted, gradient, expected in zip(tensors, mask, some, every, strict=True):
            if wanted:
                assert_same_bits(gradient, expected, f"gradient of {name} with mask {mask}")
            else:
                assert gradient is None, f"gradient of {name} was not asked for in mask {mask}"


@pytest.mark.parametrize("layout", ["channels_last", "expanded"])
def test_weights_may_have_any_strides(layout, capability):
    tensors, config, grad_output = build()
    weight = tensors["weight"]
    channels_last = weight.contiguous(memory_format=torch.channels_last)
    changed = {
        **tensors,
        "weight": channels_last if layout == "channels_last" else weight[:1].expand(weight.shape),
    }
    check(ROW_AVERAGE_CONV2D, changed, config, grad_output, exact=True)


@pytest.mark.parametrize("layout", ["contiguous", "some_channels_last"])
def test_arguments_are_not_modified(layout, capability):
    tensors, config, grad_output = build(normals, layout=layout, grad_layout=layout)
    everything = {**tensors, "grad_output": grad_output}
    before = {name: tensor.clone() for name, tensor in everything.items()}
    ROW_AVERAGE_CONV2D.forward(tensors, config)
    ROW_AVERAGE_CONV2D.gradients(grad_output, tensors, config)
    for name, tensor in everything.items():
        assert_same_bits(tensor, before[name], name)


@given(
    case=st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(DTYPES),
            "batch": st.integers(0, 3),
            "in_channels": st.integers(1, 20),
            "out_channels": st.integers(1, 70),
            "output_size": st.tuples(st.integers(1, 12), st.integers(1, 30)),
            "kernel": st.tuples(st.integers(1, 6), st.integers(1, 6)),
            "stride": st.tuples(st.integers(1, 4), st.integers(1, 4)),
            "padding": st.tuples(st.integers(0, 7), st.integers(0, 7)),
            "dilation": st.tuples(st.integers(1, 3), st.integers(1, 3)),
            "row_stride": st.integers(1, 4),
            "unused_pixels": st.integers(0, 3),
            "layout": st.sampled_from(list(LAYOUTS)),
            "grad_layout": st.sampled_from(list(LAYOUTS)),
            "bias": st.booleans(),
        }
    )
)
def test_any_shape_gives_exact_results(case, capability):
    tensors, config, grad_output = build(integers, **case)
    check_forward(ROW_AVERAGE_CONV2D, tensors, config, exact=True)
    check_backward(ROW_AVERAGE_CONV2D, tensors, config, grad_output, exact=True)
