"""What torch.ops.sepconv needs beyond its kernels: fake kernels, autograd, autocast, vmap and flop formulas.

Importing this module registers them; it needs the compiled library to be loaded. Each section goes through
the operators in the same order: separable_conv2d, frozen_separable_conv2d, row_average, row_average_conv2d,
each before its backward.

Nothing has a double-backward kernel. Each convolution F is linear in each of its inputs (a weight taken
together with its bias), so that its differential is a sum of calls of F and the gradients of that
differential are calls of F's backward; the row average is linear, and its backward's backward is the row
average itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils.flop_counter import register_flop_formula

from sepconv import _checks

_ops = torch.ops.sepconv
_separable_conv2d = _ops.separable_conv2d.default
_separable_conv2d_backward = _ops.separable_conv2d_backward.default
_frozen_separable_conv2d = _ops.frozen_separable_conv2d.default
_row_average = _ops.row_average.default
_row_average_backward = _ops.row_average_backward.default
_row_average_conv2d = _ops.row_average_conv2d.default
_row_average_conv2d_backward = _ops.row_average_conv2d_backward.default

DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_BACKENDS = ("CPU", "CUDA")
_LEAST_CAPABILITY = (8, 0)  # of a GPU


def has_backend(backend: str) -> bool:
    """Whether the library has kernels for a dispatch key such as "CPU" or "CUDA"."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("sepconv::separable_conv2d", backend)


# Meta tensors, as FakeTensors, are served by the fake kernels.
DEVICES = frozenset({"meta", *(backend.lower() for backend in _BACKENDS if has_backend(backend))})


@functools.cache
def _capability(gpu: int) -> tuple[int, int]:
    """Asked once for each GPU: it stays as it is."""
    # Without any, tensors on one are fake.
    return torch.cuda.get_device_capability(gpu) if torch.cuda.is_available() else _LEAST_CAPABILITY


@torch.compiler.assume_constant_result
def _is_served(gpu: int) -> bool:
    """Whether the CUDA kernels were compiled for this GPU."""
    return _capability(gpu) >= _LEAST_CAPABILITY


def serves(input: Tensor) -> bool:
    """Whether there are kernels for tensors of this dtype on this device."""
    if input.dtype not in DTYPES or input.device.type not in DEVICES:
        return False
    return input.device.type != "cuda" or _is_served(input.get_device())


def has_kernel(input: Tensor) -> bool:
    """Whether the operators serve this tensor here and now; the reference serves everything else.

    Autograd registered from Python drops forward-mode tangents without a word and refuses torch.func's
    gradient transforms; vmap alone is served.
    """
    if not serves(input):
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    return not torch._C._are_functorch_transforms_active() or _only_vmap()


def _only_vmap() -> bool:
    if torch.compiler.is_compiling():  # dynamo cannot list the transforms
        return False
    functorch = torch._C._functorch
    return all(level.key() == functorch.TransformType.Vmap for level in functorch.get_interpreter_stack())


# --- Fake kernels ---------------------------------------------------------------------------------


def _empty(
    size: Sequence[int], dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device, memory_format=memory_format)


def _check_dtype(op: str, name: str, tensor: Tensor) -> None:
    _checks.Checks(op).require(
        tensor.dtype in DTYPES, f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}"
    )


def _fake_output(op: str, input: Tensor, size: Sequence[int]) -> Tensor:
    _check_dtype(op, "input", input)
    return _empty(size, input.dtype, input.device, suggest_memory_format(input))


def _fake_gradients(
    op: str,
    grad_output: Tensor,
    size: Sequence[int],
    input: Tensor,
    shapes: Sequence[Sequence[int]],
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients that `mask` asks for: the input's, first, in its memory format, others contiguous."""
    check = _checks.Checks(op)
    check.length("output_mask", mask, len(shapes))
    check.like_input("grad_output", grad_output, input)
    check.shape("grad_output", grad_output, size)
    formats = [suggest_memory_format(input)] + [torch.contiguous_format] * (len(shapes) - 1)
    return tuple(
        _empty(shape, input.dtype, input.device, memory_format) if wanted else None
        for shape, memory_format, wanted in zip(shapes, formats, mask, strict=True)
    )


@torch.library.register_fake("sepconv::separable_conv2d")
def _(
    input,
    depthwise_weight,
    pointwise_weight,
    depthwise_bias=None,
    pointwise_bias=None,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
):
    op = "separable_conv2d"
    size = _checks.separable_conv2d(
        op,
        input,
        depthwise_weight,
        pointwise_weight,
        depthwise_bias,
        pointwise_bias,
        stride,
        padding,
        dilation,
    )
    return _fake_output(op, input, size)


@torch.library.register_fake("sepconv::separable_conv2d_backward")
def _(
    grad_output,
    input,
    depthwise_weight,
    pointwise_weight,
    depthwise_bias,
    stride,
    padding,
    dilation,
    output_mask,
):
    op = "separable_conv2d_backward"
    size = _checks.separable_conv2d(
        op, input, depthwise_weight, pointwise_weight, depthwise_bias, None, stride, padding, dilation
    )
    depthwise, pointwise = depthwise_weight.shape, pointwise_weight.shape
    shapes = (input.shape, depthwise, pointwise, depthwise[:1], pointwise[:1])
    return _fake_gradients(op, grad_output, size, input, shapes, output_mask)


@torch.library.register_fake("sepconv::pack_separable_conv2d")
def _(depthwise_weight, pointwise_weight):
    op = "pack_separable_conv2d"
    _checks.pack_separable_conv2d(op, depthwise_weight, pointwise_weight)
    _check_dtype(op, "depthwise_weight", depthwise_weight)
    # The layout is the kernels' own business: they are asked. Sizes of weights are plain numbers then.
    sizes = [int(size) for size in (*depthwise_weight.shape, pointwise_weight.shape[0])]
    middle, _, height, width, out_channels = sizes
    size = _ops.packed_bytes_of_separable_conv2d(
        middle, out_channels, [height, width], depthwise_weight.dtype
    )
    return torch.empty(size, dtype=torch.uint8, device=depthwise_weight.device)


@torch.library.register_fake("sepconv::frozen_separable_conv2d")
def _(
    input,
    packed,
    depthwise_bias,
    pointwise_bias,
    residual,
    out_channels,
    depth_multiplier,
    kernel_size,
    stride,
    padding,
    dilation,
    prologue_activation=0,
    middle_activation=0,
    activation=0,
):
    op = "frozen_separable_conv2d"
    size = _checks.frozen_separable_conv2d(
        op,
        input,
        packed,
        depthwise_bias,
        pointwise_bias,
        residual,
        out_channels,
        depth_multiplier,
        kernel_size,
        stride,
        padding,
        dilation,
        (prologue_activation, middle_activation, activation),
    )
    return _fake_output(op, input, size)


@torch.library.register_fake("sepconv::row_average")
def _(input, stride=1):
    return _fake_output("row_average", input, _checks.row_average("row_average", input, stride))


@torch.library.register_fake("sepconv::row_average_backward")
def _(grad_output, height, stride):
    op = "row_average_backward"
    return _fake_output(op, grad_output, _checks.row_average_backward(op, grad_output, height, stride))


@torch.library.register_fake("sepconv::row_average_conv2d")
def _(input, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), row_stride=1):
    op = "row_average_conv2d"
    size = _checks.row_average_conv2d(op, input, weight, bias, stride, padding, dilation, row_stride)
    return _fake_output(op, input, size)


@torch.library.register_fake("sepconv::row_average_conv2d_backward")
def _(grad_output, input, weight, stride, padding, dilation, row_stride, output_mask):
    op = "row_average_conv2d_backward"
    size = _checks.row_average_conv2d(op, input, weight, None, stride, padding, dilation, row_stride)
    shapes = (input.shape, weight.shape, weight.shape[:1])
    return _fake_gradients(op, grad_output, size, input, shapes, output_mask)


# --- Autograd -------------------------------------------------------------------------------------


def _wanted(ctx: Any, count: int) -> list[bool]:
    """Which of the first `count` arguments need a gradient.

    The dispatcher drops trailing arguments that equal their default; needs_input_grad has no entry for them.
    """
    wanted = list(ctx.needs_input_grad[:count])
    return wanted + [False] * (count - len(wanted))


def _layout(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device, torch.memory_format]:
    return tensor.shape, tensor.dtype, tensor.device, suggest_memory_format(tensor)


def _save(ctx: Any, tensors: Sequence[Tensor | None], read: Sequence[bool]) -> None:
    """Save the tensors that the backward reads, and of the others what it takes to allocate their like."""
    ctx.save_for_backward(*(tensor if used else None for tensor, used in zip(tensors, read, strict=True)))
    ctx.unread = [
        None if used or tensor is None else _layout(tensor)
        for tensor, used in zip(tensors, read, strict=True)
    ]


def _saved(ctx: Any) -> list[Tensor | None]:
    """The tensors that _save saw; the unread ones as memory that nobody writes or reads."""
    return [
        tensor if unread is None else _empty(*unread)
        for tensor, unread in zip(ctx.saved_tensors, ctx.unread, strict=True)
    ]


def _add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    return term if total is None else total if term is None else total + term


def _double_backward(
    forward: Callable[..., Tensor],
    backward: Callable[..., Sequence[Tensor | None]],
    grad_output: Tensor,
    inputs: Sequence[Tensor | None],
    terms: Sequence[Sequence[Tensor | None]],
    grad_grad_bias: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of <u, backward(grad_output)> with respect to grad_output and the inputs.

    With F the forward and u the incoming gradients, <u, backward(grad_output)> = <grad_output, dF(u)>, where
    dF is the sum over `terms` of F with one input replaced by its u, plus u of the last, additive bias.
    """
    of_output: Tensor | None = None
    of_inputs: list[Tensor | None] = [None] * len(inputs)
    for term in terms:
        if wanted[0]:
            of_output = _add(of_output, forward(*term))
        # An input gets a gradient from the terms that it stands in itself.
        mask = [
            need and value is not None and value is own
            for need, value, own in zip(wanted[1:], term, inputs, strict=True)
        ]
        if any(mask):
            of_inputs = list(map(_add, of_inputs, backward(grad_output, *term, mask=mask)))
    if wanted[0] and grad_grad_bias is not None:
        of_output = _add(of_output, grad_grad_bias.view(1, -1, 1, 1).expand_as(grad_output))
    return [of_output, *of_inputs]


def _setup_separable_conv2d(ctx, inputs, output):
    input, depthwise_weight, pointwise_weight, depthwise_bias, _, *ctx.window = inputs
    of_input, of_depthwise, of_pointwise, of_depthwise_bias, _ = _wanted(ctx, 5)
    tensors = (input, depthwise_weight, pointwise_weight, depthwise_bias)
    read = (
        of_depthwise or of_pointwise,
        of_input or of_pointwise,
        of_input or of_depthwise or of_depthwise_bias,
        of_pointwise,
    )
    _save(ctx, tensors, read)


def _backward_separable_conv2d(ctx, grad_output):
    gradients = _separable_conv2d_backward(grad_output, *_saved(ctx), *ctx.window, _wanted(ctx, 5))
    return *gradients, None, None, None


def _setup_separable_conv2d_backward(ctx, inputs, output):
    grad_output, *tensors, stride, padding, dilation, mask = inputs
    ctx.window = stride, padding, dilation
    ctx.set_materialize_grads(False)
    # The differential in the direction of input alone reads the weights only.
    _save(ctx, (grad_output, *tensors), (True, any(mask[1:4]), True, True, True))


def _double_backward_separable_conv2d(
    ctx, u_input, u_depthwise, u_pointwise, u_depthwise_bias, u_pointwise_bias
):
    grad_output, *inputs = _saved(ctx)
    input, depthwise_weight, pointwise_weight, depthwise_bias = inputs
    terms = []
    if u_input is not None:
        terms.append((u_input, depthwise_weight, pointwise_weight, None))
    if u_depthwise is not None or u_depthwise_bias is not None:
        u_weight = torch.zeros_like(depthwise_weight) if u_depthwise is None else u_depthwise
        terms.append((input, u_weight, pointwise_weight, u_depthwise_bias))
    if u_pointwise is not None:
        terms.append((input, depthwise_weight, u_pointwise, depthwise_bias))
    gradients = _double_backward(
        lambda *term: _separable_conv2d(*term, None, *ctx.window),
        lambda grad, *term, mask: _separable_conv2d_backward(grad, *term, *ctx.window, [*mask, False])[:4],
        grad_output,
        inputs,
        terms,
        u_pointwise_bias,
        _wanted(ctx, 5),
    )
    return *gradients, None, None, None, None


def _refuse_gradient(ctx, inputs, output):
    raise RuntimeError(
        "frozen_separable_conv2d: there is no gradient, and an argument requires one; call it under "
        "torch.no_grad() or torch.inference_mode(), or train with sepconv.SeparableConv2d"
    )


def _backward_frozen_separable_conv2d(ctx, grad_output):
    raise AssertionError("never called: _refuse_gradient lets no graph be recorded")


def _setup_row_average(ctx, inputs, output):
    input, ctx.stride = inputs
    ctx.height = input.shape[2]


def _backward_row_average(ctx, grad_output):
    return _row_average_backward(grad_output, ctx.height, ctx.stride), None


def _setup_row_average_backward(ctx, inputs, output):
    _, _, ctx.stride = inputs


def _double_backward_row_average(ctx, u_input):
    return _row_average(u_input, ctx.stride), None, None


def _setup_row_average_conv2d(ctx, inputs, output):
    input, weight, _, *ctx.window = inputs
    of_input, of_weight, _ = _wanted(ctx, 3)
    _save(ctx, (input, weight), (of_weight, of_input))


def _backward_row_average_conv2d(ctx, grad_output):
    gradients = _row_average_conv2d_backward(grad_output, *_saved(ctx), *ctx.window, _wanted(ctx, 3))
    return *gradients, None, None, None, None


def _setup_row_average_conv2d_backward(ctx, inputs, output):
    grad_output, input, weight, *ctx.window, mask = inputs
    ctx.set_materialize_grads(False)
    _save(ctx, (grad_output, input, weight), (True, mask[1], True))


def _double_backward_row_average_conv2d(ctx, u_input, u_weight, u_bias):
    grad_output, input, weight = _saved(ctx)
    terms = []
    if u_input is not None:
        terms.append((u_input, weight))
    if u_weight is not None:
        terms.append((input, u_weight))
    gradients = _double_backward(
        lambda *term: _row_average_conv2d(*term, None, *ctx.window),
        lambda grad, *term, mask: _row_average_conv2d_backward(grad, *term, *ctx.window, [*mask, False])[:2],
        grad_output,
        (input, weight),
        terms,
        u_bias,
        _wanted(ctx, 3),
    )
    return *gradients, None, None, None, None, None


for _name, _backward, _setup in (
    ("separable_conv2d", _backward_separable_conv2d, _setup_separable_conv2d),
    ("separable_conv2d_backward", _double_backward_separable_conv2d, _setup_separable_conv2d_backward),
    ("frozen_separable_conv2d", _backward_frozen_separable_conv2d, _refuse_gradient),
    ("row_average", _backward_row_average, _setup_row_average),
    ("row_average_backward", _double_backward_row_average, _setup_row_average_backward),
    ("row_average_conv2d", _backward_row_average_conv2d, _setup_row_average_conv2d),
    ("row_average_conv2d_backward", _double_backward_row_average_conv2d, _setup_row_average_conv2d_backward),
):
    torch.library.register_autograd(f"sepconv::{_name}", _backward, setup_context=_setup)


# --- vmap -----------------------------------------------------------------------------------------


def _vmap_by_loop(op: Callable[..., Any], info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> Any:
    """One call a sample, for batched weights and for gradients of weights, which are sums over a sample."""

    def pick(argument: Any, dim: Any, index: int) -> Any:
        return argument.select(dim, index) if isinstance(dim, int) else argument

    samples = [
        op(*(pick(argument, dim, index) for argument, dim in zip(args, in_dims, strict=True)))
        for index in range(info.batch_size)
    ]
    if isinstance(samples[0], Tensor):
        return torch.stack(samples), 0
    outputs = [None if parts[0] is None else torch.stack(parts) for parts in zip(*samples, strict=True)]
    return tuple(outputs), tuple(None if output is None else 0 for output in outputs)


def _vmap_by_batch(op: Callable[..., Tensor], image: Tensor, dim: int, *args: Any) -> tuple[Tensor, int]:
    """One call for all samples: the vmapped dimension joins the batch."""
    image = image.movedim(dim, 0)
    return op(image.flatten(0, 1), *args).unflatten(0, image.shape[:2]), 0


def _vmap_forward(op: Callable[..., Tensor]) -> Callable[..., Any]:
    def rule(info, in_dims, input, *args):
        if not any(isinstance(dim, int) for dim in in_dims[1:]):
            return _vmap_by_batch(op, input, in_dims[0], *args)
        return _vmap_by_loop(op, info, in_dims, (input, *args))

    return rule


def _vmap_frozen_separable_conv2d(info, in_dims, *args):
    *_, residual = args[:5]
    if residual is None:
        return _vmap_forward(_frozen_separable_conv2d)(info, in_dims, *args)
    return _vmap_by_loop(_frozen_separable_conv2d, info, in_dims, args)


def _vmap_backward(op: Callable[..., Any]) -> Callable[..., Any]:
    def rule(info, in_dims, *args):
        return _vmap_by_loop(op, info, in_dims, args)

    return rule


for _name, _rule in (
    ("separable_conv2d", _vmap_forward(_separable_conv2d)),
    ("separable_conv2d_backward", _vmap_backward(_separable_conv2d_backward)),
    ("frozen_separable_conv2d", _vmap_frozen_separable_conv2d),
    ("row_average", _vmap_forward(_row_average)),
    ("row_average_backward", _vmap_forward(_row_average_backward)),
    ("row_average_conv2d", _vmap_forward(_row_average_conv2d)),
    ("row_average_conv2d_backward", _vmap_backward(_row_average_conv2d_backward)),
):
    torch.library.register_vmap(f"sepconv::{_name}", _rule)


# --- Autocast -------------------------------------------------------------------------------------

_library = torch.library.Library("sepconv", "IMPL")


def _register_autocast(op: Callable[..., Tensor], name: str, backend: str) -> None:
    """Cast as torch's own convolutions: floating tensors but float64, to the dtype active at the call."""
    device = backend.lower()
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{backend}"))

    def cast(value: Any, dtype: torch.dtype) -> Any:
        eligible = (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.dtype != torch.float64
            and value.device.type == device
        )
        return value.to(dtype) if eligible else value

    def run(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(key):
            return op(*(cast(arg, dtype) for arg in args))

    _library.impl(name, run, f"Autocast{backend}")


# The row average keeps its input's dtype, as torch's pooling does.
for _backend in _BACKENDS:
    _register_autocast(_separable_conv2d, "separable_conv2d", _backend)
    _register_autocast(_row_average_conv2d, "row_average_conv2d", _backend)


# --- Flop formulas --------------------------------------------------------------------------------
# As torch counts its own convolutions: two for a multiply-add, nothing for biases and averages, and padding
# counted as pixels.


def _convolution_flops(out_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    batch, _, height, width = out_shape
    return 2 * batch * height * width * prod(weight_shape)


@register_flop_formula(_ops.separable_conv2d)
def _(input, depthwise_weight, pointwise_weight, *args, out_shape=None, **kwargs) -> int:
    return _convolution_flops(out_shape, depthwise_weight) + _convolution_flops(out_shape, pointwise_weight)


@register_flop_formula(_ops.separable_conv2d_backward)
def _(grad_output, input, depthwise_weight, pointwise_weight, *args, out_shape=None, **kwargs) -> int:
    of_input, of_depthwise, of_pointwise, of_depthwise_bias, _ = args[-1]
    depthwise = _convolution_flops(grad_output, depthwise_weight)
    pointwise = _convolution_flops(grad_output, pointwise_weight)
    # The gradient of the depthwise output feeds three others; that output is recomputed for the last.
    through_pointwise = of_input or of_depthwise or of_depthwise_bias
    depthwise_calls = of_input + of_depthwise + of_pointwise
    return depthwise_calls * depthwise + (through_pointwise + of_pointwise) * pointwise


@register_flop_formula(_ops.frozen_separable_conv2d)
def _(input, packed, *args, out_shape=None, **kwargs) -> int:
    _, _, _, out_channels, depth_multiplier, kernel_size, *_ = args
    middle = input[1] * depth_multiplier
    return sum(_convolution_flops(out_shape, w) for w in ((middle, *kernel_size), (out_channels, middle)))


@register_flop_formula(_ops.row_average_conv2d)
def _(input, weight, *args, out_shape=None, **kwargs) -> int:
    return _convolution_flops(out_shape, weight)


@register_flop_formula(_ops.row_average_conv2d_backward)
def _(grad_output, input, weight, *args, out_shape=None, **kwargs) -> int:
    of_input, of_weight, _ = args[-1]
    return _convolution_flops(grad_output, weight) * (of_input + of_weight)
