"""Derivatives of the real kernels agree with finite differences, in float64, on every ISA."""

from __future__ import annotations

import pytest
import torch
from cases import BUILD
from samples import identify, normals
from torch.autograd import gradcheck, gradgradcheck

# Small cases are compared entry by entry; cases beyond a vector, along random directions (fast mode).
SMALL = {
    "separable_conv2d": [
        {},
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "layout": "channels_last"},
        {"depth_multiplier": 2, "kernel": (2, 3), "biases": ("pointwise_bias",)},
        {"kernel": (1, 1), "padding": (0, 0), "biases": ("depthwise_bias",), "grad_layout": "channels_last"},
        {"kernel": (5, 4), "padding": (3, 2), "biases": ()},
    ],
    "row_average": [
        {"stride": 1},
        {"stride": 2, "layout": "channels_last"},
        {"stride": 3},
        {"height": 1},
        {"height": 2},
    ],
    "row_average_conv2d": [
        {},
        {"stride": (2, 1), "padding": (0, 2), "row_stride": 2, "layout": "channels_last"},
        {"kernel": (2, 3), "dilation": (2, 1), "bias": False},
    ],
}
WIDE = {
    "separable_conv2d": [
        {"in_channels": 19, "out_channels": 35, "output_size": (6, 9)},
        {"in_channels": 9, "out_channels": 17, "depth_multiplier": 3, "kernel": (7, 5), "padding": (3, 2)},
        {
            "in_channels": 17,
            "out_channels": 9,
            "stride": (2, 2),
            "dilation": (2, 1),
            "layout": "channels_last",
        },
        {"in_channels": 40, "out_channels": 70, "output_size": (1, 1), "batch": 5},
    ],
    "row_average": [{"channels": 19, "width": 20, "stride": 2}],
    "row_average_conv2d": [{"in_channels": 3, "out_channels": 35, "stride": (2, 2), "output_size": (8, 9)}],
}


def _function(name, tensors, config):
    """The operator as a function of those of its tensors that exist, and these as leaves."""
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in tensors.items() if tensor is not None}

    def call(*values):
        return getattr(torch.ops.sepconv, name)(**dict(zip(leaves, values, strict=True)), **config)

    return call, tuple(leaves.values())


def _cases(table):
    return [
        pytest.param(name, factors, id=f"{name}-{identify(factors)}")
        for name in table
        for factors in table[name]
    ]


def _small(name, factors):
    sizes = {"row_average": {"channels": 2, "width": 3}}.get(
        name, {"in_channels": 2, "out_channels": 3, "output_size": (2, 3)}
    )
    return BUILD[name](normals, **{"batch": 2, "dtype": torch.float64, **sizes, **factors})


@pytest.mark.parametrize(("name", "factors"), _cases(SMALL))
def test_every_derivative_agrees_with_finite_differences(name, factors, capability):
    tensors, config, _ = _small(name, factors)
    function, leaves = _function(name, tensors, config)
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize(("name", "factors"), _cases(WIDE))
def test_derivatives_of_wide_layers_agree_along_random_directions(name, factors, capability):
    tensors, config, _ = BUILD[name](normals, **{"dtype": torch.float64, **factors})
    function, leaves = _function(name, tensors, config)
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", BUILD)
def test_a_frozen_argument_gets_no_gradient_and_changes_no_other(name, capability):
    """Fine-tuning freezes some weights: each subset of the leaves gives the gradients of the full set."""
    tensors, config, grad_output = _small(name, {})
    function, leaves = _function(name, tensors, config)
    every = torch.autograd.grad(function(*leaves), leaves, grad_output)
    for frozen in range(len(leaves)):
        values = [leaf.detach().requires_grad_(index != frozen) for index, leaf in enumerate(leaves)]
        output = function(*values)
        if len(leaves) > 1:
            output.backward(grad_output)
        for index, (value, expected) in enumerate(zip(values, every, strict=True)):
            if index == frozen:
                assert value.grad is None
            else:
                assert torch.equal(value.grad, expected), f"gradient {index} with argument {frozen} frozen"


@pytest.mark.parametrize("name", BUILD)
def test_third_derivatives_exist(name, capability):
    """Meta-learning differentiates through a gradient penalty: the backward of the double backward."""
    tensors, config, _ = _small(name, {})
    function, leaves = _function(name, tensors, config)

    def penalty(*values):
        gradients = torch.autograd.grad(function(*values).pow(3).sum(), values, create_graph=True)
        return sum(gradient.pow(2).sum() for gradient in gradients)

    assert gradgradcheck(penalty, leaves, fast_mode=True, atol=1e-3, rtol=1e-3)
