"""SeparableConv2d is a drop-in for two nn.Conv2d, and the row-average layers are ordinary torch layers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import sepconv
from sepconv import functional, reference

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "depth_multiplier": 2},
    {"kernel_size": 5, "padding": "same", "depthwise_bias": True},
    {"kernel_size": (2, 4), "padding": "same", "dilation": (1, 3), "bias": False},
    {"kernel_size": 3, "padding": "valid", "bias": False, "depthwise_bias": True, "depth_multiplier": 3},
    {"kernel_size": 1},
)
every_configuration = pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)


def _stock(config: dict[str, Any], **more: Any) -> nn.Sequential:
    """The two stock layers that a SeparableConv2d from 6 to 5 channels stands for."""
    config = {**config, **more}
    middle = 6 * config.pop("depth_multiplier", 1)
    bias, depthwise_bias = config.pop("bias", True), config.pop("depthwise_bias", False)
    depthwise = nn.Conv2d(6, middle, groups=6, bias=depthwise_bias, dtype=torch.float64, **config)
    return nn.Sequential(depthwise, nn.Conv2d(middle, 5, 1, bias=bias, dtype=torch.float64))


def _layer(**config: Any) -> sepconv.SeparableConv2d:
    return sepconv.SeparableConv2d(6, 5, dtype=torch.float64, **config)


def _plain_layer() -> sepconv.SeparableConv2d:
    return _layer(kernel_size=3, padding=1, depthwise_bias=True)


def _images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 9, 8, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Results of the fused function, as the layers under test call it."""
    results: list[Tensor] = []

    def record(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            results.append(function(*arguments))
            return results[-1]

        return call

    monkeypatch.setattr(functional, "separable_conv2d", record(functional.separable_conv2d))
    return results


def _assert_trains_alike(layer: nn.Module, stock: nn.Module, x: Tensor) -> None:
    """Outputs and all gradients agree; parameters correspond by order."""
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    actual, expected = layer(x), stock(y)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    found = torch.autograd.grad(actual, [x, *layer.parameters()], grad)
    wanted = torch.autograd.grad(expected, [y, *stock.parameters()], grad)
    torch.testing.assert_close(found, wanted)


# --- A drop-in ------------------------------------------------------------------------------------


@every_configuration
def test_the_same_seed_gives_the_weights_of_two_stock_layers(config):
    layer = _layer(**config)
    torch.manual_seed(0)
    stock = _stock(config)
    names = {"0": "depthwise", "1": "pointwise"}
    expected = {f"{names[key[0]]}{key[1:]}": value for key, value in stock.state_dict().items()}
    assert list(layer.state_dict()) == list(expected)
    torch.testing.assert_close(dict(layer.state_dict()), expected, rtol=0, atol=0)


@every_configuration
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_it_trains_as_two_stock_layers(padding_mode, config, fused_calls):
    layer = _layer(padding_mode=padding_mode, **config)
    torch.manual_seed(0)
    _assert_trains_alike(layer, _stock(config, padding_mode=padding_mode), _images())
    assert len(fused_calls) == 1


@every_configuration
def test_channels_last_and_unbatched_inputs_are_as_in_stock(config):
    layer = _layer(**config)
    torch.manual_seed(0)
    stock = _stock(config)
    x = _images().to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), stock(x))
    if layer.depthwise.kernel_size != (1, 1):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x[0]), stock(x[0]))
    assert layer(x[:0]).shape == stock(x[:0]).shape


def test_the_children_are_real_stock_layers():
    layer = _plain_layer()
    assert [name for name, _ in layer.named_children()] == ["depthwise", "pointwise"]
    assert all(type(child) is nn.Conv2d for child in layer.children())
    assert layer.depthwise.groups == 6 and layer.pointwise.kernel_size == (1, 1)


def test_device_and_dtype_reach_the_parameters():
    layer = sepconv.SeparableConv2d(2, 3, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


# --- Weights and configuration may change by any route --------------------------------------------


def _by_data(layer: sepconv.SeparableConv2d) -> None:
    layer.pointwise.weight.data.mul_(2)


def _by_optimizer(layer: sepconv.SeparableConv2d) -> None:
    layer(_images()).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def _by_state_dict(layer: sepconv.SeparableConv2d) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def _by_new_parameter(layer: sepconv.SeparableConv2d) -> None:
    layer.depthwise.weight = nn.Parameter(torch.randn_like(layer.depthwise.weight))


def _by_configuration(layer: sepconv.SeparableConv2d) -> None:
    layer.depthwise.dilation = (2, 2)
    layer.depthwise.stride = (2, 1)
    layer.depthwise.padding = (2, 2)


def _by_bias(layer: sepconv.SeparableConv2d) -> None:
    layer.pointwise.bias = None


@pytest.mark.parametrize(
    "change", [_by_data, _by_optimizer, _by_state_dict, _by_new_parameter, _by_configuration, _by_bias]
)
def test_a_change_of_a_child_counts_at_the_next_call(change, fused_calls):
    layer, x = _plain_layer(), _images()
    before = layer(x)
    change(layer)
    fused_calls.clear()
    after = layer(x)
    assert len(fused_calls) == 1
    torch.testing.assert_close(after, layer.pointwise(layer.depthwise(x)))
    assert after.shape != before.shape or not torch.allclose(after, before)


def test_functional_call_takes_other_parameters(fused_calls):
    layer, x = _plain_layer(), _images()
    others = {name: torch.randn_like(value) for name, value in layer.named_parameters()}
    actual = torch.func.functional_call(layer, others, (x,))
    assert len(fused_calls) == 1
    weights = [
        others[f"{child}.{kind}"] for kind in ("weight", "bias") for child in ("depthwise", "pointwise")
    ]
    torch.testing.assert_close(actual, reference.separable_conv2d(x, *weights, padding=1))


# --- Hooks and replaced children ------------------------------------------------------------------


def _hook(register: str) -> Callable[[nn.Conv2d], Callable[[], bool]]:
    def attach(child: nn.Conv2d) -> Callable[[], bool]:
        calls: list[None] = []
        getattr(child, register)(lambda *_: calls.append(None))
        return lambda: bool(calls)

    return attach


def _own_forward(child: nn.Conv2d) -> Callable[[], bool]:
    forward, calls = child.forward, []

    def adapted(x: Tensor) -> Tensor:
        calls.append(None)
        return 2 * forward(x)

    child.forward = adapted
    return lambda: bool(calls)


def _reparametrized(change: Callable[[nn.Conv2d], Any]) -> Callable[[nn.Conv2d], Callable[[], bool]]:
    def attach(child: nn.Conv2d) -> Callable[[], bool]:
        names = set(dict(child.named_parameters()))
        change(child)
        return lambda: set(dict(child.named_parameters())) != names

    return attach


ATTACHMENTS: dict[str, Callable[[nn.Conv2d], Callable[[], bool]]] = {
    "forward hook": _hook("register_forward_hook"),
    "forward pre-hook": _hook("register_forward_pre_hook"),
    "full backward hook": _hook("register_full_backward_hook"),
    "full backward pre-hook": _hook("register_full_backward_pre_hook"),
    "forward of the instance": _own_forward,
    "spectral_norm": _reparametrized(parametrizations.spectral_norm),
    "weight_norm": _reparametrized(parametrizations.weight_norm),
    "spectral_norm by hook": _reparametrized(nn.utils.spectral_norm),
    "prune": _reparametrized(lambda child: prune.l1_unstructured(child, "weight", amount=0.5)),
}


@pytest.mark.parametrize("child", ["depthwise", "pointwise"])
@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_what_is_attached_to_a_child_takes_effect(attachment, child, fused_calls):
    layer, x = _plain_layer(), _images().requires_grad_()
    took_effect = ATTACHMENTS[attachment](getattr(layer, child))
    layer.eval()  # spectral norm's power iteration moves in training
    output = layer(x)
    output.sum().backward()
    assert took_effect()
    assert not fused_calls
    torch.testing.assert_close(output, layer.pointwise(layer.depthwise(x)))


@pytest.mark.parametrize("child", ["depthwise", "pointwise"])
def test_a_removed_hook_leaves_the_fused_call(child, fused_calls):
    layer, x = _plain_layer(), _images()
    handle = getattr(layer, child).register_forward_hook(lambda *_: None)
    layer(x)
    assert not fused_calls
    handle.remove()
    layer(x)
    assert len(fused_calls) == 1


class _Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


REPLACEMENTS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "identity": ("pointwise", nn.Identity),
    "subclass": ("pointwise", lambda: _Doubled(6, 5, 1, dtype=torch.float64)),
    "batch norm behind": (
        "depthwise",
        lambda: nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)).double(),
    ),
    "3x3 pointwise": ("pointwise", lambda: nn.Conv2d(6, 5, 3, padding=1, dtype=torch.float64)),
    "strided pointwise": ("pointwise", lambda: nn.Conv2d(6, 5, 1, stride=2, dtype=torch.float64)),
    "padded pointwise": ("pointwise", lambda: nn.Conv2d(6, 5, 1, padding=1, dtype=torch.float64)),
    "grouped pointwise": ("pointwise", lambda: nn.Conv2d(6, 4, 1, groups=2, dtype=torch.float64)),
    "dense depthwise": ("depthwise", lambda: nn.Conv2d(6, 6, 3, dtype=torch.float64)),
    "grouped depthwise": ("depthwise", lambda: nn.Conv2d(6, 6, 3, groups=2, dtype=torch.float64)),
}


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_replaced_child_is_called(replacement, fused_calls):
    name, make = REPLACEMENTS[replacement]
    layer, x = _plain_layer().eval(), _images()
    child = make().eval()
    setattr(layer, name, child)
    torch.testing.assert_close(layer(x), layer.pointwise(layer.depthwise(x)))
    assert not fused_calls


# --- Copies and files -----------------------------------------------------------------------------

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "SeparableConv2d": _plain_layer,
    "RowAverage": lambda: sepconv.RowAverage(2),
    "RowAverageConv2d": lambda: sepconv.RowAverageConv2d(
        6, 5, 3, padding=1, row_stride=2, dtype=torch.float64
    ),
}


def _through_torch_save(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": _through_torch_save,
}


@pytest.mark.parametrize(("name", "how"), list(product(LAYERS, COPIES)))
def test_a_copy_works_alike(name, how):
    layer, x = LAYERS[name](), _images()
    copied = COPIES[how](layer)
    assert repr(copied) == repr(layer)
    torch.testing.assert_close(copied(x), layer(x), rtol=0, atol=0)
    originals = set(layer.parameters())
    assert not any(parameter in originals for parameter in copied.parameters())


def test_representations_say_what_a_layer_is():
    assert repr(sepconv.SeparableConv2d(2, 4, 3)) == (
        "SeparableConv2d(\n"
        "  (depthwise): Conv2d(2, 2, kernel_size=(3, 3), stride=(1, 1), groups=2, bias=False)\n"
        "  (pointwise): Conv2d(2, 4, kernel_size=(1, 1), stride=(1, 1))\n"
        ")"
    )
    assert repr(sepconv.RowAverage(2)) == "RowAverage(stride=2)"
    assert (
        repr(sepconv.RowAverageConv2d(3, 4, 3, row_stride=2))
        == "RowAverageConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), row_stride=2)"
    )


# --- Row averages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_row_average_layer_is_its_function(stride):
    x = _images()
    torch.testing.assert_close(sepconv.RowAverage(stride)(x), reference.row_average(x, stride))


@pytest.mark.parametrize(
    "config",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "padding": (1, 0), "stride": (1, 2), "bias": False},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": (2, 4), "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
    ],
    ids=str,
)
@pytest.mark.parametrize("row_stride", [1, 2])
def test_row_average_conv2d_trains_as_an_average_and_a_convolution(row_stride, config):
    layer = sepconv.RowAverageConv2d(6, 5, row_stride=row_stride, dtype=torch.float64, **config)
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 5, dtype=torch.float64, **config)
    assert list(layer.state_dict()) == list(convolution.state_dict())
    torch.testing.assert_close(dict(layer.state_dict()), dict(convolution.state_dict()), rtol=0, atol=0)
    pool = nn.AvgPool2d((3, 1), (row_stride, 1), (1, 0), count_include_pad=False)
    _assert_trains_alike(layer, nn.Sequential(pool, convolution), _images())
    _assert_trains_alike(layer, nn.Sequential(pool, convolution), _images()[0])


def test_row_average_conv2d_carries_hooks_as_any_convolution():
    layer, x = LAYERS["RowAverageConv2d"](), _images()
    parametrizations.weight_norm(layer)
    expected = reference.row_average_conv2d(x, layer.weight, layer.bias, padding=1, row_stride=2)
    torch.testing.assert_close(layer(x), expected)
