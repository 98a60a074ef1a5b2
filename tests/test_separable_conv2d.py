"""The separable convolution agrees with depthwise conv2d followed by a 1x1 conv2d, forward and backward.

Small integers have exact sums in every dtype: with them a result has to equal the float64 reference rounded
once, to the bit, and a wrong tap, edge, channel or batch cannot hide in a tolerance. Normally distributed
values then show that the arithmetic is as accurate as stock's (see numerics.py).
"""

from __future__ import annotations

import itertools

import profiles  # noqa: F401 (loads the hypothesis profile)
import pytest
import torch
from cases import INDEPENDENT_VALUES
from cases import SEPARABLE_CONV2D_FACTORS as FACTORS
from cases import separable_conv2d as build
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_exact, assert_same_bits
from operators import SEPARABLE_CONV2D, check, check_backward, check_forward
from samples import (
    CHANNELS,
    CUDA_ROUNDS_TWICE,
    DTYPES,
    LAYOUTS,
    identify,
    integers,
    normals,
    pairwise,
    uninitialized_memory_is_nan,  # noqa: F401 (an autouse fixture)
)

# Around the pixel blocks of micro-kernels (6, 12, 14 pixels) and the pixel tiles of a planner (48 to 256).
PIXELS = sorted({n + d for n in (2, 6, 8, 12, 14, 16, 28, 48, 96, 112, 192, 256) for d in (-1, 0, 1)})
MANY_CHANNELS = (*CHANNELS, 127, 128, 129, 256, 257, 512, 728)


@pytest.mark.parametrize("case", pairwise(FACTORS, seed=0), ids=identify)
def test_results_are_exact_where_sums_are_exact(case, capability):
    check(SEPARABLE_CONV2D, *build(integers, **case), exact=True)


@pytest.mark.parametrize("case", pairwise(FACTORS | INDEPENDENT_VALUES, seed=1), ids=identify)
def test_results_are_as_accurate_as_stock(case, capability):
    check(SEPARABLE_CONV2D, *build(normals, **case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", MANY_CHANNELS)
def test_any_number_of_input_channels_works(channels, dtype, capability):
    for layout in ("contiguous", "channels_last"):
        case = build(dtype=dtype, in_channels=channels, out_channels=9, layout=layout, grad_layout=layout)
        check(SEPARABLE_CONV2D, *case, exact=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", MANY_CHANNELS)
def test_any_number_of_output_channels_works(channels, dtype, capability):
    for layout in ("contiguous", "channels_last"):
        case = build(dtype=dtype, in_channels=9, out_channels=channels, layout=layout, grad_layout=layout)
        check(SEPARABLE_CONV2D, *case, exact=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("pixels", PIXELS)
def test_any_number_of_pixels_works(pixels, layout, capability):
    shapes = {
        "row": (1, (1, pixels)),
        "column": (1, (pixels, 1)),
        "batch": (pixels, (1, 1)),
        "rows": (2, (3, pixels)),
    }
    for batch, size in shapes.values():
        case = build(
            batch=batch, in_channels=17, out_channels=35, output_size=size, layout=layout, grad_layout=layout
        )
        check(SEPARABLE_CONV2D, *case, exact=True)


@pytest.mark.parametrize("kernel", list(itertools.product((1, 2, 3, 5, 7), repeat=2)), ids=str)
def test_any_kernel_size_works(kernel, capability):
    for stride, dilation, layout in itertools.product(
        ((1, 1), (2, 2)), ((1, 1), (2, 3)), ("contiguous", "channels_last")
    ):
        same = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        case = build(
            in_channels=19,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=same,
            output_size=(6, 7),
            layout=layout,
        )
        check(SEPARABLE_CONV2D, *case, exact=True)


@pytest.mark.parametrize(
    "factors",
    [
        {"in_channels": 728, "out_channels": 728, "output_size": (10, 10), "batch": 1},
        {"in_channels": 1024, "out_channels": 1536, "output_size": (2, 2), "batch": 3},
        {"in_channels": 1536, "out_channels": 2048, "output_size": (1, 1), "batch": 5},
        {"in_channels": 3, "out_channels": 32, "output_size": (3, 1100), "batch": 1},
        {"in_channels": 4, "out_channels": 20, "output_size": (300, 40), "batch": 1},
        {"in_channels": 2, "out_channels": 3, "output_size": (1, 1), "batch": 1000},
        {
            "in_channels": 6,
            "out_channels": 7,
            "kernel": (31, 31),
            "padding": (15, 15),
            "output_size": (20, 33),
        },
        {"in_channels": 3, "out_channels": 4, "output_size": (112, 112), "batch": 16},
        {"in_channels": 40, "out_channels": 24, "depth_multiplier": 8, "output_size": (9, 9)},
        {"in_channels": 33, "out_channels": 17, "stride": (7, 9), "padding": (0, 0), "output_size": (5, 4)},
        {
            "in_channels": 33,
            "out_channels": 17,
            "dilation": (17, 12),
            "padding": (17, 12),
            "output_size": (21, 14),
        },
    ],
    ids=identify,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_layers_are_as_accurate_as_stock(factors, layout, capability):
    check(SEPARABLE_CONV2D, *build(normals, **factors, layout=layout, grad_layout=layout))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_view_works_as_input_and_as_grad_output(layout, dtype, capability):
    for channels in (4, 37):
        factors = dict(
            dtype=dtype, in_channels=channels, out_channels=channels + 1, output_size=(6, 18), stride=(1, 2)
        )
        check(SEPARABLE_CONV2D, *build(**factors, layout=layout), exact=True)
        check(SEPARABLE_CONV2D, *build(**factors, layout="channels_last", grad_layout=layout), exact=True)
        check(SEPARABLE_CONV2D, *build(**factors, grad_layout=layout), exact=True)
        wide = {**factors, "output_size": (6, 40)}
        check_forward(SEPARABLE_CONV2D, *build(**wide, layout=layout)[:2], exact=True)


@pytest.mark.parametrize("width", range(1, 71))
def test_any_width_works(width, capability):
    for kernel, stride, dilation in (
        ((3, 3), (1, 1), (1, 1)),
        ((5, 5), (2, 2), (1, 1)),
        ((3, 2), (3, 1), (2, 3)),
    ):
        case = build(
            in_channels=3,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=(1, 2),
            output_size=(7, width),
            unused_pixels=1,
        )
        check_forward(SEPARABLE_CONV2D, case.tensors, case.config, exact=True)


def test_negative_bit_views_are_resolved(capability):
    case = build()
    view = torch._neg_view(case.tensors["input"])
    assert view.is_neg()
    check_forward(SEPARABLE_CONV2D, {**case.tensors, "input": view}, case.config, exact=True)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_weights_may_have_any_strides(layout, capability):
    tensors, config, grad_output = build(in_channels=7, out_channels=7, depth_multiplier=2, kernel=(3, 3))
    change = {
        "channels_last": lambda w: w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w,
        "sliced": lambda w: w.repeat_interleave(2, 0)[1::2],
        "transposed": lambda w: w.transpose(0, -1).contiguous().transpose(0, -1),
        "expanded": lambda w: w[:1].expand(w.shape),
    }[layout]
    changed = {name: tensor if name == "input" else change(tensor) for name, tensor in tensors.items()}
    check(SEPARABLE_CONV2D, changed, config, grad_output, exact=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_may_lie_anywhere_in_a_flat_buffer(dtype, capability):
    """In a row at an odd offset, as optimizers that flatten parameters keep them."""
    tensors, config, grad_output = build(
        in_channels=16, out_channels=24, dtype=dtype, layout="channels_last", grad_layout="channels_last"
    )
    flat = {
        name: tensor
        if name == "input"
        else torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor)
        for name, tensor in tensors.items()
    }
    check(SEPARABLE_CONV2D, flat, config, grad_output, exact=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_empty_batch_gives_an_empty_output_and_zero_weight_gradients(layout, dtype, capability):
    tensors, config, grad_output = build(batch=0, dtype=dtype, in_channels=17, layout=layout)
    check(SEPARABLE_CONV2D, tensors, config, grad_output, exact=True)
    gradients = SEPARABLE_CONV2D.gradients(grad_output, tensors, config)
    assert gradients.pop("input").shape == tensors["input"].shape
    for name, gradient in gradients.items():
        assert_exact(gradient, torch.zeros_like(tensors[name], dtype=torch.float64), dtype, name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_each_gradient_is_the_same_whichever_others_are_asked_for(layout, capability):
    tensors, config, grad_output = build(
        normals, in_channels=18, out_channels=21, layout=layout, grad_layout=layout
    )
    every = SEPARABLE_CONV2D.backward(grad_output, tensors, config, [True] * 5)
    for mask in itertools.product([False, True], repeat=5):
        some = SEPARABLE_CONV2D.backward(grad_output, tensors, config, mask)
        for name, wanted, gradient, expected in zip(tensors, mask, some, every, strict=True):
            if wanted:
                assert_same_bits(gradient, expected, f"gradient of {name} with mask {mask}")
            else:
                assert gradient is None, f"gradient of {name} was not asked for in mask {mask}"


def test_gradients_without_biases_are_the_same_as_with_zero_biases(capability):
    tensors, config, grad_output = build(normals, in_channels=18)
    zero = {
        **tensors,
        **{name: torch.zeros_like(tensors[name]) for name in ("depthwise_bias", "pointwise_bias")},
    }
    none = {**tensors, "depthwise_bias": None, "pointwise_bias": None}
    with_zero = SEPARABLE_CONV2D.gradients(grad_output, zero, config)
    without = SEPARABLE_CONV2D.gradients(grad_output, none, config)
    for name in ("input", "depthwise_weight", "pointwise_weight"):
        torch.testing.assert_close(without[name], with_zero[name], rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "some_channels_last"])
def test_arguments_are_not_modified(layout, capability):
    tensors, config, grad_output = build(normals, in_channels=18, layout=layout, grad_layout=layout)
    everything = {**tensors, "grad_output": grad_output}
    before = {name: tensor.clone() for name, tensor in everything.items()}
    output = SEPARABLE_CONV2D.forward(tensors, config)
    gradients = SEPARABLE_CONV2D.gradients(grad_output, tensors, config)
    for name, tensor in everything.items():
        assert_same_bits(tensor, before[name], name)
        for result in (output, *gradients.values()):
            assert result.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@CUDA_ROUNDS_TWICE
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_results_are_rounded_once_to_nearest_even(dtype, capability):
    """Sums of integers beyond the mantissa: ties and neighbours of ties, exact in float32 until the store."""

    def data(*shape, dtype, seed, unit):
        return torch.randint(0, 8, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    tensors, config, grad_output = build(
        data, dtype=dtype, in_channels=64, out_channels=33, output_size=(5, 6)
    )
    output = SEPARABLE_CONV2D.reference(
        **{name: tensor.double() for name, tensor in tensors.items()}, **config
    )
    assert (output != output.to(dtype).double()).double().mean() > 0.3, "the case must round"
    check(SEPARABLE_CONV2D, tensors, config, grad_output, exact=True)


_size = st.integers(1, 9)
_pair = st.tuples


@st.composite
def cases(draw):
    """Any case that stock accepts and that takes milliseconds."""
    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "batch": draw(st.integers(0, 4)),
        "in_channels": draw(st.integers(1, 70)),
        "out_channels": draw(st.integers(1, 70)),
        "depth_multiplier": draw(st.integers(1, 4)),
        "output_size": draw(_pair(st.integers(1, 20), st.integers(1, 40))),
        "kernel": draw(_pair(_size, _size)),
        "stride": draw(_pair(st.integers(1, 5), st.integers(1, 5))),
        "padding": draw(_pair(st.integers(0, 10), st.integers(0, 10))),
        "dilation": draw(_pair(st.integers(1, 4), st.integers(1, 4))),
        "unused_pixels": draw(st.integers(0, 4)),
        "layout": draw(st.sampled_from(list(LAYOUTS))),
        "grad_layout": draw(st.sampled_from(list(LAYOUTS))),
        "biases": draw(st.sampled_from(FACTORS["biases"])),
    }


@given(case=cases())
def test_any_shape_gives_exact_results(case, capability):
    tensors, config, grad_output = build(integers, **case)
    check_forward(SEPARABLE_CONV2D, tensors, config, exact=True)
    check_backward(SEPARABLE_CONV2D, tensors, config, grad_output, exact=True)
