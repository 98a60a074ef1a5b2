"""NaN, infinities, subnormal numbers and overflow come out where arithmetic puts them, and nowhere else.

A skipped zero, a tail read past its end or a row that was loaded for a neighbour shows here: any of these
loses a NaN or spreads one to outputs whose window never sees it.
"""

from __future__ import annotations

import capabilities
import pytest
import torch
from cases import BUILD
from numerics import assert_exact, assert_same_bits, assert_same_special_values
from operators import OPERATORS, SEPARABLE_CONV2D, check
from samples import CUDA_ROUNDS_TWICE, DTYPES, LAYOUTS, integers, normals

NAN, INF = float("nan"), float("inf")
HALF = (torch.bfloat16, torch.float16)


def _each_pixel_once(values, special):
    """A batch of copies of the first image, each with `special` at another pixel of its last channel."""
    _, channels, height, width = values.shape
    images = values[:1].repeat(height * width, 1, 1, 1)
    for index in range(height * width):
        images[index, channels - 1, index // width, index % width] = special
    return images


def _exact(tensors):
    return {name: None if tensor is None else tensor.double() for name, tensor in tensors.items()}


def _sizes(operator):
    channels = {"channels": 5} if operator.name == "row_average" else {"in_channels": 5, "out_channels": 19}
    return channels | (
        {"height": 5, "width": 6} if operator.name == "row_average" else {"output_size": (5, 6)}
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_a_special_pixel_reaches_exactly_the_outputs_whose_window_covers_it(
    operator, dtype, special, layout, capability
):
    windows = (
        [{"stride": 1}, {"stride": 2}]
        if operator.name == "row_average"
        else [
            {},
            {"stride": (2, 1)},
            {"dilation": (2, 3), "padding": (2, 1)},
            {"kernel": (5, 2), "padding": (0, 1)},
        ]
    )
    for window in windows:
        tensors, config, _ = BUILD[operator.name](normals, dtype=dtype, **_sizes(operator), **window)
        tensors["input"] = LAYOUTS[layout](_each_pixel_once(tensors["input"], special))
        exact = operator.reference(**_exact(tensors), **config)
        assert not exact.isfinite().all() and exact.isfinite().any()
        assert_same_special_values(operator.forward(tensors, config), exact, f"output with {window}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("special", [NAN, INF])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_a_special_output_gradient_reaches_exactly_the_inputs_of_its_window(
    operator, special, layout, capability
):
    # No padding: whether a NaN times a padded zero is a NaN is left open by stock, whose kernels differ.
    window = {} if operator.name == "row_average" else {"padding": (0, 0), "dilation": (1, 2)}
    tensors, config, grad_output = BUILD[operator.name](normals, **_sizes(operator), **window)
    grad_output = LAYOUTS[layout](_each_pixel_once(grad_output, special))
    tensors["input"] = tensors["input"][:1].repeat(len(grad_output), 1, 1, 1)
    found = operator.gradients(grad_output, tensors, config)
    exact = operator.stock_gradients(grad_output.double(), _exact(tensors), config)
    for name, gradient in exact.items():
        assert_same_special_values(found[name], gradient, f"gradient of {name}")


@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("channel", [0, 4, 15, 16, 18])
def test_a_special_weight_reaches_exactly_its_own_channels(channel, special, capability):
    sizes = {"in_channels": 19, "out_channels": 19, "padding": (0, 0)}
    for name in ("depthwise_weight", "pointwise_weight", "depthwise_bias", "pointwise_bias"):
        tensors, config, grad_output = BUILD["separable_conv2d"](normals, **sizes)
        tensors[name][channel] = special
        exact = SEPARABLE_CONV2D.reference(**_exact(tensors), **config)
        assert_same_special_values(
            SEPARABLE_CONV2D.forward(tensors, config), exact, f"output, special {name}"
        )
        found = SEPARABLE_CONV2D.gradients(grad_output, tensors, config)
        gradients = SEPARABLE_CONV2D.stock_gradients(grad_output.double(), _exact(tensors), config)
        for other, gradient in gradients.items():
            assert_same_special_values(found[other], gradient, f"gradient of {other}, special {name}")


@pytest.mark.parametrize("special", [NAN, INF])
def test_zero_weights_do_not_hide_special_inputs(special, capability):
    """0 * NaN and 0 * inf are NaN: pruned weights must not skip work that stock would do."""
    tensors, config, _ = BUILD["separable_conv2d"](normals)
    tensors["input"][0, 0, 2, 2] = special
    for name in ("depthwise_weight", "pointwise_weight"):
        zero = {**tensors, name: torch.zeros_like(tensors[name])}
        exact = SEPARABLE_CONV2D.reference(**_exact(zero), **config)
        assert exact.isnan().any()
        assert_same_special_values(SEPARABLE_CONV2D.forward(zero, config), exact, f"zero {name}")


@pytest.mark.parametrize("channels", [1, 17])
def test_special_values_stay_in_their_image(channels, capability):
    tensors, config, grad_output = BUILD["separable_conv2d"](
        normals, batch=5, in_channels=channels, output_size=(3, 3)
    )
    expected = SEPARABLE_CONV2D.forward(tensors, config)
    gradient = SEPARABLE_CONV2D.gradients(grad_output, tensors, config)["input"]
    tensors["input"][2] = NAN
    output = SEPARABLE_CONV2D.forward(tensors, config)
    grad_output[2] = NAN
    found = SEPARABLE_CONV2D.gradients(grad_output, tensors, config)["input"]
    for image in (0, 1, 3, 4):
        assert_same_bits(output[image], expected[image], f"output of image {image}")
        assert_same_bits(found[image], gradient[image], f"gradient of image {image}")
    assert output[2].isnan().all() and found[2].isnan().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_every_nan_of_a_half_dtype_stays_a_nan(operator, dtype, capability):
    """Rounding that only adds to the bits makes a NaN with a full mantissa zero, a small one inf."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    nans = bits.view(dtype)[bits.view(dtype).isnan()]
    sizes = (
        {"channels": 1, "height": 1, "width": len(nans)}
        if operator.name == "row_average"
        else {
            "in_channels": 1,
            "out_channels": 3,
            "kernel": (1, 1),
            "padding": (0, 0),
            "output_size": (1, len(nans)),
        }
    )
    tensors, config, grad_output = BUILD[operator.name](normals, batch=1, dtype=dtype, **sizes)
    tensors["input"] = nans.view(1, 1, 1, -1)
    assert operator.forward(tensors, config).isnan().all()
    grad_output = nans.view(1, 1, 1, -1).expand(grad_output.shape)
    assert operator.gradients(grad_output, tensors, config)["input"].isnan().all()


def _flushes(dtype, capability):
    """Products of bfloat16 by the CPU itself take subnormal factors as zero, in stock as here."""
    return dtype is torch.bfloat16 and capability in capabilities.BFLOAT16


def _identity(channels, dtype):
    """A separable convolution that copies its input."""
    one = torch.ones(channels, 1, 1, 1, dtype=dtype)
    return {
        "depthwise_weight": one,
        "pointwise_weight": torch.eye(channels, dtype=dtype).view(channels, channels, 1, 1),
    }


@CUDA_ROUNDS_TWICE
@pytest.mark.parametrize("channels", [1, 64])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_finite_value_of_a_half_dtype_passes_an_identity_unchanged(dtype, channels, capability):
    """Subnormal and the largest numbers included: widening is exact, and so is rounding it back."""
    smallest = torch.finfo(dtype).smallest_normal if _flushes(dtype, capability) else 0.0
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = torch.where(values.isfinite(), values, 0).view(1, channels, -1, 64)
    for view in (values, values.contiguous(memory_format=torch.channels_last)):
        output = torch.ops.sepconv.separable_conv2d(view, **_identity(channels, dtype))
        assert_exact(output, torch.where(values.abs() < smallest, 0, values).double(), dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_results_round_to_nearest_even_and_overflow_to_infinity(dtype, capability):
    """Sums of a value and a fraction of its last place: below, at and above the tie, up to the largest."""
    largest = torch.finfo(dtype).max
    last_place = largest / (2 - torch.finfo(dtype).eps) * torch.finfo(dtype).eps
    base = torch.tensor([1.0, 1 + torch.finfo(dtype).eps, largest / 2, largest], dtype=torch.float64)
    place = torch.tensor([1.0, 1.0, last_place / 2, last_place], dtype=torch.float64)
    place[:2] = torch.finfo(dtype).eps
    fraction = torch.tensor([0.25, 0.4375, 0.5, 0.5625, 0.75, 1.0], dtype=torch.float64)
    big, small = (t.flatten() for t in torch.broadcast_tensors(base[:, None], place[:, None] * fraction))
    image = torch.stack((big, small)).view(1, 2, 1, -1).to(dtype)
    assert torch.equal(image.double(), torch.stack((big, small)).view(1, 2, 1, -1)), (
        "the operands must be exact"
    )
    weights = {
        "depthwise_weight": torch.ones(2, 1, 1, 1).to(dtype),
        "pointwise_weight": torch.ones(40, 2, 1, 1).to(dtype),
    }
    for sign in (1, -1):
        output = torch.ops.sepconv.separable_conv2d(image * sign, **weights)
        exact = (sign * (big + small)).view(1, 1, 1, -1).expand(output.shape)
        assert_exact(output, exact, dtype)
        assert output.isinf().any()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_subnormal_results_are_rounded_and_not_flushed(operator, dtype, capability):
    unit = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    tensors, config, _ = BUILD[operator.name](integers, dtype=dtype)
    tensors = {
        name: tensor if name.endswith("weight") else (tensor.float() * unit).to(dtype)
        for name, tensor in tensors.items()
    }
    exact = operator.reference(**_exact(tensors), **config)
    assert (exact.abs() < torch.finfo(dtype).smallest_normal).any()
    assert exact.any()
    if operator is SEPARABLE_CONV2D and _flushes(dtype, capability):
        exact = torch.zeros_like(exact)
    assert_exact(operator.forward(tensors, config), exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_subnormal_inputs_are_not_flushed(operator, dtype, capability):
    unit = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    tensors, config, grad_output = BUILD[operator.name](integers, dtype=dtype)
    tiny = {name: tensor if name.endswith("weight") else tensor * unit for name, tensor in tensors.items()}
    output = operator.forward(tiny, config)
    assert output.any() and (output.abs() < torch.finfo(dtype).smallest_normal).all()
    assert_exact(output, operator.forward(tensors, config).double() * unit, dtype)
    gradient = operator.gradients(grad_output * unit, tensors, config)["input"]
    assert_exact(gradient, operator.gradients(grad_output, tensors, config)["input"].double() * unit, dtype)


@CUDA_ROUNDS_TWICE
def test_sums_beyond_the_range_of_a_half_dtype_are_kept_until_the_store(capability):
    """Products of 60000 and 4 overflow float16; their difference, which float32 sums give, does not."""
    tensors = {
        "input": torch.tensor([60000.0, 60000.0], dtype=torch.float16).view(1, 2, 1, 1),
        "depthwise_weight": torch.tensor([4.0, 4.0], dtype=torch.float16).view(2, 1, 1, 1),
        "pointwise_weight": torch.tensor([[1.0, -1.0], [0.25, 0.0]], dtype=torch.float16).view(2, 2, 1, 1),
    }
    assert torch.ops.sepconv.separable_conv2d(**tensors).flatten().tolist() == [0.0, 60000.0]


@pytest.mark.parametrize("value", [1e30, 1e-30])
def test_extreme_scales_are_exact_where_powers_of_two_are(value, capability):
    scale = 2.0 ** round(torch.log2(torch.tensor(value)).item())
    tensors, config, grad_output = BUILD["separable_conv2d"](integers)
    check(
        SEPARABLE_CONV2D,
        {**tensors, "input": tensors["input"] * scale, "depthwise_bias": None, "pointwise_bias": None},
        config,
        grad_output,
        exact=True,
    )
