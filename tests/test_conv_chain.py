"""Chains of convolutions and batch norms: as the layers called one by one, in training."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from chains import (
    CHAINS,
    MEMORY_FORMATS,
    grad_like,
    gradients,
    images,
    pointwise,
    separable,
    twins,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sepconv
from sepconv import FusedSequential, SeparableConv2d, reference, sequential
from sepconv import chain as chain_module

every_chain = pytest.mark.parametrize("name", CHAINS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many units each call of the operator had."""
    calls: list[int] = []
    forward = chain_module._forward

    def counted(plan, *arguments, **keywords):
        calls.append(len(plan.kinds))
        return forward(plan, *arguments, **keywords)

    monkeypatch.setattr(chain_module, "_forward", counted)
    return calls


@every_chain
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
def test_equals_the_layers_one_by_one(name, memory_format, chains):
    fused, stock = twins(name)
    x = images().contiguous(memory_format=memory_format)
    grad = grad_like(stock, x)
    actual, expected = gradients(fused, x, grad), gradients(stock, x, grad)
    assert len(chains) == 1
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fused.state_dict(), stock.state_dict(), rtol=1e-12, atol=1e-13)
    assert actual[0].is_contiguous(memory_format=memory_format)
    assert actual[1].is_contiguous(memory_format=memory_format)


@every_chain
def test_float32_is_as_exact_as_stock(name):
    """Distance to float64 at most a few times that of the stock layers."""
    fused, stock = twins(name, torch.float32)
    exact = copy.deepcopy(stock).double()
    x = images(torch.float32, batch=8).contiguous(memory_format=torch.channels_last)
    grad = grad_like(stock, x)
    actual, plain = gradients(fused, x, grad), gradients(stock, x, grad)
    expected = gradients(exact, x.double(), grad.double())
    for a, p, e in zip(actual, plain, expected, strict=True):
        scale = e.abs().max()
        assert (a - e).abs().max() <= 4 * (p - e).abs().max() + 4e-6 * scale


@every_chain
def test_gradcheck(name):
    fused, _ = twins(name)
    parameters = tuple(fused.parameters())
    names = [key for key, _ in fused.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(fused, dict(zip(names, values, strict=True)), x)

    x = images(batch=2).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", ["xception", "mobilenet_v1", "batch_norm_relu"])
def test_gradgradcheck(name):
    fused, _ = twins(name)
    assert torch.autograd.gradgradcheck(fused, images(batch=2).requires_grad_(), fast_mode=True)


def test_gradients_to_differentiate_again_of_shared_layers():
    """A parameter that occurs twice, and an input that depends on another source."""
    norm = nn.BatchNorm2d(6).double()
    fused = FusedSequential(pointwise(6, 6).double(), norm, nn.ReLU(), separable(6, 6).double(), norm)
    x = images()
    expected, actual = (
        torch.autograd.grad((module(module(x)) ** 3).sum(), list(fused.parameters()), create_graph=True)
        for module in (nn.Sequential(*fused), fused)
    )
    torch.testing.assert_close(actual, expected)


def test_batched_gradients():
    fused, stock = twins("three")
    x = images()
    grads = torch.randn(4, *copy.deepcopy(stock)(x).shape, dtype=x.dtype)
    expected, actual = (
        torch.autograd.grad(module(x), list(module.parameters()), grads, is_grads_batched=True)
        for module in (stock, fused)
    )
    torch.testing.assert_close(actual, expected)


def test_strided_statistics_are_read_as_they_are():
    fused, _ = twins("three")
    x = images()
    expected = torch.autograd.grad(fused(x).square().sum(), list(fused.parameters()))

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor], -1)[..., 0]

    with torch.autograd.graph.saved_tensors_hooks(strided, lambda tensor: tensor):
        output = fused(x)
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), list(fused.parameters())), expected)


def test_schemas_say_what_is_written():
    """Running statistics, and nothing else."""
    fused, _ = twins("three", torch.float32)
    x = images(torch.float32)
    units, _, _ = sequential._run(list(fused), 0, x)
    parameters = [
        tensor.detach()
        for unit in units
        for tensor in (unit.depthwise_weight, unit.pointwise_weight, unit.weight, unit.bias)
    ]
    running = [t for unit in units for t in (unit.running_mean, unit.running_var, unit.num_batches_tracked)]
    windows = [1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    plan = ([3, 3, 3], [1, 1, 2], windows)
    chain, backward = torch.ops.sepconv.conv_chain.default, torch.ops.sepconv.conv_chain_backward.default
    forward = (x, parameters, running, *plan, [1e-5] * 3, [0.1] * 3, 0, True)
    torch.library.opcheck(chain, forward, test_utils="test_schema")
    output, raws, statistics = chain(*forward)
    arguments = (output, x, parameters, raws, statistics, *plan, 0, [True] * 13)
    torch.library.opcheck(backward, arguments, test_utils="test_schema")


@every_chain
def test_same_bits_for_any_number_of_threads(name):
    fused, _ = twins(name, torch.float32)
    x = torch.randn(5, 6, 21, 20).contiguous(memory_format=torch.channels_last)
    grad = grad_like(fused, x)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 4, 2):
            torch.set_num_threads(threads)
            results.append(gradients(copy.deepcopy(fused), x, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_frozen_parameters_get_no_gradient():
    fused, stock = twins("three")
    for module in (fused, stock):
        module[1].requires_grad_(False)
        module[2].bias.requires_grad_(False)
        module[7].pointwise.weight.requires_grad_(False)
    x = images()
    grad = grad_like(stock, x)
    for a, b in zip(gradients(fused, x, grad), gradients(stock, x, grad), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_gradient_of_the_input_is_optional(chains):
    fused, stock = twins("batch_norm_first")
    x = images()
    fused(x).sum().backward()
    stock(x).sum().backward()
    for a, b in zip(fused.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert chains == [2]


def test_without_gradients_running_statistics_move():
    fused, stock = twins("three")
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), stock(images()), rtol=10, atol=10)
    torch.manual_seed(1)
    x = images()
    with torch.no_grad():
        fused, stock = twins("three")
        torch.testing.assert_close(fused(x), stock(x))
    torch.testing.assert_close(fused.state_dict(), stock.state_dict())


@pytest.mark.parametrize(("name", "units"), [("three", 3), ("short_vectors", 3)])
def test_autocast_runs_in_bfloat16(name, units, chains):
    fused, stock = twins(name, torch.float32)
    exact = copy.deepcopy(stock).double()
    x = images(torch.float32, batch=64).contiguous(memory_format=torch.channels_last)
    grad = grad_like(stock, x)
    with torch.autocast("cpu", torch.bfloat16):
        actual, plain = gradients(fused, x, grad.bfloat16()), gradients(stock, x, grad.bfloat16())
    expected = gradients(exact, x.double(), grad.bfloat16().double())
    assert chains == [units]
    assert actual[0].dtype == torch.bfloat16 and actual[2].dtype == torch.float32
    for a, p, e in zip(actual, plain, expected, strict=True):
        assert (a - e).norm() <= 2 * (p - e).norm() + 5e-3 * e.norm()  # a channel here or there flips a kink


def test_a_batch_norm_that_comes_first_takes_its_half_precision_input_under_autocast(chains):
    fused, stock = twins("batch_norm_first", torch.float32)
    x = images(torch.float32, batch=64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual, plain = fused(x), stock(x)
    assert chains == [2] and actual.dtype == plain.dtype
    torch.testing.assert_close(actual, plain, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("of_autocast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_nothing_inside(of_autocast):
    """A chain of one half precision under autocast of the other: its dtype is decided where it begins."""
    fused, _ = twins("short_vectors", torch.float32)
    dtype = torch.float16 if of_autocast == torch.bfloat16 else torch.bfloat16
    units, _, _ = sequential._run(list(fused), 0, images(torch.float32))
    weights = {"depthwise_weight", "pointwise_weight"}
    units = [
        replace(
            unit, **{key: value.to(dtype) for key in weights if (value := getattr(unit, key)) is not None}
        )
        for unit in (replace(unit, running_mean=None, running_var=None) for unit in units)
    ]
    norm = sepconv.ChainUnit(
        torch.ones(6), torch.zeros(6)
    )  # first: then the chain stays in its input's dtype
    x = images(torch.float32, batch=16).to(dtype).contiguous(memory_format=torch.channels_last)
    results = []
    for enabled in (False, True):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", of_autocast, enabled=enabled):
            output = sepconv.conv_chain(leaf, [norm, *units])
            output.backward(torch.ones_like(output))
        results.append((output.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@every_chain
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
def test_what_comes_next_may_change_the_output_in_place(name, memory_format):
    fused, stock = twins(name)
    x = images().contiguous(memory_format=memory_format)
    results = []
    for module in (fused, stock):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        output = module(leaf)
        (output if module is fused else output.clone()).add_(1).square().sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)


def test_a_kink_hides_infinite_inputs():
    """relu(-inf) is 0, relu6(inf) 6: results are finite, and so are gradients."""
    for activation, value in (("relu", -torch.inf), ("relu6", -torch.inf), ("relu6", torch.inf)):
        unit = sepconv.ChainUnit(
            torch.ones(6), torch.zeros(6), None, torch.randn(6, 6, 1, 1), activation=activation
        )
        image = images(torch.float32).contiguous(memory_format=torch.channels_last)
        image[1, 2, 3, 4] = value
        results = []
        for chain in (sepconv.conv_chain, reference.conv_chain):
            x = image.clone(memory_format=torch.preserve_format)
            output = chain(x.requires_grad_(), [unit])
            output.square().sum().backward()
            results.append((output.detach(), x.grad))
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("odd", [0.0, 1e4])
def test_the_variance_of_a_channel_with_an_odd_first_value(odd):
    x = 100 + 0.1 * torch.randn(4, 8, 32, 32)
    x[0, :, 0, 0] = odd
    x = x.contiguous(memory_format=torch.channels_last)
    running_var = torch.zeros(8)
    unit = sepconv.ChainUnit(
        torch.ones(8), torch.zeros(8), running_mean=torch.zeros(8), running_var=running_var, momentum=1.0
    )
    sepconv.conv_chain(x, [unit])
    exact = x.double().var((0, 2, 3))
    torch.testing.assert_close(running_var.double(), exact, rtol=1e-4, atol=0)


def test_an_error_leaves_all_running_statistics_as_they_were():
    means = torch.zeros(6), torch.zeros(12)[::2]
    units = [
        sepconv.ChainUnit(
            torch.ones(6),
            torch.zeros(6),
            None,
            torch.eye(6)[:, :, None, None],
            running_mean=mean,
            running_var=torch.ones(6),
        )
        for mean in means
    ]
    with pytest.raises(RuntimeError, match="running_mean must be contiguous"):
        sepconv.conv_chain(images(torch.float32), units)
    assert not means[0].any()


def test_padding_of_a_pointwise_convolution_alone_is_refused():
    unit = sepconv.ChainUnit(torch.ones(6), torch.zeros(6), None, torch.randn(6, 6, 1, 1), padding=1)
    with pytest.raises(RuntimeError, match=r"conv_chain: windows\[0\] must have no padding, .* got \(1, 1\)"):
        sepconv.conv_chain(images(torch.float32), [unit])


@pytest.mark.parametrize(("pixels", "kept"), [(32, 1), (33, 0)])
def test_where_a_last_result_is_kept(pixels, kept):
    """Up to four times its weights: 32 pixels where eight channels go in."""
    unit = sepconv.ChainUnit(
        torch.ones(16), torch.zeros(16), torch.randn(8, 1, 3, 3), torch.randn(16, 8, 1, 1), padding=1
    )
    weights = [unit.depthwise_weight, unit.pointwise_weight, unit.weight, unit.bias]
    plan = chain_module._Plan([3], [0], [1] * 6, 0)
    nothing = [torch.empty(0)] * 3
    image = torch.randn(1, 8, 1, pixels)
    _, raws, _ = chain_module._forward(plan, nothing, [1e-5], [0.1], image, weights, keep=True)
    assert len(raws) == kept


@pytest.mark.parametrize(("name", "kept"), [("three", 2), ("small_maps", 2), ("xception", 0)])
def test_raw_results_that_are_kept(name, kept, monkeypatch):
    """All but the last, and that where it is no larger than four times its weights."""
    seen: list[int] = []
    forward = chain_module._forward

    def spied(*arguments, **keywords):
        results = forward(*arguments, **keywords)
        seen.append(len(results[1]))
        return results

    monkeypatch.setattr(chain_module, "_forward", spied)
    twins(name)[0](images().requires_grad_())
    assert seen == [kept]


def test_saved_memory_of_a_block():
    """[ReLU, separable convolution, batch norm] saves its input, and no more than vectors beside it."""
    block = FusedSequential(nn.ReLU(), separable(32, 32), nn.BatchNorm2d(32))
    stock = nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
        pointwise(32, 32),
        nn.BatchNorm2d(32),
    )
    x = torch.randn(4, 32, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()

    def saved(module: nn.Module) -> int:
        parameters = {parameter.data_ptr() for parameter in module.parameters()}
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in parameters:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = module(x)
        output.sum().backward()
        return sum(storages.values())

    assert saved(block) <= 0.4 * saved(stock)


def _hooked(layers: list[nn.Module]) -> None:
    layers[1].register_forward_hook(lambda module, arguments, output: output * 2)


def _without_momentum(layers: list[nn.Module]) -> None:
    layers[2].momentum = None


def _in_evaluation(layers: list[nn.Module]) -> None:
    layers[2].eval()


def _parametrized(layers: list[nn.Module]) -> None:
    parametrizations.weight_norm(layers[1].pointwise)


def _reflecting(layers: list[nn.Module]) -> None:
    layers[1] = SeparableConv2d(6, 19, 3, padding=1, padding_mode="reflect", bias=False)


def _biased(layers: list[nn.Module]) -> None:
    layers[1] = SeparableConv2d(6, 19, 3, padding=1)


def _untracked(layers: list[nn.Module]) -> None:
    layers[2] = nn.BatchNorm2d(19, track_running_stats=False)


def _without_affine(layers: list[nn.Module]) -> None:
    layers[2] = nn.BatchNorm2d(19, affine=False)


class _Subclass(nn.Parameter):
    """As libraries of sharded or quantised weights make them."""


def _of_another_class(layers: list[nn.Module]) -> None:
    layers[1].pointwise.weight = _Subclass(layers[1].pointwise.weight.detach())


def _without_shift(layers: list[nn.Module]) -> None:
    layers[2].bias = None


def _float_count(layers: list[nn.Module]) -> None:
    layers[2].num_batches_tracked = torch.tensor(3.0)


def _another_norm(layers: list[nn.Module]) -> None:
    layers[2] = nn.GroupNorm(1, 19)


@pytest.mark.parametrize(
    "change",
    [
        _hooked,
        _without_momentum,
        _in_evaluation,
        _parametrized,
        _reflecting,
        _biased,
        _untracked,
        _without_affine,
        _of_another_class,
        _without_shift,
        _float_count,
        _another_norm,
    ],
)
def test_what_is_not_plain_is_called_as_it_is(change, chains):
    layers = CHAINS["xception"]()
    change(layers)
    stock = nn.Sequential(*layers).double()
    fused = FusedSequential(*copy.deepcopy(stock))
    x = images()
    torch.testing.assert_close(fused(x), stock(x))
    torch.testing.assert_close(fused.state_dict(), stock.state_dict())
    # Where the convolution is another, a plain batch norm is a run by itself.
    assert chains == (
        [1] if change in (_hooked, _parametrized, _reflecting, _biased, _of_another_class) else []
    )


def test_global_hooks_and_compiled_children_see_their_layers(chains):
    fused, stock = twins("xception")
    x = images()
    called: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        torch.testing.assert_close(fused(x), stock(x))
    finally:
        handle.remove()
    assert set(fused) <= set(called) and chains == []
    fused[2].compile(backend="eager")
    torch.testing.assert_close(fused(x), stock(x))
    assert chains == []


def test_strided_running_statistics_are_left_to_the_layer(chains):
    fused, stock = twins("xception", torch.float32)
    for module in (fused, stock):
        module[2].running_mean, module[2].running_var = torch.ones(2, 19, 2).unbind(-1)[0]
    x = images(torch.float32)
    torch.testing.assert_close(fused(x), stock(x))
    torch.testing.assert_close(fused.state_dict(), stock.state_dict())
    assert chains == []


def test_autocast_leaves_a_leading_batch_norm_in_float32(chains):
    fused, stock = twins("batch_norm_first", torch.float32)
    x = images(torch.float32, batch=16) + 1000
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(x), stock(x), rtol=0.05, atol=0.05)
        assert FusedSequential(nn.BatchNorm2d(6))(x).dtype == torch.float32
    torch.testing.assert_close(fused.state_dict(), stock.state_dict(), rtol=0.02, atol=0.02)
    assert chains == [1]


def test_evaluation_uses_running_statistics(chains):
    fused, stock = twins("three")
    fused.eval(), stock.eval()
    torch.testing.assert_close(fused(images()) * 0, stock(images()) * 0)
    x = images()
    torch.testing.assert_close(fused(x), stock(x))
    assert chains == []


def test_a_leading_inplace_activation_works_in_place(chains):
    fused, stock = (
        kind(nn.ReLU(inplace=True), *copy.deepcopy(twins("no_relu")[1]))
        for kind in (FusedSequential, nn.Sequential)
    )
    stock.load_state_dict(fused.state_dict())
    x = images()
    y = x.clone()
    torch.testing.assert_close(fused(x), stock(y))
    assert torch.equal(x, y) and x.min() == 0
    assert chains == [1]


def test_containers_inside_are_looked_into(chains):
    fused = FusedSequential(
        nn.Sequential(nn.ReLU(), separable(6, 8), nn.BatchNorm2d(8)),
        FusedSequential(nn.ReLU(), separable(8, 8), nn.BatchNorm2d(8)),
        nn.MaxPool2d(3, 2, 1),
        nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()),
        nn.Dropout(0.0),
    )
    stock = nn.Sequential(*copy.deepcopy(fused))
    x = images(torch.float32)
    torch.testing.assert_close(fused(x), stock(x))
    assert chains[:2] == [2, 1]
    assert list(fused.state_dict()) == list(stock.state_dict())


def test_one_value_a_channel_fails_as_stock_does():
    fused, stock = twins("one_by_one_map")
    x = images(batch=1)
    for module in (stock, fused):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            module(x)


def test_a_slice_and_a_pickle_are_fused_too(chains):
    fused, _ = twins("three")
    x = images()
    expected = fused(x)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for copied in (pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False)):
        assert torch.equal(copied(x), expected)
    assert isinstance(fused[:3], FusedSequential)
    torch.testing.assert_close(fused[3:](fused[:3](x)), expected)


@pytest.mark.parametrize("name", ["three", "small_maps"])
def test_retain_graph_and_two_backwards(name):
    fused, stock = twins(name)
    x = images()
    for module in (fused, stock):
        output = module(x).square().sum()
        output.backward(retain_graph=True)
        output.backward()
    for a, b in zip(fused.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_under_torch_func_and_forward_mode_the_layers_run(chains):
    fused, stock = twins("three")
    x = images()

    def loss(module: nn.Module) -> dict[str, Tensor]:
        def of(parameters: dict[str, Tensor]) -> Tensor:
            buffers = {key: value.clone() for key, value in module.named_buffers()}
            return torch.func.functional_call(module, (parameters, buffers), x).square().sum()

        return torch.func.grad(of)(dict(module.named_parameters()))

    torch.testing.assert_close(loss(fused), loss(stock))
    assert chains == []


def test_compile_takes_the_layers(chains):
    fused, stock = twins("xception", torch.float32)
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    x = images(torch.float32)
    torch.testing.assert_close(compiled(x), stock(x))
    assert chains == []


def _unit(**changes) -> sepconv.ChainUnit:
    arguments = {
        "weight": torch.ones(5),
        "bias": torch.zeros(5),
        "depthwise_weight": torch.randn(6, 1, 3, 3),
        "pointwise_weight": torch.randn(5, 6, 1, 1),
        "padding": 1,
    }
    return sepconv.ChainUnit(**{**arguments, **changes})


BAD: dict[str, tuple[dict, str]] = {
    "weight": ({"weight": torch.ones(4)}, r"batch norm weight \[0\] must have shape \(5,\), got \(4,\)"),
    "bias": ({"bias": torch.zeros(5, 1)}, r"batch norm bias \[0\] must have shape \(5,\), got \(5, 1\)"),
    "dtype": ({"weight": torch.ones(5).double()}, r"batch norm weight \[0\] must be float32"),
    "depthwise": ({"depthwise_weight": torch.randn(7, 1, 3, 3)}, r"depthwise weight \[0\] must have shape"),
    "pointwise": (
        {"pointwise_weight": torch.randn(5, 7, 1, 1)},
        r"pointwise weight \[0\] must have shape \(5, 6, 1, 1\), got \(5, 7, 1, 1\)",
    ),
    "activation": (
        {"activation": "gelu"},
        r"activation of a unit must be None, 'relu' or 'relu6', got 'gelu'",
    ),
    "stride": ({"stride": (1, 0)}, r"stride must be between 1 and"),
    "running": (
        {"running_mean": torch.zeros(3), "running_var": torch.zeros(5)},
        r"running_mean must have shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    changes, message = BAD[name]
    with pytest.raises(RuntimeError, match="conv_chain: .*" + message):
        sepconv.conv_chain(torch.randn(2, 6, 4, 4), [_unit(**changes)])


def test_a_function_of_its_own():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 4)
    unit = _unit()
    expected = torch.nn.functional.batch_norm(
        sepconv.reference.separable_conv2d(x, unit.depthwise_weight, unit.pointwise_weight, padding=1),
        None,
        None,
        unit.weight,
        unit.bias,
        True,
    )
    torch.testing.assert_close(sepconv.conv_chain(x, [unit], "relu"), expected.relu())
