"""Convolutions and batch norms in a row, trained as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sepconv import _loader, reference
from sepconv._checks import Checks, autocasts, pair
from sepconv._types import Pair

__all__ = ["ChainUnit", "conv_chain"]

if _loader.load().loaded:
    from sepconv.ops import serves
else:

    def serves(input: Tensor) -> bool:
        return False


# Those whose derivative is a mask, in the order of the numbers that the operator knows them by.
ACTIVATIONS = tuple(reference.ACTIVATIONS)[:3]
_DEPTHWISE, _POINTWISE = 1, 2

_ops = torch.ops.sepconv


@dataclass(frozen=True, slots=True)
class ChainUnit:
    """One unit of :func:`conv_chain`: [activation →] convolution → batch norm with the batch's statistics.

    Args:
        weight, bias: batch norm's, (C_out,), float32 (float64 with an input of float64).
        depthwise_weight: (C_in * m, 1, kh, kw), or None.
        pointwise_weight: (C_out, C_in * m, 1, 1), or None. With both, a separable convolution; with neither,
            which only the first unit may have, batch norm alone.
        activation: what comes before the convolution: None, ``'relu'`` or ``'relu6'``.
        stride, padding, dilation: of the depthwise convolution, or else of the pointwise one.
        running_mean, running_var: (C_out,), updated; or both None.
        num_batches_tracked: counts batches, an int64 of one element; or None.
        eps, momentum: batch norm's.
    """

    weight: Tensor
    bias: Tensor
    depthwise_weight: Tensor | None = None
    pointwise_weight: Tensor | None = None
    activation: str | None = None
    stride: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches_tracked: Tensor | None = None
    eps: float = 1e-5
    momentum: float = 0.1


class _Plan(NamedTuple):
    """What the operator takes beside tensors; see its schema."""

    kinds: list[int]
    activations: list[int]
    windows: list[int]
    activation: int


def conv_chain(input: Tensor, units: Sequence[ChainUnit], activation: str | None = None) -> Tensor:
    """Units of [activation →] convolution → batch norm one after another, then an activation, for training.

    Equal, up to rounding, to the convolutions, ``batch_norm(..., training=True)`` and activations called one
    by one, but neither batch norms nor activations make passes of their own where a convolution follows:
    results of convolutions are kept raw, and normalised when the next one loads them. Saved for the backward
    are the input and the raw results; the last one only where it takes no more memory than four times the
    weights of its convolution, as training has for these (themselves, the gradient, an optimizer's moments),
    else it is computed again. The input must not change in place before the backward, not even where the
    chain begins with an activation.

    Under autocast the input and the convolutions' weights are cast; a chain that begins with a batch norm by
    itself stays in the dtype of its input.

    Args:
        input: (N, C, H, W), N at least 1 and more than one value a channel everywhere; channels_last is the
            layout of the kernels, any other works. float32, float64, bfloat16 or float16.
        units: at least one :class:`ChainUnit`.
        activation: what comes after the last unit: None, ``'relu'`` or ``'relu6'``.

    Returns:
        (N, C_out, H', W') of the last unit, in the memory format of ``input``.

    Raises:
        RuntimeError: a shape, dtype, device or number does not fit; the message names the argument, what it
            got and what it wanted.

    The batch norm is that of Ioffe and Szegedy (arXiv 1502.03167). That its backward needs nothing of its
    forward but what can be computed again is used as in Rota Bulò et al., "In-Place Activated BatchNorm"
    (arXiv 1712.02616).

    Example:
        >>> import torch, sepconv
        >>> unit = sepconv.ChainUnit(
        ...     weight=torch.ones(16),
        ...     bias=torch.zeros(16),
        ...     depthwise_weight=torch.randn(8, 1, 3, 3),
        ...     pointwise_weight=torch.randn(16, 8, 1, 1),
        ...     activation="relu",
        ...     padding=1,
        ... )
        >>> sepconv.conv_chain(torch.randn(2, 8, 5, 5), [unit]).shape
        torch.Size([2, 16, 5, 5])
    """
    name = "conv_chain"
    Checks(name).require(len(units) > 0, "units must have at least one element, got none")
    if not has_kernel(input):
        _check_activations(name, units, activation)
        return reference.conv_chain(input, units, activation)
    dtype = None
    if autocasts(input) and input.dtype != torch.float64:
        wanted = torch.get_autocast_dtype(input.device.type)
        if not _is_norm(units[0]) or input.dtype == wanted:
            dtype = wanted
            input = input.to(dtype)
    plan = _Plan([], [], [], _number(name, "activation", activation))
    parameters: list[Tensor] = []
    running: list[Tensor] = []
    eps, momentum = [], []
    for unit in units:
        kind = 0
        for bit, weight in (_DEPTHWISE, unit.depthwise_weight), (_POINTWISE, unit.pointwise_weight):
            if weight is not None:
                kind |= bit
                parameters.append(weight if dtype is None else weight.to(dtype))
        parameters += unit.weight, unit.bias
        plan.kinds.append(kind)
        plan.activations.append(_number(name, "activation of a unit", unit.activation))
        plan.windows.extend((*pair(unit.stride), *pair(unit.padding), *pair(unit.dilation)))
        running += map(_or_empty, (unit.running_mean, unit.running_var, unit.num_batches_tracked))
        eps.append(unit.eps)
        momentum.append(unit.momentum)
    if torch.is_grad_enabled() and (input.requires_grad or any(p.requires_grad for p in parameters)):
        return _ConvChain.apply(plan, running, eps, momentum, input, *parameters)
    return _forward(plan, running, eps, momentum, input, parameters, keep=False)[0]


def has_kernel(input: Tensor) -> bool:
    """Whether the operator serves this tensor here and now; the reference serves everything else.

    It has no rules for tracing, transforms and forward-mode differentiation: separate layers do.
    """
    return (
        type(input) is Tensor
        and not input.is_meta
        and serves(input)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


_NOTHING = torch.empty(0, device="cpu")


def _plain(tensor: Tensor) -> bool:
    """Whether the operator can read it: autograd's own batches are of a kind that looks like any tensor."""
    return not (
        type(tensor) is not Tensor
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def _without_autocast(input: Tensor) -> AbstractContextManager[object]:
    """What the operator calls of torch's own must not be cast again: its dtype is decided."""
    return torch.autocast(input.device.type, enabled=False) if autocasts(input) else nullcontext()


def _is_norm(unit: ChainUnit) -> bool:
    return unit.depthwise_weight is None and unit.pointwise_weight is None


def _or_empty(tensor: Tensor | None) -> Tensor:
    return _NOTHING if tensor is None else tensor


def _number(name: str, argument: str, activation: str | None) -> int:
    if activation not in ACTIVATIONS:
        Checks(name).require(False, f"{argument} must be None, 'relu' or 'relu6', got {activation!r}")
    return ACTIVATIONS.index(activation)


def _check_activations(name: str, units: Sequence[ChainUnit], activation: str | None) -> None:
    _number(name, "activation", activation)
    for unit in units:
        _number(name, "activation of a unit", unit.activation)


def _forward(
    plan: _Plan,
    running: list[Tensor],
    eps: list[float],
    momentum: list[float],
    input: Tensor,
    parameters: Sequence[Tensor],
    keep: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    with _without_autocast(input):
        return _ops.conv_chain.default(
            input, parameters, running, *plan[:3], eps, momentum, plan.activation, keep
        )


class _ConvChain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        plan: _Plan,
        running: list[Tensor],
        eps: list[float],
        momentum: list[float],
        input: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        output, raws, statistics = _forward(plan, running, eps, momentum, input, parameters, keep=True)
        ctx.plan, ctx.eps = plan, eps
        ctx.save_for_backward(input, statistics, *parameters, *raws)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        wanted = list(ctx.needs_input_grad[4:])
        count = len(wanted) - 1
        input, statistics, *tensors = ctx.saved_tensors
        parameters, raws = tensors[:count], tensors[count:]
        if torch.is_grad_enabled() or not _plain(grad_output):
            gradients = _differentiable_backward(ctx, grad_output, input, parameters, wanted)
        else:
            with _without_autocast(input):
                gradients = _ops.conv_chain_backward.default(
                    grad_output, input, parameters, raws, statistics, *plan, wanted
                )
        results = iter(gradients)
        return None, None, None, None, *(next(results) if want else None for want in wanted)


def _differentiable_backward(
    ctx: Any, grad_output: Tensor, input: Tensor, parameters: list[Tensor], wanted: list[bool]
) -> Sequence[Tensor]:
    """Gradients that can be differentiated again, or are batched: torch's own, of the layers one by one."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(input.device.type, enabled=False):
        # Aliases, so that only the chain lies between them and the output: a parameter may occur twice, and
        # the input may depend on another source.
        input, *parameters = (tensor.view_as(tensor) for tensor in (input, *parameters))
        output = reference.conv_chain(input, _units(ctx, parameters), ACTIVATIONS[ctx.plan.activation])
        sources = [tensor for tensor, want in zip((input, *parameters), wanted, strict=True) if want]
        return torch.autograd.grad(output, sources, grad_output, create_graph=create_graph)


def _units(ctx: Any, parameters: Sequence[Tensor]) -> list[ChainUnit]:
    """The units of a call that was recorded, with these parameters and without running statistics."""
    remaining = iter(parameters)
    units = []
    for i, kind in enumerate(ctx.plan.kinds):
        depthwise, pointwise = (next(remaining) if kind & bit else None for bit in (_DEPTHWISE, _POINTWISE))
        window = ctx.plan.windows[6 * i : 6 * (i + 1)]
        units.append(
            ChainUnit(
                next(remaining),
                next(remaining),
                depthwise,
                pointwise,
                ACTIVATIONS[ctx.plan.activations[i]],
                tuple(window[:2]),
                tuple(window[2:4]),
                tuple(window[4:]),
                eps=ctx.eps[i],
            )
        )
    return units
