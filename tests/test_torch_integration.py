"""The operators behave as torch's own: under compile, export, torch.func, autocast, vmap, and profilers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from operators import OPERATORS
from samples import LAYOUTS
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import sepconv
from sepconv import reference

ops = torch.ops.sepconv
FORMATS = (torch.contiguous_format, torch.channels_last)
WINDOW = ([2, 1], [1, 2], [1, 2])


class RecordedOps(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.append(function._schema.name)
        return function(*arguments, **(keywords or {}))

    def ran(self, name: str) -> bool:
        return f"sepconv::{name}" in self.names


class Function(NamedTuple):
    """A public function beside the reference; `make` gives the tensors it differentiates, input first."""

    name: str
    call: Callable[..., Tensor]
    stock: Callable[..., Tensor]
    make: Callable[..., list[Tensor]]

    def __str__(self) -> str:
        return self.name


def _random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _make(*shapes: tuple[int, ...]) -> Callable[..., list[Tensor]]:
    def make(dtype=torch.float64, memory_format=torch.contiguous_format, size=(2, 5, 6), grad=True):
        batch, height, width = size
        tensors = [_random(batch, 3, height, width, dtype=dtype, seed=0).to(memory_format=memory_format)]
        tensors += [_random(*shape, dtype=dtype, seed=1 + seed) for seed, shape in enumerate(shapes)]
        return [tensor.requires_grad_(grad) for tensor in tensors]

    return make


def _with(function: Callable[..., Tensor], *config: Any) -> Callable[..., Tensor]:
    return lambda *tensors: function(*tensors, *config)


FUNCTIONS = (
    Function(
        "separable_conv2d",
        _with(sepconv.separable_conv2d, *WINDOW),
        _with(reference.separable_conv2d, *WINDOW),
        _make((6, 1, 3, 3), (4, 6, 1, 1), (6,), (4,)),
    ),
    Function("row_average", _with(sepconv.row_average, 2), _with(reference.row_average, 2), _make()),
    Function(
        "row_average_conv2d",
        _with(sepconv.row_average_conv2d, *WINDOW, 2),
        _with(reference.row_average_conv2d, *WINDOW, 2),
        _make((4, 3, 2, 3), (4,)),
    ),
)
CONVOLUTIONS = (FUNCTIONS[0], FUNCTIONS[2])
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=str)
every_convolution = pytest.mark.parametrize("function", CONVOLUTIONS, ids=str)
every_format = pytest.mark.parametrize("memory_format", FORMATS, ids=str)


def _gradients(output: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    grad_output = _random(*output.shape, dtype=output.dtype, seed=99)
    return torch.autograd.grad(output, tensors, grad_output)


# --- opcheck, trailing arguments ------------------------------------------------------------------


def _opcheck_samples() -> Iterator[tuple[str, torch.memory_format, tuple[Any, ...]]]:
    """(operator, memory format, arguments), with every combination of biases, and every mask that matters."""
    separable, row, row_conv = FUNCTIONS
    for memory_format in FORMATS:
        x, dw, pw, db, pb = separable.make(torch.float32, memory_format)
        for first, second in product((db, None), (pb, None)):
            yield "separable_conv2d", memory_format, (x, dw, pw, first, second, *WINDOW)
        yield "separable_conv2d", memory_format, (x, dw, pw)
        grad = torch.randn_like(separable.call(x, dw, pw, db, pb)).requires_grad_()
        for mask in ([True] * 5, [True, False, False, False, False], [False, True, True, True, True]):
            yield "separable_conv2d_backward", memory_format, (grad, x, dw, pw, db, *WINDOW, mask)
        without_biases = [True, True, True, False, False]
        yield "separable_conv2d_backward", memory_format, (grad, x, dw, pw, None, *WINDOW, without_biases)

        x, dw, pw, db, pb = separable.make(torch.float32, memory_format, grad=False)
        yield "pack_separable_conv2d", memory_format, (dw, pw)
        window = ([3, 3], *WINDOW)
        residual = torch.randn_like(separable.call(x, dw, pw, db, pb))
        frozen = (x, ops.pack_separable_conv2d(dw, pw), db, pb, residual, 4, 2, *window, 1, 2, 3)
        yield "frozen_separable_conv2d", memory_format, frozen
        yield "frozen_separable_conv2d", memory_format, (*frozen[:2], None, None, None, 4, 2, *window)

        (x,) = row.make(torch.float32, memory_format)
        yield "row_average", memory_format, (x,)
        yield "row_average", memory_format, (x, 2)
        grad = torch.randn_like(row.call(x)).requires_grad_()
        yield "row_average_backward", memory_format, (grad, x.shape[2], 2)

        x, w, b = row_conv.make(torch.float32, memory_format)
        yield "row_average_conv2d", memory_format, (x, w)
        yield "row_average_conv2d", memory_format, (x, w, b, *WINDOW, 2)
        grad = torch.randn_like(row_conv.call(x, w, b)).requires_grad_()
        for mask in ([True] * 3, [True, False, False], [False, True, True]):
            yield "row_average_conv2d_backward", memory_format, (grad, x, w, *WINDOW, 2, mask)


def _id(sample: tuple[str, torch.memory_format, tuple[Any, ...]]) -> str:
    name, memory_format, arguments = sample
    given = "".join("-" if argument is None else "x" for argument in arguments)
    mask = (
        "".join(str(int(wanted)) for wanted in arguments[-1])
        if name.endswith("backward") and len(given) > 3
        else ""
    )
    return f"{name}-{str(memory_format).removeprefix('torch.')}-{given}{mask}"


# An autograd.Function calls them, and never while something traces; test_conv_chain.py checks their schemas.
UNTRACED = {"conv_chain", "conv_chain_backward"}


def test_every_operator_with_tensors_is_opchecked():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sepconv::")}
    with_tensors = {
        name.removeprefix("sepconv::")
        for name in names
        if any(
            "Tensor" in str(a.type)
            for a in getattr(ops, name.removeprefix("sepconv::")).default._schema.arguments
        )
    }
    assert with_tensors - UNTRACED == {name for name, _, _ in _opcheck_samples()}


@pytest.mark.parametrize("sample", list(_opcheck_samples()), ids=_id)
def test_opcheck(sample):
    name, _, arguments = sample
    torch.library.opcheck(getattr(ops, name).default, arguments)


@pytest.mark.parametrize("count", range(3, 9))
def test_separable_conv2d_takes_any_number_of_trailing_arguments(count):
    x, dw, pw, db, pb = FUNCTIONS[0].make()
    arguments = (x, dw, pw, db, pb, *WINDOW)[:count]
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    actual, expected = ops.separable_conv2d(*arguments), reference.separable_conv2d(*arguments)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(_gradients(actual, tensors), _gradients(expected, tensors))


@pytest.mark.parametrize("count", range(2, 8))
def test_row_average_conv2d_takes_any_number_of_trailing_arguments(count):
    x, w, b = FUNCTIONS[2].make()
    arguments = (x, w, b, *WINDOW, 2)[:count]
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    actual, expected = ops.row_average_conv2d(*arguments), reference.row_average_conv2d(*arguments)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(_gradients(actual, tensors), _gradients(expected, tensors))


# --- Fake kernels ---------------------------------------------------------------------------------

SHAPES = (
    (2, 3, 5, 6),
    (2, 1, 5, 6),
    (2, 3, 1, 1),
    (1, 1, 1, 1),
    (2, 3, 1, 6),
    (1, 8, 4, 1),
    (0, 3, 5, 5),
    (3, 1, 4, 4),
)


def _layout_of(result: Any) -> Any:
    """Shape, strides and dtype of each tensor of a result."""
    if isinstance(result, Tensor):
        return tuple(result.shape), result.stride(), result.dtype
    return None if result is None else [_layout_of(part) for part in result]


def _assert_fake_is_real(op: Callable[..., Any], *arguments: Any) -> None:
    real = op(*arguments)
    mode = FakeTensorMode()
    with mode:
        fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
    assert _layout_of(fake) == _layout_of(real)
    on_meta = op(*(_on_meta(a) if isinstance(a, Tensor) else a for a in arguments))
    assert _layout_of(on_meta) == _layout_of(real)


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_tensors_have_the_strides_of_real_ones(layout, shape):
    x = LAYOUTS[layout](torch.randn(shape))
    channels = x.shape[1]
    for memory_format, out_channels in product(FORMATS, (1, 4)):
        depthwise = torch.randn(channels, 1, 1, 1)
        pointwise = torch.randn(out_channels, channels, 1, 1)
        window = ([1, 1], [0, 0], [1, 1])
        _assert_fake_is_real(ops.separable_conv2d, x, depthwise, pointwise)
        grad = torch.randn(shape[0], out_channels, *shape[2:]).to(memory_format=memory_format)
        _assert_fake_is_real(
            ops.separable_conv2d_backward, grad, x, depthwise, pointwise, None, *window, [True] * 5
        )
        weight = torch.randn(out_channels, channels, 1, 1)
        _assert_fake_is_real(ops.row_average_conv2d, x, weight)
        _assert_fake_is_real(ops.row_average_conv2d_backward, grad, x, weight, *window, 1, [True] * 3)
    for stride in (1, 2):
        _assert_fake_is_real(ops.row_average, x, stride)
    _assert_fake_is_real(ops.row_average_backward, x, 2 * x.shape[2], 2)


# --- Autograd -------------------------------------------------------------------------------------


@every_function
def test_nothing_but_inputs_is_saved(function):
    tensors = function.make()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.data_ptr()), lambda _: None
    ):
        function.call(*tensors)
    assert set(saved) <= {tensor.data_ptr() for tensor in tensors}


@every_convolution
def test_the_input_is_not_saved_for_frozen_weights(function):
    input, *weights = function.make(grad=False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.data_ptr()), lambda _: None
    ):
        output = function.call(input.requires_grad_(), *weights)
    assert output.requires_grad
    assert saved and input.data_ptr() not in saved


@every_convolution
def test_the_gradient_of_the_input_does_not_read_the_input(function):
    input, *weights = function.make(grad=False)
    expected = _gradients(function.stock(input.requires_grad_(), *weights), [input])
    unreadable = torch.full_like(input, torch.nan).requires_grad_()
    torch.testing.assert_close(_gradients(function.call(unreadable, *weights), [unreadable]), expected)


@every_convolution
def test_gradients_of_gradients_for_every_subset_of_inputs(function):
    tensors = function.make(size=(1, 3, 4), grad=False)
    for wanted in product((False, True), repeat=len(tensors)):
        if any(wanted):
            chosen = [tensor.detach().requires_grad_(w) for tensor, w in zip(tensors, wanted, strict=True)]
            assert torch.autograd.gradcheck(function.call, chosen, fast_mode=True)
            assert torch.autograd.gradgradcheck(function.call, chosen, fast_mode=True)


@every_function
@every_format
def test_an_expanded_gradient_is_taken(function, memory_format):
    tensors = function.make(memory_format=memory_format)
    actual = torch.autograd.grad(function.call(*tensors).sum(), tensors)
    expected = torch.autograd.grad(function.stock(*tensors).sum(), tensors)
    torch.testing.assert_close(actual, expected)


@every_function
def test_no_graph_is_recorded_without_need(function):
    assert function.call(*function.make(grad=False)).grad_fn is None
    with torch.no_grad():
        assert function.call(*function.make()).grad_fn is None
    with torch.inference_mode():
        assert function.call(*function.make()).is_inference()


# --- Forward mode and torch.func ------------------------------------------------------------------


@every_function
def test_forward_mode_has_stock_tangents(function):
    tensors = function.make(grad=False)
    tangents = [torch.randn_like(tensor) for tensor in tensors]

    def tangent_of(call: Callable[..., Tensor]) -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            duals = map(torch.autograd.forward_ad.make_dual, tensors, tangents)
            return torch.autograd.forward_ad.unpack_dual(call(*duals)).tangent

    torch.testing.assert_close(tangent_of(function.call), tangent_of(function.stock))


@every_function
def test_forward_mode_passes_gradcheck(function):
    assert torch.autograd.gradcheck(
        function.call,
        function.make(size=(1, 3, 4)),
        check_forward_ad=True,
        check_batched_grad=True,
        fast_mode=True,
    )


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f: torch.func.grad(lambda *t: f(*t).square().sum()),
    "grad_of_grad": lambda f: torch.func.grad(
        lambda *t: torch.func.grad(lambda *u: f(*u).square().sum())(*t).square().sum()
    ),
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "hessian": lambda f: torch.func.hessian(lambda *t: f(*t).square().sum()),
    "jvp": lambda f: lambda *t: torch.func.jvp(f, t, tuple(map(torch.ones_like, t))),
    "vjp": lambda f: lambda *t: torch.func.vjp(f, *t)[1](torch.ones_like(f(*t))),
    "linearize": lambda f: lambda *t: torch.func.linearize(f, *t)[1](*map(torch.ones_like, t)),
    "per_sample_gradients": lambda f: (
        lambda x, *w: torch.vmap(
            torch.func.grad(lambda x, *w: f(x, *w).square().sum(), argnums=tuple(range(1 + len(w)))),
            (0, *[None] * len(w)),
        )(x[:, None], *w)
    ),
}


@every_function
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_torch_func_agree_with_stock(transform, function):
    tensors = function.make(size=(2, 3, 4), grad=False)
    actual = TRANSFORMS[transform](function.call)(*tensors)
    expected = TRANSFORMS[transform](function.stock)(*tensors)
    torch.testing.assert_close(actual, expected)


@every_function
def test_compiled_transforms_of_torch_func_agree_with_stock(function):
    tensors = function.make(grad=False)
    gradient = TRANSFORMS["grad"](function.call)
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), TRANSFORMS["grad"](function.stock)(*tensors))


# --- vmap -----------------------------------------------------------------------------------------


@every_function
def test_vmap_over_images_is_one_call_of_the_kernel(function):
    input, *weights = function.make()
    images = torch.stack((input, 2 * input, -input), 1)
    in_dims = (1, *[None] * len(weights))
    with RecordedOps() as recorded:
        actual = torch.vmap(function.call, in_dims)(images, *weights)
    assert recorded.names.count(f"sepconv::{function.name}") == 1
    torch.testing.assert_close(actual, torch.vmap(function.stock, in_dims)(images, *weights))


@every_function
def test_vmap_over_everything_agrees_with_stock(function):
    stacks = [torch.stack((tensor, 2 * tensor)) for tensor in function.make()]
    with RecordedOps() as recorded:
        actual = torch.vmap(function.call)(*stacks)
    assert recorded.ran(function.name)
    expected = torch.vmap(function.stock)(*stacks)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(_gradients(actual, stacks), _gradients(expected, stacks))


@every_function
def test_nested_vmap_agrees_with_stock(function):
    input, *weights = function.make(grad=False)
    images = torch.stack((input, 2 * input)).unsqueeze(0).repeat(3, 1, 1, 1, 1, 1)
    in_dims = (0, *[None] * len(weights))
    twice = [torch.vmap(torch.vmap(call, in_dims), in_dims) for call in (function.call, function.stock)]
    actual, expected = (call(images, *weights) for call in twice)
    torch.testing.assert_close(actual, expected)


@every_function
def test_batched_gradients_agree_with_stock(function):
    """Jacobians by torch.autograd.grad(is_grads_batched=True)."""
    tensors = function.make(size=(1, 3, 4))

    def jacobian(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        output = call(*tensors)
        basis = torch.eye(output.numel(), dtype=output.dtype).view(-1, *output.shape)
        return torch.autograd.grad(output, tensors, basis, is_grads_batched=True)

    torch.testing.assert_close(jacobian(function.call), jacobian(function.stock))


# --- compile and export ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# inductor compiles C++ for each graph: once a function.
COMPILATIONS = [
    *(("aot_eager", *case) for case in product(FORMATS, FUNCTIONS)),
    *(("inductor", *case) for case in zip((*FORMATS, torch.channels_last), FUNCTIONS, strict=True)),
]


@pytest.mark.parametrize(("backend", "memory_format", "function"), COMPILATIONS, ids=str)
def test_compiled_forward_and_backward_agree_with_eager(backend, memory_format, function):
    def network(*tensors: Tensor) -> Tensor:
        return torch.relu(function.call(*tensors)) + 1

    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=backend)
    # One graph serves every size: a second compilation is an error.
    for index, size in enumerate(((2, 5, 6), (3, 9, 8), (5, 7, 13))):
        tensors = function.make(torch.float32, memory_format, size)
        for weight in tensors[1:]:
            torch._dynamo.mark_static(weight)
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            actual = compiled(*tensors)
        expected = network(*tensors)
        torch.testing.assert_close(actual, expected)
        assert actual.stride() == expected.stride()
        found, wanted = _gradients(actual, tensors), _gradients(expected, tensors)
        torch.testing.assert_close(found, wanted)
        assert [gradient.stride() for gradient in found] == [gradient.stride() for gradient in wanted]


@pytest.mark.parametrize("padding", ["same", "valid", 1])
def test_unbatched_input_and_named_padding_compile_in_one_graph(padding):
    x, dw, pw, db, pb = FUNCTIONS[0].make(torch.float32, grad=False)

    def network(x: Tensor) -> Tensor:
        return sepconv.separable_conv2d(x, dw[..., :2], pw, db, pb, padding=padding)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x[0]), network(x[0]))


@every_convolution
def test_compiled_autocast_agrees_with_eager(function):
    tensors = function.make(torch.float32, grad=False)

    def network(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function.call(*tensors)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    actual = compiled(*tensors)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, network(*tensors))


class _Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = sepconv.RowAverageConv2d(3, 8, 3, padding=1, row_stride=2)
        self.second = sepconv.SeparableConv2d(8, 4, 3, padding="same", depthwise_bias=True)
        self.third = sepconv.RowAverage(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_export_keeps_the_operators_and_dynamic_shapes(strict):
    network = _Network().eval()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8, max=64)}
    program = torch.export.export(
        network, (torch.randn(2, 3, 9, 8),), dynamic_shapes={"x": sizes}, strict=strict
    )
    targets = {str(node.target) for node in program.graph.nodes}
    assert {f"sepconv.{operator.name}.default" for operator in OPERATORS} <= targets
    for shape in ((2, 3, 9, 8), (5, 3, 16, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), network(x))


# --- Autocast -------------------------------------------------------------------------------------


@every_convolution
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_follows_the_active_dtype(dtype, function):
    tensors = function.make(torch.float32)
    with torch.autocast("cpu", dtype):
        output = function.call(*tensors)
        mixed = function.call(tensors[0].to(dtype), *tensors[1:])
        with torch.autocast("cpu", enabled=False):
            assert function.call(*tensors).dtype == torch.float32
    assert output.dtype == mixed.dtype == dtype
    torch.testing.assert_close(output, function.call(*(tensor.to(dtype) for tensor in tensors)))
    gradients = torch.autograd.grad(output.float().sum(), tensors)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    expected = torch.autograd.grad(function.stock(*tensors).sum(), tensors)
    torch.testing.assert_close(gradients, expected, rtol=2e-2, atol=2e-1)


@every_convolution
def test_autocast_leaves_float64_alone_as_stock_does(function):
    tensors = function.make(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert function.call(*tensors).dtype == function.stock(*tensors).dtype == torch.float64


def test_the_row_average_keeps_its_dtype_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.float16):
            assert sepconv.row_average(torch.randn(1, 2, 4, 3).to(dtype)).dtype == dtype


# --- Fallback -------------------------------------------------------------------------------------


@every_function
def test_complex_numbers_are_served_by_the_reference(function):
    tensors = function.make(torch.complex128)
    with RecordedOps() as recorded:
        actual = function.call(*tensors)
    assert not recorded.ran(function.name)
    torch.testing.assert_close(actual, function.stock(*tensors))


@every_function
def test_meta_tensors_are_served(function):
    tensors = function.make(grad=False)
    actual = function.call(*(_on_meta(tensor) for tensor in tensors))
    assert actual.is_meta and actual.shape == function.stock(*tensors).shape


# --- Flops ----------------------------------------------------------------------------------------


def _flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@every_function
def test_flops_of_the_forward_are_those_of_stock(function):
    tensors = function.make()
    assert _flops(lambda: function.call(*tensors)) == _flops(lambda: function.stock(*tensors))


def test_flops_of_the_separable_backward_are_those_of_stock_and_one_recomputed_depthwise():
    function = FUNCTIONS[0]
    tensors = function.make()
    output = function.call(*tensors)
    batch, _, height, width = output.shape
    depthwise, pointwise = (2 * batch * height * width * tensors[i].numel() for i in (1, 2))
    assert _flops(lambda: _gradients(output, tensors)) == 3 * depthwise + 2 * pointwise
    output = function.call(*tensors)
    assert _flops(lambda: _gradients(output, tensors[:1])) <= 3 * depthwise + 2 * pointwise
    input, *weights = function.make(grad=False)
    output = function.call(input.requires_grad_(), *weights)
    assert _flops(lambda: _gradients(output, [input])) == depthwise + pointwise


def test_flops_of_the_row_average_convolutions_backward_are_those_of_stock():
    function = FUNCTIONS[2]
    tensors = function.make()
    outputs = [call(*tensors) for call in (function.call, function.stock)]
    actual, expected = (_flops(lambda output=output: _gradients(output, tensors)) for output in outputs)
    assert actual == expected
