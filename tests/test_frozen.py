"""Frozen separable convolutions: packed weights, the three stages, folding, and the layer's life."""

from __future__ import annotations

import copy
import io
import pickle
import re
from itertools import product
from typing import Any

import pytest
import torch
from cases import separable_conv2d as build
from numerics import assert_as_accurate_as_stock, assert_same_bits, assert_same_special_values
from operators import assert_dense_like
from samples import DTYPES, identify, normals, uninitialized_memory_is_nan
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import sepconv
from sepconv import FrozenSeparableConv2d, functional, reference

__all__ = ["uninitialized_memory_is_nan"]  # a fixture of every test here

ops = torch.ops.sepconv
NUMBERS = {None: 0, "relu": 1, "relu6": 2, "hardswish": 3}
STAGES = ("prologue_activation", "middle_activation", "activation")
LAYERS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}


def run(
    tensors: dict[str, Tensor | None],
    config: dict[str, Any],
    residual: Tensor | None = None,
    packed: Tensor | None = None,
    **stages: str | None,
) -> Tensor:
    """The operator, with weights that are packed here unless they are given."""
    depthwise, pointwise = tensors["depthwise_weight"], tensors["pointwise_weight"]
    return ops.frozen_separable_conv2d(
        tensors["input"],
        ops.pack_separable_conv2d(depthwise, pointwise) if packed is None else packed,
        tensors["depthwise_bias"],
        tensors["pointwise_bias"],
        residual,
        pointwise.shape[0],
        depthwise.shape[0] // tensors["input"].shape[1],
        depthwise.shape[2:],
        **config,
        **{stage: NUMBERS[name] for stage, name in stages.items()},
    )


def check(
    tensors: dict[str, Tensor | None],
    config: dict[str, Any],
    residual: Tensor | None = None,
    **stages: str | None,
) -> None:
    """The operator's result is as accurate as stock's, in the memory format of the input."""
    everything = {**tensors, "residual": residual}

    def stock(convert, **stages):
        converted = {name: None if t is None else convert(t) for name, t in everything.items()}
        return reference.frozen_separable_conv2d(**converted, **config, **stages)

    actual = run(tensors, config, residual, **stages)
    # A hard swish grows faster than x: three quarters of its slope at most, of what the sum's rounding is.
    magnitude = 2 ** list(stages.values()).count("hardswish") * stock(lambda t: t.double().abs())
    assert_as_accurate_as_stock(
        actual,
        stock(lambda t: t.contiguous(), **stages),
        stock(lambda t: t.double().contiguous(), **stages),
        magnitude,
    )
    assert_dense_like(actual, tensors["input"], "output")


# --- Results --------------------------------------------------------------------------------------

SHAPES: tuple[dict[str, Any], ...] = (
    {"in_channels": 20, "out_channels": 70},
    {"in_channels": 17, "out_channels": 33, "depth_multiplier": 2, "stride": (2, 1), "output_size": (5, 6)},
    {"in_channels": 8, "out_channels": 16, "kernel": (5, 5), "padding": (2, 2), "output_size": (9, 8)},
    {"in_channels": 3, "out_channels": 5, "dilation": (2, 2), "padding": (2, 2), "biases": ()},
    {"in_channels": 300, "out_channels": 520, "output_size": (2, 2), "batch": 1},  # few pixels
    {"in_channels": 1, "out_channels": 1, "kernel": (1, 1), "padding": (0, 0), "biases": ("pointwise_bias",)},
    {"in_channels": 20, "out_channels": 70, "output_size": (3, 18)},  # wide enough for NCHW in its own order
    {"in_channels": 6, "out_channels": 99, "depth_multiplier": 2, "stride": (1, 2), "output_size": (3, 33)},
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=identify)
def test_it_is_as_accurate_as_stock_for_every_shape_and_layout(shape, dtype, capability):
    for layout in ("contiguous", "channels_last", "cropped", "expanded_batch"):
        tensors, config, grad = build(normals, dtype=dtype, layout=layout, **shape)
        check(tensors, config)
        check(tensors, config, grad, middle_activation="relu6", activation="relu")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_activation_works_in_each_stage(dtype, layout, capability):
    tensors, config, _ = build(normals, dtype=dtype, layout=layout, in_channels=20, out_channels=37)
    tensors["input"] = tensors["input"] * 3  # beyond 6 on either side
    for stage, name in product(STAGES, ("relu", "relu6", "hardswish")):
        check(tensors, config, **{stage: name})
    check(tensors, config, **dict(zip(STAGES, ("relu", "hardswish", "relu6"), strict=True)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped", "expanded_batch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_residual_is_added_before_the_activation_whatever_its_layout(dtype, layout, capability):
    for input_layout in ("contiguous", "channels_last"):
        tensors, config, residual = build(
            normals, dtype=dtype, layout=input_layout, grad_layout=layout, in_channels=9, out_channels=40
        )
        for activation in (None, "relu"):
            check(tensors, config, residual, activation=activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=identify)
def test_without_activations_it_is_the_plain_operator_up_to_rounding(shape, dtype, capability):
    tensors, config, _ = build(normals, dtype=dtype, **shape)
    expected = ops.separable_conv2d(**tensors, **config)
    torch.testing.assert_close(run(tensors, config), expected)


@pytest.mark.parametrize("name", NUMBERS)
def test_special_values_come_out_where_stock_has_them(name, capability):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0, 7.0])
    image = torch.zeros(1, 2, 7, 7)
    image[0, 0].diagonal().copy_(values)
    for stage in STAGES:
        tensors, config, _ = build(normals, in_channels=2, out_channels=40)
        tensors["input"] = image
        stages = {stage: name}
        exact = reference.frozen_separable_conv2d(**tensors, **config, **stages)
        assert exact.isnan().any()
        assert_same_special_values(run(tensors, config, **stages), exact)
    residual = torch.zeros(1, 40, 7, 7)
    residual[0, 3].diagonal().copy_(values)
    tensors["input"] = torch.zeros_like(image)
    actual = run(tensors, config, residual, activation=name)
    exact = reference.frozen_separable_conv2d(**tensors, **config, residual=residual, activation=name)
    assert_same_special_values(actual, exact)


@pytest.mark.parametrize("shape", SHAPES[:2] + SHAPES[4:5], ids=identify)
def test_bits_do_not_depend_on_the_number_of_threads(shape, capability):
    tensors, config, residual = build(normals, **{"output_size": (30, 31), **shape})
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(run(tensors, config, residual, middle_activation="relu", activation="hardswish"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_an_empty_batch_gives_an_empty_batch():
    tensors, config, residual = build(normals)
    tensors["input"] = tensors["input"][:0]
    assert run(tensors, config, residual[:0]).shape == (0, *residual.shape[1:])


# --- The operators --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_weights_are_aligned_bytes_and_their_size_is_known_beforehand(dtype, capability):
    depthwise, pointwise = torch.randn(24, 1, 3, 5).to(dtype), torch.randn(33, 24, 1, 1).to(dtype)
    packed = ops.pack_separable_conv2d(depthwise, pointwise)
    assert packed.dtype == torch.uint8 and packed.dim() == 1 and packed.is_contiguous()
    assert packed.data_ptr() % 64 == 0 and packed.numel() % 64 == 0
    assert packed.numel() == ops.packed_bytes_of_separable_conv2d(24, 33, [3, 5], dtype)
    with FakeTensorMode() as mode:
        fake = ops.pack_separable_conv2d(mode.from_tensor(depthwise), mode.from_tensor(pointwise))
    assert fake.shape == packed.shape and fake.dtype == packed.dtype
    strided = torch.randn(33, 24, 2, 2).to(dtype)[:, :, :1, :1]
    assert_same_bits(
        ops.pack_separable_conv2d(depthwise, strided),
        ops.pack_separable_conv2d(depthwise, strided.contiguous()),
    )


def test_packed_weights_of_another_instruction_set_are_refused(capability):
    tensors, config, _ = build(normals)
    packed = ops.pack_separable_conv2d(tensors["depthwise_weight"], tensors["pointwise_weight"])
    run(tensors, config, packed=packed)
    for other in ops.available_cpu_capabilities().split(","):
        if other != capability:
            ops.set_cpu_capability(other)
            wanted = f"packed must be for the instruction set in use, {other}, got {capability}"
            with pytest.raises(RuntimeError, match=wanted):
                run(tensors, config, packed=packed)


def _good() -> dict[str, Any]:
    depthwise, pointwise = torch.randn(6, 1, 3, 3), torch.randn(4, 6, 1, 1)
    return {
        "input": torch.randn(2, 3, 5, 6),
        "packed": ops.pack_separable_conv2d(depthwise, pointwise),
        "depthwise_bias": torch.randn(6),
        "pointwise_bias": torch.randn(4),
        "residual": torch.randn(2, 4, 5, 6),
        "out_channels": 4,
        "depth_multiplier": 2,
        "kernel_size": [3, 3],
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
    }


def _packed(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return ops.pack_separable_conv2d(*(torch.randn(shape).to(dtype) for shape in shapes))


# What both the kernel and its fake refuse, in the same words.
BAD = (
    ({"input": torch.randn(3, 5, 6)}, r"input must have 4 dimensions \(N, C, H, W\), got shape \(3, 5, 6\)"),
    ({"input": torch.randn(2, 0, 5, 6)}, "input must have at least one channel"),
    ({"input": torch.randn(2, 3, 5, 6).long()}, "input must be float32|depthwise_bias must have the dtype"),
    ({"out_channels": 0}, "out_channels must be at least 1, got 0"),
    ({"depth_multiplier": 0}, "depth_multiplier must be at least 1, got 0"),
    ({"kernel_size": [3]}, "kernel_size must have 2 elements, got 1"),
    ({"kernel_size": [0, 3]}, r"kernel size must be at least 1, got \(0, 3\)"),
    ({"stride": [0, 1]}, r"stride must be between 1 and 2147483647, got \(0, 1\)"),
    ({"padding": [1]}, "padding must have 2 elements, got 1"),
    ({"dilation": [9, 9]}, "the dilated kernel must not be larger than the padded input"),
    ({"prologue_activation": 4}, r"prologue_activation must be 0 \(none\), .*, got 4"),
    ({"middle_activation": -1}, r"middle_activation must be 0 \(none\), .*, got -1"),
    ({"activation": 9}, r"activation must be 0 \(none\), .*, got 9"),
    ({"depthwise_bias": torch.randn(3)}, r"depthwise_bias must have shape \(6,\), got \(3,\)"),
    ({"pointwise_bias": torch.randn(4, 1)}, r"pointwise_bias must have shape \(4,\), got \(4, 1\)"),
    ({"pointwise_bias": torch.randn(4).double()}, "pointwise_bias must have the dtype of input"),
    ({"residual": torch.randn(2, 4, 5, 5)}, r"residual must have shape \(2, 4, 5, 6\), got \(2, 4, 5, 5\)"),
    ({"residual": torch.randn(2, 4, 5, 6).half()}, "residual must have the dtype of input"),
    ({"packed": torch.randn(64)}, r"packed must be a tensor that pack_separable_conv2d made, .* \(64,\)"),
    ({"packed": torch.zeros(64, 2, dtype=torch.uint8)}, r"packed must be a tensor that .* \(64, 2\)"),
)
# What only the bytes say.
BAD_BYTES = (
    ({"packed": torch.zeros(4096, dtype=torch.uint8)}, "packed must be a tensor that pack_separable_conv2d"),
    ({"packed": torch.zeros(3, dtype=torch.uint8)}, r"packed must be a tensor that .* got .*\(3,\)"),
    (
        {"packed": _packed((6, 1, 3, 3), (4, 6, 1, 1), dtype=torch.float64)},
        "packed must hold weights of the dtype of input, float32, got float64",
    ),
    (
        {"packed": _packed((6, 1, 3, 3), (5, 6, 1, 1))},
        r"packed must hold weights for .* = \(6, 4, 3, 3\), got \(6, 5, 3, 3\)",
    ),
    (
        {"packed": _packed((3, 1, 3, 3), (4, 3, 1, 1))},
        r"packed must hold weights for .* = \(6, 4, 3, 3\), got \(3, 4, 3, 3\)",
    ),
    (
        {"packed": _packed((6, 1, 1, 3), (4, 6, 1, 1))},
        r"packed must hold weights for .* = \(6, 4, 3, 3\), got \(6, 4, 1, 3\)",
    ),
    ({"packed": _packed((6, 1, 3, 3), (4, 6, 1, 1))[:-64]}, r"packed must have \d+ bytes, got \d+"),
)


def _identify(case: Any) -> str:
    if isinstance(case, str):
        return re.sub(r"\W+", "_", case)[:40]
    return "-".join(f"{k}={tuple(v.shape) if isinstance(v, Tensor) else v}" for k, v in case.items())


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake_kernel"])
@pytest.mark.parametrize(("changes", "message"), BAD, ids=_identify)
def test_bad_arguments_are_named(changes, message, fake):
    arguments = {**_good(), **changes}
    if fake:
        mode = FakeTensorMode()
        arguments = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=f"^frozen_separable_conv2d: ({message})"):
        ops.frozen_separable_conv2d(**arguments)


@pytest.mark.parametrize(("changes", "message"), BAD_BYTES, ids=_identify)
def test_bytes_that_are_for_something_else_are_refused(changes, message):
    with pytest.raises(RuntimeError, match=f"^frozen_separable_conv2d: {message}"):
        ops.frozen_separable_conv2d(**{**_good(), **changes})


def test_unaligned_bytes_are_refused():
    good = _good()
    shifted = torch.empty(good["packed"].numel() + 1, dtype=torch.uint8)[1:].copy_(good["packed"])
    with pytest.raises(RuntimeError, match="packed must be aligned to 64 bytes"):
        ops.frozen_separable_conv2d(**{**good, "packed": shifted})


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake_kernel"])
@pytest.mark.parametrize(
    ("depthwise", "pointwise", "message"),
    [
        ((6, 3, 3), (4, 6, 1, 1), r"depthwise_weight must have 4 dimensions"),
        ((6, 2, 3, 3), (4, 6, 1, 1), r"depthwise_weight must have shape .*, got \(6, 2, 3, 3\)"),
        ((6, 1, 0, 3), (4, 6, 1, 1), r"depthwise_weight must have shape .*, got \(6, 1, 0, 3\)"),
        ((6, 1, 3, 3), (4, 5, 1, 1), r"pointwise_weight must have shape \(4, 6, 1, 1\), got \(4, 5, 1, 1\)"),
        ((6, 1, 3, 3), (0, 6, 1, 1), r"C_out of pointwise_weight must be at least 1, got 0"),
    ],
)
def test_weights_that_cannot_be_packed_are_refused(depthwise, pointwise, message, fake):
    weights = torch.randn(depthwise), torch.randn(pointwise)
    if fake:
        mode = FakeTensorMode()
        weights = tuple(map(mode.from_tensor, weights))
    with pytest.raises(RuntimeError, match=f"^pack_separable_conv2d: {message}"):
        ops.pack_separable_conv2d(*weights)
    with pytest.raises(RuntimeError, match="pointwise_weight must have the dtype of depthwise_weight"):
        ops.pack_separable_conv2d(torch.randn(6, 1, 3, 3), torch.randn(4, 6, 1, 1).double())


@pytest.mark.parametrize("name", ["input", "depthwise_bias", "pointwise_bias", "residual"])
def test_a_gradient_is_refused_and_not_dropped(name):
    good = _good()
    good[name].requires_grad_()
    with (
        torch.enable_grad(),
        pytest.raises(RuntimeError, match="frozen_separable_conv2d: there is no gradient"),
    ):
        ops.frozen_separable_conv2d(**good)
    with torch.no_grad():
        expected = ops.frozen_separable_conv2d(**good)
    with torch.inference_mode():
        assert torch.equal(ops.frozen_separable_conv2d(**good), expected)


# --- The layer ------------------------------------------------------------------------------------


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 4)
    return norm.eval()


def _layers(**config: Any) -> dict[str, nn.Module]:
    """From 6 to 5 channels."""
    config = {"kernel_size": 3, "padding": 1, "bias": False, **config}
    bias, multiplier = config.pop("bias"), config.pop("depth_multiplier", 1)
    return {
        "depthwise": nn.Conv2d(6, 6 * multiplier, groups=6, bias=bias, **config),
        "pointwise": nn.Conv2d(6 * multiplier, 5, 1, bias=bias),
        "depthwise_norm": _norm(6 * multiplier),
        "pointwise_norm": _norm(5),
    }


def _stock(layers: dict[str, nn.Module], image: Tensor, residual: Tensor | None = None) -> Tensor:
    for name in ("prologue_activation", "depthwise", "depthwise_norm", "middle_activation"):
        image = layers[name](image) if name in layers else image
    for name in ("pointwise", "pointwise_norm"):
        image = layers[name](image) if name in layers else image
    image = image if residual is None else image + residual
    return layers["activation"](image) if "activation" in layers else image


def _frozen() -> FrozenSeparableConv2d:
    return FrozenSeparableConv2d.from_layers(**_layers(), activation="relu")


def _image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 9, 8)


@pytest.fixture(autouse=True)
def _inference() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def without_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels have to serve."""
    monkeypatch.setattr(FrozenSeparableConv2d, "_stock", None)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bias": True, "stride": 2},
        {"kernel_size": 5, "padding": "same", "padding_mode": "reflect"},
        {"kernel_size": (2, 4), "padding": "same", "dilation": (1, 3)},
        {"kernel_size": 3, "padding": "valid", "depth_multiplier": 3, "bias": True},
        {"padding": (2, 1), "padding_mode": "circular"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [None, "relu", "relu6", "hardswish"])
def test_layers_are_folded_into_one(kind, config, without_stock):
    layers = _layers(**config)
    if kind:
        layers |= {stage: LAYERS[kind]() for stage in STAGES}
    frozen = FrozenSeparableConv2d.from_layers(**layers)
    named = FrozenSeparableConv2d.from_layers(**(layers | dict.fromkeys(STAGES, kind)))
    for x in (_image(), _image(0), _image().to(memory_format=torch.channels_last)):
        expected = _stock(layers, x)
        torch.testing.assert_close(frozen(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(named(x), frozen(x))
        residual = torch.randn_like(expected)
        expected = _stock(layers, x, residual)
        torch.testing.assert_close(frozen(x, residual), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frozen(x[0], residual[0]), expected[0], rtol=1e-4, atol=1e-5)


def test_norms_are_folded_in_float64_and_rounded_once():
    layers = _layers()
    frozen = FrozenSeparableConv2d.from_layers(**layers)
    exact = {name: copy.deepcopy(layer).double() for name, layer in layers.items()}
    norm = exact["pointwise_norm"]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = exact["pointwise"].weight * scale.view(-1, 1, 1, 1)
    assert torch.equal(frozen.pointwise_weight, expected.float())
    assert torch.equal(frozen.pointwise_bias, (norm.bias - norm.running_mean * scale).float())
    plain = FrozenSeparableConv2d.from_layers(layers["depthwise"], layers["pointwise"])
    assert torch.equal(plain.depthwise_weight, layers["depthwise"].weight)
    assert plain.depthwise_weight.data_ptr() != layers["depthwise"].weight.data_ptr()


def test_norms_without_affine_parameters_are_folded(without_stock):
    layers = _layers()
    norm = nn.BatchNorm2d(5, affine=False).eval()
    nn.init.uniform_(norm.running_var, 0.1, 4)
    layers["pointwise_norm"] = norm
    x = _image()
    torch.testing.assert_close(FrozenSeparableConv2d.from_layers(**layers)(x), _stock(layers, x))


def test_a_separable_layer_is_frozen(without_stock):
    layer = sepconv.SeparableConv2d(6, 5, 3, padding=1, depthwise_bias=True)
    norm, x = _norm(5), _image()
    frozen = FrozenSeparableConv2d.from_separable_conv2d(layer, norm=norm, prologue_activation=nn.ReLU())
    torch.testing.assert_close(frozen(x), norm(layer(x.relu())), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, without_stock, capability):
    frozen, x = _frozen(), _image()
    expected = frozen(x)
    actual = frozen.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance * 4)


def test_the_state_dict_has_plain_weights_and_nothing_else(without_stock):
    frozen, other, x = _frozen(), _frozen(), _image()
    other(x)
    names = ["depthwise_weight", "pointwise_weight", "depthwise_bias", "pointwise_bias"]
    assert list(frozen.state_dict()) == names
    assert not torch.equal(other(x), frozen(x))
    other.load_state_dict(frozen.state_dict())
    assert torch.equal(other(x), frozen(x))
    another = _frozen()
    another(x)
    another.load_state_dict(frozen.state_dict(), assign=True)
    assert torch.equal(another(x), frozen(x))


def _saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "how",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), _saved],
    ids=["copy", "pickle", "save"],
)
def test_copies_work_alike_and_carry_no_packed_bytes(how, without_stock):
    frozen, x = _frozen(), _image()
    before = len(pickle.dumps(frozen))
    expected = frozen(x)
    assert len(pickle.dumps(frozen)) == before
    other = how(frozen)
    assert repr(other) == repr(frozen)
    assert torch.equal(other(x), expected)
    other.pointwise_weight.zero_()
    other.repack()
    assert torch.equal(frozen(x), expected)


def _in_place(frozen: FrozenSeparableConv2d) -> None:
    frozen.pointwise_weight.mul_(2)


def _replaced(frozen: FrozenSeparableConv2d) -> None:
    frozen.depthwise_weight = -frozen.depthwise_weight


def _by_data(frozen: FrozenSeparableConv2d) -> None:
    frozen.pointwise_weight.data.mul_(2)
    frozen.repack()


def _bias(frozen: FrozenSeparableConv2d) -> None:
    frozen.pointwise_bias.data.add_(1)


def _inference_load(frozen: FrozenSeparableConv2d) -> None:
    with torch.inference_mode():
        frozen.load_state_dict({name: 2 * value for name, value in frozen.state_dict().items()})


@pytest.mark.parametrize("change", [_in_place, _replaced, _by_data, _bias, _inference_load])
def test_changed_weights_count_at_the_next_call(change, without_stock):
    frozen, x = _frozen(), _image()
    before = frozen(x)
    change(frozen)
    after = frozen(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, copy.deepcopy(frozen)(x))


def test_weights_made_under_inference_mode_are_packed_and_loaded(without_stock):
    x = _image()
    with torch.inference_mode():
        frozen = _frozen()
        frozen(x)
        other = _frozen()
        frozen.load_state_dict(other.state_dict())
        assert torch.equal(frozen(x), other(x))
    assert torch.equal(frozen(x), other(x))


def test_functional_call_takes_other_weights(without_stock):
    frozen, other, x = _frozen(), _frozen(), _image()
    expected = frozen(x)
    assert torch.equal(torch.func.functional_call(frozen, other.state_dict(), (x,)), other(x))
    assert torch.equal(frozen(x), expected)


def test_the_weights_follow_the_cpu_capability(capability, without_stock):
    frozen, x = _frozen(), _image()
    expected = frozen(x)
    for other in ops.available_cpu_capabilities().split(","):
        ops.set_cpu_capability(other)
        torch.testing.assert_close(frozen(x), expected)


def test_unchanged_weights_are_packed_once(monkeypatch, without_stock):
    frozen, x, calls = _frozen(), _image(), []
    pack = FrozenSeparableConv2d._pack
    monkeypatch.setattr(FrozenSeparableConv2d, "_pack", lambda *a: calls.append(None) or pack(*a))
    for _ in range(3):
        frozen(x)
        with torch.inference_mode():
            frozen(x)
    assert len(calls) == 1


def test_autocast_casts_input_weights_and_residual(without_stock):
    frozen, x = _frozen(), _image()
    residual = torch.randn_like(frozen(x))
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            actual = frozen(x, residual)
            assert torch.equal(actual, frozen(x.bfloat16(), residual.bfloat16()))
    assert actual.dtype == torch.bfloat16
    expected = copy.deepcopy(frozen).bfloat16()(x.bfloat16(), residual.bfloat16())
    assert torch.equal(actual, expected)
    assert frozen(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(frozen).double()(x.double()).dtype == torch.float64


# --- Without a kernel, and under transforms -------------------------------------------------------


def test_stock_functions_serve_without_a_kernel(monkeypatch):
    layers, x = _layers(bias=True), _image()
    frozen = FrozenSeparableConv2d.from_layers(**layers, middle_activation="relu6", activation="hardswish")
    residual = torch.randn_like(frozen(x))
    expected = frozen(x, residual)
    monkeypatch.setattr(functional, "has_kernel", lambda input: False)
    monkeypatch.setattr(FrozenSeparableConv2d, "_frozen", None)
    torch.testing.assert_close(frozen(x, residual), expected)
    torch.testing.assert_close(frozen(x[0], residual[0]), expected[0])
    for wrong in (residual[:1], residual[..., :1]):
        with pytest.raises(RuntimeError, match=r"residual must have shape \(2, 5, 9, 8\), got"):
            frozen(x, wrong)


def test_meta_tensors_are_served():
    frozen = _frozen().to("meta")
    assert frozen(_image().to("meta")).shape == (2, 5, 9, 8)


def test_vmap_and_tangents_agree_with_a_loop_and_stock():
    frozen, images = _frozen(), torch.randn(3, 2, 6, 9, 8)
    residuals = torch.randn(3, 2, 5, 9, 8)
    torch.testing.assert_close(torch.vmap(frozen)(images), torch.stack([frozen(x) for x in images]))
    actual = torch.vmap(frozen)(images, residuals)
    torch.testing.assert_close(
        actual, torch.stack([frozen(x, r) for x, r in zip(images, residuals, strict=True)])
    )
    actual = torch.vmap(frozen, (0, None))(images, residuals[0])
    torch.testing.assert_close(actual, torch.stack([frozen(x, residuals[0]) for x in images]))
    x, tangent = images[0], torch.randn_like(images[0])
    with torch.enable_grad():
        _, actual = torch.func.jvp(frozen, (x,), (tangent,))
        with pytest.raises(RuntimeError, match="no gradient"):
            frozen(x.clone().requires_grad_())
    torch.testing.assert_close(frozen(x + 1e-3 * tangent) - frozen(x), 1e-3 * actual, rtol=0.1, atol=1e-3)


def test_a_graph_breaks_nowhere_and_takes_the_packed_weights_as_they_are(without_stock):
    frozen, other, x = _frozen(), _frozen(), _image()
    residual = torch.randn_like(other(x))
    compiled = torch.compile(frozen, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, residual), copy.deepcopy(frozen)(x, residual))
    with torch._dynamo.config.patch(error_on_recompile=True):
        larger = torch.randn(3, 6, 12, 11)
        residual = torch.randn(3, 5, 12, 11)
        torch.testing.assert_close(compiled(larger, residual), copy.deepcopy(frozen)(larger, residual))
        frozen.load_state_dict(other.state_dict())
        torch.testing.assert_close(compiled(larger, residual), other(larger, residual))


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_an_exported_program_packs_for_itself(strict):
    frozen, x = _frozen(), _image()
    frozen(x)
    sizes = {"input": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4, max=64)}}
    program = torch.export.export(frozen, (x,), dynamic_shapes=sizes, strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["sepconv.pack_separable_conv2d.default", "sepconv.frozen_separable_conv2d.default"]
    assert set(program.state_dict) == set(frozen.state_dict())
    larger = torch.randn(3, 6, 12, 8)
    torch.testing.assert_close(program.module()(larger), frozen(larger))


# --- Bad input ------------------------------------------------------------------------------------


def test_bad_calls_are_refused():
    frozen, x = _frozen(), _image()
    with pytest.raises(TypeError, match="FrozenSeparableConv2d: input must be a Tensor, got int"):
        frozen(3)
    with pytest.raises(RuntimeError, match=r"input must have 4 dimensions .* got shape \(6, 9\)"):
        frozen(x[0, :, :, 0])
    with pytest.raises(RuntimeError, match=r"input must have 6 channels, got shape \(2, 5, 9, 8\)"):
        frozen(x[:, :5])
    with pytest.raises(RuntimeError, match=r"input must have the dtype of the weights, .*32, got .*64"):
        frozen(x.double())
    with pytest.raises(RuntimeError, match=r"residual must have shape \(2, 5, 9, 8\), got \(2, 5, 9, 7\)"):
        frozen(x, torch.randn(2, 5, 9, 7))


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


BAD_LAYERS = (
    (
        {"depthwise": nn.Conv2d(6, 6, 3)},
        "depthwise must be a plain nn.Conv2d with groups equal to in_channels",
    ),
    ({"depthwise": _hooked(nn.Conv2d(6, 6, 3, groups=6))}, "depthwise must be a plain nn.Conv2d"),
    ({"pointwise": nn.Conv2d(6, 5, 3)}, "pointwise must be a plain 1x1 nn.Conv2d of 6 input channels"),
    ({"pointwise": nn.Conv2d(7, 5, 1)}, "pointwise must be a plain 1x1 nn.Conv2d of 6 input channels"),
    ({"pointwise": nn.Identity()}, "pointwise must be a plain 1x1 nn.Conv2d of 6 input channels"),
    ({"pointwise": nn.Conv2d(6, 5, 1).double()}, "pointwise_weight must be torch.float32 on cpu"),
    ({"depthwise_norm": nn.BatchNorm2d(6)}, "depthwise_norm must be a plain nn.BatchNorm2d in eval mode"),
    ({"pointwise_norm": nn.BatchNorm2d(6).eval()}, "pointwise_norm must be of 5 features"),
    (
        {"pointwise_norm": nn.BatchNorm2d(5, track_running_stats=False).eval()},
        "pointwise_norm must be a plain",
    ),
    ({"pointwise_norm": nn.InstanceNorm2d(5).eval()}, "pointwise_norm must be a plain nn.BatchNorm2d"),
    ({"activation": nn.GELU()}, r"activation must be None, nn.ReLU, .*, got GELU\("),
    ({"middle_activation": "swish"}, "middle_activation must be None, nn.ReLU, .*, got 'swish'"),
    ({"prologue_activation": nn.ReLU}, "prologue_activation must be None, nn.ReLU, .*, got <class"),
)


@pytest.mark.parametrize(
    ("changes", "message"), BAD_LAYERS, ids=lambda value: value if isinstance(value, str) else None
)
def test_layers_that_cannot_be_frozen_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^FrozenSeparableConv2d: {message}"):
        FrozenSeparableConv2d.from_layers(**(_layers() | changes))
    with pytest.raises(ValueError, match="layer must be a plain SeparableConv2d"):
        FrozenSeparableConv2d.from_separable_conv2d(_hooked(sepconv.SeparableConv2d(2, 2, 3)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"depthwise_weight": None}, TypeError, "depthwise_weight must be a Tensor, got NoneType"),
        ({"depthwise_weight": torch.ones(6, 2, 3, 3)}, ValueError, "depthwise_weight must be of shape"),
        ({"depth_multiplier": 4}, ValueError, "depthwise_weight must be of shape .* with multiplier 4"),
        ({"depth_multiplier": 0}, ValueError, "depth_multiplier must be at least 1, got 0"),
        (
            {"pointwise_weight": torch.ones(5, 7, 1, 1)},
            ValueError,
            "pointwise_weight must be of shape",
        ),
        (
            {"pointwise_bias": torch.ones(6)},
            ValueError,
            r"pointwise_bias must be of shape \(5,\)",
        ),
        ({"depthwise_bias": torch.ones(6).half()}, ValueError, "depthwise_bias must be torch.float32 on cpu"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"dilation": (1, 2, 3)}, ValueError, "dilation must be an int or a pair"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "full"}, RuntimeError, "padding must be numbers, 'same' or 'valid', got 'full'"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of zeros, .*, got 'mirror'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, error, message):
    arguments = {"depthwise_weight": torch.ones(6, 1, 3, 3), "pointwise_weight": torch.ones(5, 6, 1, 1)}
    with pytest.raises(error, match=f"^FrozenSeparableConv2d: {message}"):
        FrozenSeparableConv2d(**(arguments | changes))
