"""The three operators as tests see them: the real kernel, its backward, and the reference of both."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numerics import assert_as_accurate_as_stock, assert_exact, assert_near
from torch import Tensor
from torch._prims_common import suggest_memory_format

from sepconv import reference

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
    # Whether sums of small integers are exact; a mean of three rows is a sum times a rounded 1/3.
    exact: bool = True

    def __str__(self) -> str:
        return self.name

    def gradients(self, grad_output: Tensor, tensors: Tensors, config: Config) -> Gradients:
        """Every gradient that exists, by name."""
        mask = [tensor is not None for tensor in tensors.values()]
        return dict(zip(tensors, self.backward(grad_output, tensors, config, mask), strict=True))

    def stock_gradients(self, grad_output: Tensor, tensors: Tensors, config: Config) -> Gradients:
        """The same gradients by autograd through the reference, in the dtype of the tensors."""
        leaves = {
            name: _map(tensor, lambda t: t.detach().requires_grad_()) for name, tensor in tensors.items()
        }
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
    exact=False,
)
ROW_AVERAGE_CONV2D = Operator(
    "row_average_conv2d",
    lambda tensors, config: torch.ops.sepconv.row_average_conv2d(**tensors, **config),
    _row_average_conv2d_backward,
    reference.row_average_conv2d,
    exact=False,
)
OPERATORS = (SEPARABLE_CONV2D, ROW_AVERAGE, ROW_AVERAGE_CONV2D)


def _stock(tensors: Tensors, config: Config) -> contextlib.AbstractContextManager[None]:
    """Stock's convolutions crash in oneDNN (torch 2.14) where windows lie in the padding: not there."""
    weights = [tensor for name, tensor in tensors.items() if "weight" in name and tensor is not None]
    if not weights:
        return contextlib.nullcontext()
    reach = [d * (size - 1) for d, size in zip(config["dilation"], weights[0].shape[2:], strict=True)]
    if all(2 * padding <= r for padding, r in zip(config["padding"], reach, strict=True)):
        return contextlib.nullcontext()
    return _without_onednn()


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the flags' own deprecations
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def output_shape(operator: Operator, tensors: Tensors, config: Config) -> torch.Size:
    """Shape of the output, from the reference on tensors without data."""
    return operator.reference(**_all(tensors, lambda t: torch.empty(t.shape, device="meta")), **config).shape


def assert_dense_like(result: Tensor, input: Tensor, name: str) -> None:
    """`result` is dense, in the memory format torch would choose for `input`."""
    memory_format = suggest_memory_format(input)
    assert result.is_contiguous(memory_format=memory_format), (
        f"{name}: strides {result.stride()}, not {memory_format}"
    )


def check_forward(operator: Operator, tensors: Tensors, config: Config, exact: bool = False) -> None:
    """The kernel's output agrees with the reference, as accurately as stock does.

    `exact` says that sums of the data are exact: then it agrees to the bit, or, for operators that average,
    within their rounding.
    """
    actual = operator.forward(tensors, config)
    _compare(
        operator,
        {"output": actual},
        lambda convert: {"output": operator.reference(**_all(tensors, convert), **config)},
        _stock(tensors, config),
        exact,
    )
    assert_dense_like(actual, tensors["input"], "output")


def check_backward(
    operator: Operator, tensors: Tensors, config: Config, grad_output: Tensor, exact: bool = False
) -> None:
    """The kernel's gradients agree with autograd through the reference, as in check_forward."""
    actual = operator.gradients(grad_output, tensors, config)
    _compare(
        operator,
        {f"gradient of {name}": gradient for name, gradient in actual.items()},
        lambda convert: {
            f"gradient of {name}": gradient
            for name, gradient in operator.stock_gradients(
                convert(grad_output), _all(tensors, convert), config
            ).items()
        },
        _stock(tensors, config),
        exact,
    )
    like = {"input": tensors["input"], "grad_output": grad_output}[operator.gradient_like]
    assert_dense_like(actual["input"], like, "gradient of input")
    for name, gradient in actual.items():
        if name != "input" and gradient is not None:
            assert gradient.is_contiguous(), f"gradient of {name}: strides {gradient.stride()}"


def check(
    operator: Operator, tensors: Tensors, config: Config, grad_output: Tensor, exact: bool = False
) -> None:
    """Forward and backward."""
    check_forward(operator, tensors, config, exact)
    check_backward(operator, tensors, config, grad_output, exact)


def _compare(
    operator: Operator,
    actual: Gradients,
    reference: Callable[[Callable[[Tensor], Tensor]], Gradients],
    stock_context: contextlib.AbstractContextManager[None],
    exact: bool,
) -> None:
    """Compare named results with those of `reference`, a function of how to convert tensors."""
    dtype = next(result.dtype for result in actual.values() if result is not None)
    expected = reference(_exact)
    if not (exact and operator.exact):
        # Operators are polynomials with positive coefficients: absolute values in, sums of these out.
        magnitude = reference(lambda tensor: _exact(tensor).abs())
    if not exact:
        with stock_context:
            stock = reference(_dense)
    for name, result in actual.items():
        if expected[name] is None:
            assert result is None, f"{name}: expected none, got a tensor"
        elif exact and operator.exact:
            assert_exact(result, expected[name], dtype, name)
        elif exact:
            assert_near(result, expected[name], magnitude[name], dtype, name)
        else:
            assert_as_accurate_as_stock(result, stock[name], expected[name], magnitude[name], name)
