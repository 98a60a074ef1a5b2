"""The same call gives the same bits: whatever the threads, the batch, the memory and the history."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import BUILD
from numerics import assert_same_bits
from operators import OPERATORS, SEPARABLE_CONV2D
from samples import identify, normals

# Shapes that a planner splits in different ways: many pixels, many channels on few pixels, one image, many.
SPLITS = {
    "separable_conv2d": [
        {"batch": 1, "in_channels": 20, "out_channels": 24, "output_size": (40, 41)},
        {"batch": 3, "in_channels": 300, "out_channels": 520, "output_size": (2, 2)},
        {"batch": 10, "in_channels": 300, "out_channels": 520, "output_size": (2, 2)},  # pixels as columns
        {"batch": 9, "in_channels": 17, "out_channels": 33, "output_size": (13, 11), "depth_multiplier": 2},
        {
            "batch": 5,
            "in_channels": 400,
            "out_channels": 96,
            "output_size": (1, 1),
            "layout": "channels_last",
        },
        {
            "batch": 4,
            "in_channels": 33,
            "out_channels": 48,
            "stride": (2, 2),
            "kernel": (5, 5),
            "layout": "channels_last",
        },
    ],
    "row_average": [
        {"batch": 3, "channels": 33, "height": 31, "width": 29},
        {"batch": 1, "channels": 5, "height": 90, "width": 40, "stride": 2, "layout": "channels_last"},
    ],
    "row_average_conv2d": [
        {"batch": 1, "in_channels": 3, "out_channels": 32, "stride": (2, 2), "output_size": (30, 31)},
        {"batch": 7, "in_channels": 20, "out_channels": 40, "row_stride": 2, "layout": "channels_last"},
    ],
}
CASES = [
    pytest.param(operator, factors, id=f"{operator}-{identify(factors)}")
    for operator in OPERATORS
    for factors in SPLITS[operator.name]
]


def _all_results(operator, built):
    tensors, config, grad_output = built
    return {"output": operator.forward(tensors, config)} | operator.gradients(grad_output, tensors, config)


def _assert_same(actual, expected, where):
    for name, result in expected.items():
        if result is not None:
            assert_same_bits(actual[name], result, f"{name} {where}")


@pytest.fixture
def threads():
    """torch.set_num_threads, restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("operator", "factors"), CASES)
def test_bits_do_not_depend_on_the_number_of_threads(operator, factors, dtype, threads, capability):
    built = BUILD[operator.name](normals, dtype=dtype, **factors)
    threads(1)
    expected = _all_results(operator, built)
    for count in (2, 3, 4):
        threads(count)
        _assert_same(_all_results(operator, built), expected, f"with {count} threads")


@pytest.mark.parametrize(("operator", "factors"), CASES)
def test_bits_do_not_depend_on_earlier_calls(operator, factors, capability):
    """Repeated calls, with other shapes in between that leave other values in scratch memory."""
    built = BUILD[operator.name](normals, **factors)
    other = BUILD[operator.name](lambda *shape, **options: normals(*shape, **options) * 1e6)
    expected = _all_results(operator, built)
    for repetition in range(4):
        _all_results(operator, other)
        _assert_same(_all_results(operator, built), expected, f"in repetition {repetition}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("operator", "factors"), CASES)
def test_output_and_input_gradient_bits_do_not_depend_on_batch_size(operator, factors, dtype, capability):
    tensors, config, grad_output = BUILD[operator.name](normals, dtype=dtype, **{**factors, "batch": 7})
    output = operator.forward(tensors, config)
    gradient = operator.gradients(grad_output, tensors, config)["input"]
    for part in (slice(0, 1), slice(3, 4), slice(2, 5), slice(6, 7)):
        some = {**tensors, "input": tensors["input"][part]}
        assert_same_bits(operator.forward(some, config), output[part], f"output of images {part}")
        found = operator.gradients(grad_output[part], some, config)["input"]
        assert_same_bits(found, gradient[part], f"gradient of images {part}")


@pytest.mark.parametrize(
    "layout", ["channels_last", "unaligned", "some_channels_last", "transposed", "batch_innermost"]
)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_output_and_input_gradient_bits_do_not_depend_on_memory_format_and_addresses(
    operator, layout, capability
):
    channels = {"channels": 37} if operator.name == "row_average" else {"in_channels": 37, "out_channels": 41}
    expected = _all_results(operator, BUILD[operator.name](normals, **channels))
    found = _all_results(
        operator, BUILD[operator.name](normals, **channels, layout=layout, grad_layout=layout)
    )
    for name in ("output", "input"):
        assert_same_bits(found[name], expected[name], name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_pixel_bits_do_not_depend_on_the_size_of_the_image(operator, layout, capability):
    """Interior pixels are the same in a cropped image: large images may be processed in pieces."""
    sizes = {"row_average": {"channels": 19, "height": 20, "width": 31}}
    other = {"in_channels": 19, "out_channels": 35, "output_size": (20, 31), "padding": (0, 0)}
    tensors, config, _ = BUILD[operator.name](normals, layout=layout, **sizes.get(operator.name, other))
    whole = operator.forward(tensors, config)
    for top, left in ((1, 1), (3, 8), (6, 13)):
        crop = operator.forward({**tensors, "input": tensors["input"][:, :, top:, left:]}, config)
        # The first row of a cropped image has lost the row above it, which a row average reads.
        assert_same_bits(crop[:, :, 1:], whole[:, :, top + 1 :, left:], f"crop at {top}, {left}")


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_python_threads_may_call_at_the_same_time(operator, capability):
    builts = [BUILD[operator.name](normals, **factors) for factors in SPLITS[operator.name]]
    expected = [_all_results(operator, built) for built in builts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda built: _all_results(operator, built), builts * 2)
            for actual, wanted in zip(found, expected * 2, strict=True):
                _assert_same(actual, wanted, "beside other calls")


@pytest.mark.parametrize("factors", [{}, SPLITS["separable_conv2d"][1]], ids=identify)
@pytest.mark.parametrize("change", ["data", "version", "storage"])
@pytest.mark.parametrize("name", ["depthwise_weight", "pointwise_weight", "depthwise_bias", "pointwise_bias"])
def test_every_way_to_change_a_weight_is_seen_by_the_next_call(name, change, factors, capability):
    """Optimizers, `.data`, EMA and foreign code change weights; only some raise a version counter."""
    tensors, config, grad_output = BUILD["separable_conv2d"](normals, **factors)
    before = _all_results(SEPARABLE_CONV2D, (tensors, config, grad_output))
    fresh = {**tensors, name: tensors[name] * -0.5}
    if change == "data":
        tensors[name].data.mul_(-0.5)
    elif change == "version":
        tensors[name].mul_(-0.5)
    else:
        tensors[name].numpy()[...] *= -0.5
    after = _all_results(SEPARABLE_CONV2D, (tensors, config, grad_output))
    assert not torch.equal(after["output"], before["output"])
    _assert_same(after, _all_results(SEPARABLE_CONV2D, (fresh, config, grad_output)), f"after {change}")


@pytest.mark.parametrize(
    "window", [{}, {"stride": (2, 2)}, {"kernel": (5, 5), "dilation": (1, 2)}, {"kernel": (2, 7)}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_bits_of_wide_maps_do_not_depend_on_memory_format(dtype, window, capability):
    """Wide maps have a kernel of their own in each format: rows of pixels, or pixels of channels."""
    for width in (*range(8, 20), 31, 32, 33, 47, 64, 65, 70):
        factors = dict(dtype=dtype, in_channels=19, out_channels=37, output_size=(7, width), **window)
        expected = SEPARABLE_CONV2D.forward(*BUILD["separable_conv2d"](normals, **factors)[:2])
        tensors, config, _ = BUILD["separable_conv2d"](normals, **factors, layout="channels_last")
        assert_same_bits(SEPARABLE_CONV2D.forward(tensors, config), expected, f"width {width}")


@pytest.mark.parametrize(
    "factors",
    [
        {"batch": 1, "in_channels": 40, "out_channels": 90, "output_size": (10, 10)},
        {"batch": 3, "in_channels": 33, "out_channels": 20, "output_size": (19, 19)},
        {"batch": 1, "in_channels": 9, "out_channels": 70, "output_size": (35, 147), "depth_multiplier": 2},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_bits_of_wide_maps_do_not_depend_on_threads(dtype, factors, threads, capability):
    tensors, config, _ = BUILD["separable_conv2d"](normals, dtype=dtype, **factors)
    threads(1)
    expected = SEPARABLE_CONV2D.forward(tensors, config)
    for count in (2, 3, 4):
        threads(count)
        assert_same_bits(SEPARABLE_CONV2D.forward(tensors, config), expected, f"with {count} threads")
