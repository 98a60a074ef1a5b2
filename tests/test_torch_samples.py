"""PyTorch's own sample inputs for conv2d, where they are depthwise, each joined with a 1x1 convolution."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_as_accurate_as_stock
from samples import DTYPES, normals
from torch.nn import functional as F
from torch.testing import make_tensor

from sepconv import functional as sepconv

pytest.importorskip("expecttest", reason="torch's test helpers need expecttest: pip install expecttest")
from torch.testing._internal.common_methods_invocations import op_db

CONV2D = next(op for op in op_db if op.name == "nn.functional.conv2d" and not op.variant_test_name)
OUT_CHANNELS = (1, 7, 33)


def _samples(dtype):
    """(input, weight, bias, other arguments) of each depthwise sample."""
    for sample in CONV2D.sample_inputs("cpu", dtype):
        weight, bias = sample.args
        options = dict(sample.kwargs)
        channels = sample.input.shape[-3]
        if options.pop("groups", 1) == channels and weight.shape[1] == 1:
            yield sample.input, weight, bias, options


def _pairs(dtype):
    torch.manual_seed(0)
    for input, weight, bias, options in _samples(dtype):
        for out_channels in OUT_CHANNELS:
            make = lambda *shape: make_tensor(shape, dtype=dtype, device="cpu")  # noqa: E731
            pointwise = make(out_channels, len(weight), 1, 1)
            yield (input, weight, pointwise, bias, None), options
            yield (input, weight, pointwise, bias, make(out_channels)), options


def _stock(input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, options):
    middle = F.conv2d(input, depthwise_weight, depthwise_bias, groups=input.shape[-3], **options)
    return F.conv2d(middle, pointwise_weight, pointwise_bias)


def _with_gradients(function, arguments, dtype, convert):
    leaves = [None if tensor is None else convert(tensor.detach()).requires_grad_() for tensor in arguments]
    output = function(*leaves)
    wanted = [leaf for leaf in leaves if leaf is not None]
    grad_output = convert(normals(*output.shape, dtype=dtype))
    return [output, *torch.autograd.grad(output, wanted, grad_output)]


def test_there_are_depthwise_samples_batched_and_unbatched():
    samples = list(_samples(torch.float32))
    assert len(samples) >= 10
    assert {input.dim() for input, *_ in samples} == {3, 4}
    assert any(len(weight) > input.shape[-3] for input, weight, *_ in samples), "a depth multiplier above 1"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_as_accurate_as_stock(dtype, capability):
    for arguments, options in _pairs(dtype):

        def stock(*tensors, options=options):
            return _stock(*tensors, options)

        def ours(*tensors, options=options):
            return sepconv.separable_conv2d(*tensors, **options)

        found = _with_gradients(ours, arguments, dtype, lambda t: t.clone())
        expected = _with_gradients(stock, arguments, dtype, lambda t: t.clone())
        exact = _with_gradients(stock, arguments, dtype, lambda t: t.double())
        magnitude = _with_gradients(stock, arguments, dtype, lambda t: t.double().abs())
        for index, results in enumerate(zip(found, expected, exact, magnitude, strict=True)):
            shapes = [None if tensor is None else tuple(tensor.shape) for tensor in arguments]
            assert_as_accurate_as_stock(*results, f"result {index} of {shapes} with {options}")


def test_what_torch_rejects_is_rejected():
    """Error inputs of conv2d that a depthwise one can have: signs of stride, padding and dilation."""
    rejected = 0
    for error in CONV2D.error_inputs("cpu"):
        sample = error.sample_input
        weight, _ = sample.args
        options = {name: value for name, value in sample.kwargs.items() if name != "groups"}
        if (
            not {"stride", "padding", "dilation"} & options.keys()
            or sample.input.dim() < 3
            or weight.dim() < 4
        ):
            continue
        if any(isinstance(value, str) for value in options.values()):
            continue
        channels = sample.input.shape[-3]
        depthwise = make_tensor((channels, 1, *weight.shape[2:]), dtype=torch.float64, device="cpu")
        pointwise = make_tensor((3, channels, 1, 1), dtype=torch.float64, device="cpu")
        with pytest.raises(RuntimeError, match=r"stride|padding|dilation"):
            sepconv.separable_conv2d(sample.input.double(), depthwise, pointwise, **options)
        rejected += 1
    assert rejected >= 3
