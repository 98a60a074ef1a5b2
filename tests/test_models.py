"""The networks: their size, their cost, and that both sets of layers give the same network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import sepconv
from sepconv import models
from sepconv.models.blocks import Residual, separable_units
from sepconv.models.layers import LAYERS, layer_set
from sepconv.models.settings import SETTINGS, build_model

NETWORKS = {"xception": models.xception, "optimized": models.optimized_xception}


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        (models.xception, {}, 22_855_952),
        (models.xception, {"num_classes": 10}, 20_827_442),
        (models.optimized_xception, {}, 7_433_450),
        (models.optimized_xception, {"row_average": True, "row_stride": 2}, 7_433_450),
        (models.optimized_xception, {"shortcuts": "second", "hidden": (256, 256)}, 7_432_554),
        (models.optimized_xception, {"shortcuts": "module", "hidden": (256,)}, 7_432_810),
        (models.optimized_xception, {"hidden": ()}, 7_433_450 - 263_562 + 2048 * 10 + 10),
    ],
)
def test_parameter_counts_are_exact(network, options, expected, layers):
    with torch.device("meta"):
        assert parameters_of(network(layers=layers, **options)) == expected


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(
    ("name", "size", "stem_stride", "expected"),
    [
        ("xception", 32, 2, 88_184_800),
        ("xception", 32, 1, 374_950_144),
        ("xception", 299, 2, 8_355_375_976),
        ("optimized", 32, 2, 21_285_280),
        ("optimized", 32, 1, 95_948_032),
        ("optimized", 299, 2, 2_148_262_496),
    ],
)
def test_multiply_adds_are_exact(name, size, stem_stride, expected, layers):
    with torch.device("meta"):
        model = NETWORKS[name](num_classes=10, stem_stride=stem_stride, layers=layers).eval()
        image = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize(("name", "expected"), [("xception", 36), ("optimized", 26)])
def test_number_of_convolutional_layers_beside_shortcuts(name, expected):
    with torch.device("meta"):
        model = NETWORKS[name](num_classes=10)
    names = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    dense_or_pointwise = [key for key in names if not key.endswith("depthwise") and "shortcut" not in key]
    assert len(dense_or_pointwise) == expected


@pytest.mark.parametrize("setting", SETTINGS)
def test_same_seed_gives_same_weights_whichever_layers(setting):
    states = []
    for layers in LAYERS:
        torch.manual_seed(3)
        states.append(build_model(setting, 10, 3, layers=layers).state_dict())
    first, *others = states
    for other in others:
        assert list(other) == list(first)
        assert all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("stem_stride", "memory_format"),
    [(2, torch.contiguous_format), (2, torch.channels_last), (1, torch.channels_last)],
)
@pytest.mark.parametrize("setting", SETTINGS)
def test_both_layers_compute_the_same_network(setting, stem_stride, memory_format):
    torch.manual_seed(0)
    stock = build_model(setting, 10, 3, stem_stride=stem_stride, layers="stock")
    ours = build_model(setting, 10, 3, stem_stride=stem_stride, layers="sepconv")
    ours.load_state_dict(stock.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=memory_format)
    for model in (stock, ours):
        model.to(dtype=torch.float64, memory_format=memory_format)
    expected, got = stock(images), ours(images)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    expected.square().sum().backward()
    got.square().sum().backward()
    for (name, a), b in zip(stock.named_parameters(), ours.parameters(), strict=True):
        scale = max(1.0, float(a.grad.abs().max()))
        assert float((a.grad - b.grad).abs().max()) <= 1e-8 * scale, name
    for (name, a), b in zip(stock.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), stock.eval()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_batch_norm_of_ours_stands_in_a_chain(setting):
    with torch.device("meta"):
        chains = {
            layers: [
                name
                for name, module in build_model(setting, 10, 3, layers=layers).named_modules()
                if isinstance(module, sepconv.FusedSequential)
            ]
            for layers in LAYERS
        }
        model = build_model(setting, 10, 3)
    assert chains["stock"] == []
    outside = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and not any(name.startswith(f"{chain}.") for chain in chains["sepconv"])
    ]
    assert outside == []


@pytest.mark.parametrize("layers", LAYERS)
def test_a_residual_module_leaves_its_input_alone(layers):
    """Its first ReLU must not work in place: the shortcut reads the same tensor."""
    body = separable_units([8, 8, 8], layer_set(layers))
    images = torch.randn(2, 8, 5, 5, requires_grad=True)
    input = images.clone()
    Residual(body, nn.Identity())(input).sum().backward()
    assert torch.equal(input, images)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("row_stride", [1, 2, 3])
def test_optimized_with_data_is_optimized_on_averaged_rows(layers, row_stride):
    plain = models.optimized_xception(layers=layers).double().eval()
    with_data = models.optimized_xception(row_average=True, row_stride=row_stride, layers=layers)
    with_data.double().eval().load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    averaged = F.avg_pool2d(images, (3, 1), (row_stride, 1), (1, 0), count_include_pad=False)
    with torch.no_grad():
        torch.testing.assert_close(with_data(images), plain(averaged), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_feature_maps_at_32_pixels(name):
    with torch.device("meta"):
        model = NETWORKS[name](num_classes=10).eval()
        images = torch.empty(2, 3, 32, 32)
    sizes = []
    for module in (model.stem, *model.entry, model.exit):
        module.register_forward_hook(lambda _m, _i, output: sizes.append(output.shape[-1]))
    assert model.forward_features(images).shape == (2, 2048, 1, 1)
    assert sizes == [13, 7, 4, 2, 1]


def test_grey_images_and_other_class_counts():
    model = models.optimized_xception(num_classes=7, in_channels=1).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: models.xception(layers="keras"), ["layers", "'stock'", "'keras'"]),
        (lambda: models.xception(num_classes=0), ["num_classes", "at least 1", "0"]),
        (lambda: models.xception(stem_stride=3), ["stem_stride", "1 or 2", "3"]),
        (lambda: models.optimized_xception(in_channels=0), ["in_channels", "0"]),
        (lambda: models.optimized_xception(shortcuts="none"), ["shortcuts", "'module'", "'none'"]),
        (lambda: models.optimized_xception(hidden=(64, 0)), ["hidden[1]", "at least 1", "0"]),
        (lambda: models.optimized_xception(row_stride=2), ["row_stride", "row_average", "2"]),
        (lambda: models.optimized_xception(row_average=True, row_stride=0), ["row_stride", "0"]),
        (lambda: build_model("fast", 10, 3), ["setting", "'optimized'", "'fast'"]),
        (lambda: build_model("xception", 10, 3, row_stride=2), ["row_stride", "'xception'", "2"]),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
