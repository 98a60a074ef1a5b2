"""The three operators as the tests see them: the real kernel, its backward, and the reference they must agree with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numerics import assert_as_accurate_as_stock, assert_exact
from sepconv import reference
from torch import Tensor
from torch._prims_common import suggest_memory_format

Tensors = Mapping[str, "Tensor | None"]
Config = Mapping[str, Any]
Gradients = dict[str, "Tensor | None"]


@dataclass(frozen=True)
class Operator:
    """One operator. `tensors` are its tensor arguments by name, `input` first; `config` are the others."""

    name: str
    forward: Callable[[Tensors, Config], Tensor]
    backward: Callable[[Tensor, Tensors, Config, Sequence[bool]], Sequence[Tensor | None]]
    reference: Callable[..., Tensor]
    gradient_like: str = "input"  # whose memory format the gradient of the input has

    def __str__(self) -> str:
        return self.name

    def gradients(self, grad_output: Tensor, tensors: Tensors, config: Config) -> Gradients:
        """Every gradient that exists, by name."""
        mask = [tensor is not None for tensor in tensors.values()]
        return dict(zip(tensors, self.backward(grad_output, tensors, config, mask), strict=True))

    def stock_gradients(self, grad_output: Tensor, tensors: Tensors, config: Config) -> Gradients:
        """The same gradients by autograd through the reference, in the dtype of the tensors."""
        leaves = {name: _map(tensor, lambda t: t.detach().requires_grad_()) for name, tensor in tensors.items()}
        with torch.enable_grad():
            output = self.reference(**leaves, **config)
        wanted = {name: tensor for name, tensor in leaves.items() if tensor is not None}
        found = torch.autograd.grad(output, list(wanted.values()), grad_output)
        return dict.fromkeys(tensors) | dict(zip(wanted, found, strict=True))


def _map(tensor: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if tensor is None else function(tensor)


def _all(tensors: Tensors, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor | None]:
    return {name: _map(tensor, function) for name, tensor in tensors.items()}


def _dense(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def _exact(tensor: Tensor) -> Tensor:
    return tensor.double().contiguous()


def _separable_conv2d_backward(grad_output: Tensor, tensors: Tensors, config: Config, mask: Sequence[bool]):
    # The pointwise bias is not among the arguments: its gradient does not depend on it.
    saved = [tensor for name, tensor in tensors.items() if name != "pointwise_bias"]
    window = [list(config[name]) for name in ("stride", "padding", "dilation")]
    return torch.ops.sepconv.separable_conv2d_backward(grad_output, *saved, *window, list(mask))


def _row_average_backward(grad_output: Tensor, tensors: Tensors, config: Config, mask: Sequence[bool]):
    if not mask[0]:
        return [None]
    return [torch.ops.sepconv.row_average_backward(grad_output, tensors["input"].shape[2], config["stride"])]


def _row_average_conv2d_backward(grad_output: Tensor, tensors: Tensors, config: Config, mask: Sequence[bool]):
    window = [list(config[name]) for name in ("stride", "padding", "dilation")]
    return torch.ops.sepconv.row_average_conv2d_backward(
        grad_output, tensors["input"], tensors["weight"], *window, config["row_stride"], list(mask)
    )


SEPARABLE_CONV2D = Operator(
    "separable_conv2d",
    lambda tensors, config: torch.ops.sepconv.separable_conv2d(**tensors, **config),
    _separable_conv2d_backward,
    reference.separable_conv2d,
)
ROW_AVERAGE = Operator(
    "row_average",
    lambda tensors, config: torch.ops.sepconv.row_average(**tensors, **config),
    _row_average_backward,
    reference.row_average,
    gradient_like="grad_output",  # all that row_average_backward is given
)
ROW_AVERAGE_CONV2D = Operator(
    "row_average_conv2d",
    lambda tensors, config: torch.ops.sepconv.row_average_conv2d(**tensors, **config),
    _row_average_conv2d_backward,
    reference.row_average_conv2d,
)
OPERATORS = (SEPARABLE_CONV2D, ROW_AVERAGE, ROW_AVERAGE_CONV2D)


@contextlib.contextmanager
def _stock(tensors: Tensors, config: Config) -> Iterator[None]:
    """Stock's convolutions crash in oneDNN (torch 2.14) where a window can lie in the padding: not there."""
    kernel = next((tensor.shape[2:] for name, tensor in tensors.items() if "weight" in name and tensor is not None), None)
    before = torch.backends.mkldnn.enabled
    if kernel is not None:
        reach = [dilation * (size - 1) for dilation, size in zip(config["dilation"], kernel, strict=True)]
        safe = all(padding <= r for padding, r in zip(config["padding"], reach, strict=True))
        torch.backends.mkldnn.enabled = before and safe
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def output_shape(operator: Operator, tensors: Tensors, config: Config) -> torch.Size:
    """Shape of the output, from the reference on tensors without data."""
    return operator.reference(**_all(tensors, lambda t: torch.empty(t.shape, device="meta")), **config).shape


def assert_dense_like(result: Tensor, input: Tensor, name: str) -> None:
    """`result` is dense, in the memory format torch would choose for `input`."""
    memory_format = suggest_memory_format(input)
    assert result.is_contiguous(memory_format=memory_format), f"{name}: strides {result.stride()}, not {memory_format}"


def check_forward(operator: Operator, tensors: Tensors, config: Config, exact: bool = False) -> None:
    """The kernel's output agrees with the reference: by bits for exact data, else as accurately as stock."""
    input = tensors["input"]
    actual = operator.forward(tensors, config)
    expected = operator.reference(**_all(tensors, _exact), **config)
    if exact:
        assert_exact(actual, expected, input.dtype, "output")
    else:
        with _stock(tensors, config):
            stock = operator.reference(**_all(tensors, _dense), **config)
        magnitude = operator.reference(**_all(tensors, lambda t: _exact(t).abs()), **config)
        assert_as_accurate_as_stock(actual, stock, expected, magnitude, "output")
    assert_dense_like(actual, input, "output")


def check_backward(
    operator: Operator, tensors: Tensors, config: Config, grad_output: Tensor, exact: bool = False
) -> None:
    """The kernel's gradients agree with autograd through the reference, as in check_forward."""
    input = tensors["input"]
    actual = operator.gradients(grad_output, tensors, config)
    expected = operator.stock_gradients(_exact(grad_output), _all(tensors, _exact), config)
    if not exact:
        with _stock(tensors, config):
            stock = operator.stock_gradients(_dense(grad_output), _all(tensors, _dense), config)
        # Every operator is a polynomial with positive coefficients: absolute values in, sums of absolute values out.
        magnitude = operator.stock_gradients(
            _exact(grad_output).abs(), _all(tensors, lambda t: _exact(t).abs()), config
        )
    for name, tensor in tensors.items():
        if tensor is None:
            assert actual[name] is None, f"gradient of {name}: expected none, got a tensor"
        elif exact:
            assert_exact(actual[name], expected[name], input.dtype, f"gradient of {name}")
        else:
            assert_as_accurate_as_stock(
                actual[name], stock[name], expected[name], magnitude[name], f"gradient of {name}"
            )
        if tensor is not None and name == "input":
            like = input if operator.gradient_like == "input" else grad_output
            assert_dense_like(actual[name], like, f"gradient of {name}")
        elif tensor is not None:
            assert actual[name].is_contiguous(), f"gradient of {name}: strides {actual[name].stride()}"


def check(operator: Operator, tensors: Tensors, config: Config, grad_output: Tensor, exact: bool = False) -> None:
    """Forward and backward."""
    check_forward(operator, tensors, config, exact)
    check_backward(operator, tensors, config, grad_output, exact)
