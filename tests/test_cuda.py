"""The operators on a GPU: every shape, dtype and layout, their derivatives, streams, graphs and errors.

Data and float64 results are made on the CPU; see device.py. Skipped, with the reason, where there is no GPU.
"""

from __future__ import annotations

import copy
import itertools

import device
import pytest
import torch
from cases import BUILD, INDEPENDENT_VALUES
from chains import CHAINS, MEMORY_FORMATS, grad_like, gradients, images, twins
from device import CUDA, carried, carried_all, on_device
from numerics import BIAS_DEVIATIONS, STOCK_FACTOR, assert_near, assert_same_bits
from operators import OPERATORS, ROW_AVERAGE_CONV2D, SEPARABLE_CONV2D, check
from samples import CHANNELS, DTYPES, FEW_LAYOUTS, LAYOUTS, identify, integers, normals, pairwise
from test_determinism import SPLITS
from test_gradients import SMALL, WIDE
from torch.autograd import gradcheck, gradgradcheck

import sepconv

if device.missing():
    pytest.skip(device.missing(), allow_module_level=True)
only_cuda = pytest.mark.skipif(not CUDA, reason="about CUDA itself")

VIEWS = {"layout": FEW_LAYOUTS, "grad_layout": FEW_LAYOUTS}
WINDOWS = {
    "kernel": ((3, 3), (1, 1), (2, 2), (5, 5), (7, 7), (3, 5)),
    "stride": ((1, 1), (2, 2), (3, 3), (1, 2)),
    "dilation": ((1, 1), (2, 2), (2, 1)),
    "padding": ((0, 0), (1, 1), (2, 2), (3, 3), (1, 0), (0, 2), (3, 1)),
    "unused_pixels": (0, 1, 2),
}
BIASES = ((), ("depthwise_bias",), ("pointwise_bias",), ("depthwise_bias", "pointwise_bias"))
EVERY = {"dtype": DTYPES, **WINDOWS, **VIEWS}
FEWER_VIEWS = dict.fromkeys(VIEWS, ("channels_last", "contiguous", "some_channels_last", "unaligned"))
# Sweeps of pairs: many channels on small maps, few on large ones, so that float64 on the CPU takes little.
SEPARABLE = {
    "channels": {
        **EVERY,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "output_size": ((1, 1), (2, 2), (7, 7)),
        "batch": (0, 1, 3),
        "depth_multiplier": (1, 2, 3),
        "biases": BIASES,
    },
    "many channels": {
        "dtype": DTYPES,
        "in_channels": (728, 1024, 64),
        "out_channels": (728, 1024, 64),
        "output_size": ((1, 1), (2, 2), (7, 7)),
        "batch": (1, 3),
        "biases": BIASES,
        **FEWER_VIEWS,
    },
    "maps": {
        **EVERY,
        **FEWER_VIEWS,
        "in_channels": (1, 3, 8, 17),
        "out_channels": (1, 8, 19),
        "output_size": ((19, 19), (37, 53), (147, 147)),
        "batch": (1, 2),
        "depth_multiplier": (1, 2),
    },
    "batch": {
        **EVERY,
        **FEWER_VIEWS,
        "in_channels": (3, 16, 33),
        "out_channels": (8, 33),
        "output_size": ((1, 1), (7, 7), (19, 19)),
        "batch": (33,),
    },
}
ROW_AVERAGE_CONV2D_FACTORS = {
    **EVERY,
    "in_channels": (1, 3, 4, 8, 17, 33),
    "out_channels": (1, 7, 8, 32, 33, 64),
    "output_size": ((1, 1), (2, 2), (7, 7), (19, 19), (37, 53)),
    "batch": (0, 1, 3),
    "row_stride": (1, 2, 3),
    "bias": (False, True),
}
ROW_AVERAGE_FACTORS = {
    "dtype": DTYPES,
    "batch": (0, 1, 3, 33),
    "channels": (1, 3, 8, 17, 64, 100),
    "height": (1, 2, 3, 7, 19, 37, 147),
    "width": (1, 2, 7, 19, 53, 147),
    "stride": (1, 2, 3),
    **VIEWS,
}
SWEEPS = [
    *(("separable_conv2d", name, factors) for name, factors in SEPARABLE.items()),
    ("row_average", "all", ROW_AVERAGE_FACTORS),
    ("row_average_conv2d", "all", ROW_AVERAGE_CONV2D_FACTORS),
]
# Layers of networks, such as kernels for tensor cores want. Their float64 results are stock's on the GPU.
LARGE = [
    {"in_channels": 64, "out_channels": 128, "output_size": (147, 147), "batch": 1},
    {"in_channels": 128, "out_channels": 256, "output_size": (37, 53), "batch": 3},
    {"in_channels": 728, "out_channels": 728, "output_size": (19, 19), "batch": 2},
    {"in_channels": 728, "out_channels": 1024, "output_size": (10, 10), "batch": 3},
    {"in_channels": 1024, "out_channels": 1536, "output_size": (7, 7), "batch": 2},
    {"in_channels": 256, "out_channels": 256, "output_size": (7, 7), "stride": (2, 2), "batch": 33},
    {"in_channels": 1024, "out_channels": 728, "output_size": (1, 1), "batch": 33},
]
IMAGES = {"layout": "channels_last", "grad_layout": "channels_last"}
BY_NAME = {operator.name: operator for operator in OPERATORS}


@pytest.fixture(autouse=True)
def tf32(request):
    """Sets whether stock may use TF32; off unless a test says otherwise.

    And asks cuDNN for algorithms that give the same bits in every run where its backward convolutions compute
    some gradient (docs/gpu.md): without being asked, some of them do not.
    """
    case = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    uses_cudnn = (
        case.get("name") == "row_average_conv2d"
        or case.get("dtype") is torch.float32
        or request.node.name.startswith("test_a_chain")
    )
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = uses_cudnn

    def allow(allowed):
        for flag in flags:
            flag.allow_tf32 = allowed

    allow(False)
    yield allow
    torch.backends.cudnn.deterministic = deterministic
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


def _sweep(seed, independent=False):
    """Cases of all families; those of independent values are slower to check, and fewer."""
    change = INDEPENDENT_VALUES | dict.fromkeys(("in_channels", "out_channels"), CHANNELS[1::3])
    return [
        pytest.param(name, case, path, id=f"{name}-{family}-{identify(case)}-{path}")
        for name, family, factors in SWEEPS
        for case in pairwise(
            {
                key: change[key] if independent and values in (FEW_LAYOUTS, CHANNELS) else values
                for key, values in factors.items()
            },
            seed,
        )
        for path in _paths(name, case["dtype"])
    ]


def _paths(name, dtype):
    """Those of a forward: in half precision, separable convolutions have a second one."""
    fuses = name == "separable_conv2d" and dtype.itemsize == 2
    return ("stages", "fused") if fuses else ("stages",)


@pytest.fixture
def path(request, monkeypatch):
    monkeypatch.setenv("SEPCONV_CUDA_PATH", request.param)


@pytest.mark.parametrize(("name", "case", "path"), _sweep(0), indirect=["path"])
def test_results_are_exact_where_sums_are_exact(name, case, path):
    check(on_device(BY_NAME[name]), *BUILD[name](integers, **case), exact=True)


@pytest.mark.parametrize(("name", "case", "path"), _sweep(1, independent=True), indirect=["path"])
def test_results_are_as_accurate_as_stock(name, case, path):
    check(on_device(BY_NAME[name]), *BUILD[name](normals, **case))


@pytest.mark.parametrize(
    ("dtype", "path"),
    [(dtype, path) for dtype in DTYPES for path in _paths("separable_conv2d", dtype)],
    indirect=["path"],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("factors", LARGE, ids=identify)
def test_large_layers_are_as_accurate_as_stock(factors, layout, dtype, path):
    built = BUILD["separable_conv2d"](normals, **factors, dtype=dtype, layout=layout, grad_layout=layout)
    check(on_device(SEPARABLE_CONV2D, float64=device.NAME), *built)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_any_view_works_as_input_and_as_grad_output(operator, dtype):
    for layout in LAYOUTS:
        both = {"layout": layout, "grad_layout": layout}
        for count, views in ((16, both), (37, {"layout": layout}), (37, {"grad_layout": layout})):
            sizes = {"in_channels": count, "out_channels": count + 3, "output_size": (6, 18)}
            sizes = {"channels": count} if operator.name == "row_average" else sizes
            built = BUILD[operator.name](integers, dtype=dtype, **sizes, **views)
            check(on_device(operator), *built, exact=True)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_weights_may_have_any_strides(layout):
    tensors, config, grad_output = BUILD["separable_conv2d"](in_channels=16, out_channels=24, **IMAGES)
    change = {
        "channels_last": lambda w: w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w,
        "sliced": lambda w: w.repeat_interleave(2, 0)[1::2],
        "transposed": lambda w: w.transpose(0, -1).contiguous().transpose(0, -1),
        "expanded": lambda w: w[:1].expand(w.shape),
    }[layout]
    changed = {name: tensor if name == "input" else change(tensor) for name, tensor in tensors.items()}
    check(on_device(SEPARABLE_CONV2D), changed, config, grad_output, exact=True)


# TF32 -------------------------------------------------------------------------------------------------------

TF32_EPS = 2.0**-10


def _rms(values):
    return values.square().mean().sqrt().item() if values.numel() else 0.0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("factors", [*LARGE, {"in_channels": 33, "out_channels": 65}], ids=identify)
@pytest.mark.parametrize("name", ["separable_conv2d", "row_average_conv2d"])
def test_tf32_is_as_accurate_as_stock_with_tf32(name, factors, layout, tf32):
    """Both operands of a product are rounded to 10 bits: their sums are worse than float32's, within bounds.

    Stock does not use TF32 for each of these; the random part of that rounding excuses ours all the same.
    """
    if name == "row_average_conv2d":
        factors = {**factors, "in_channels": 3, "out_channels": min(factors["out_channels"], 64)}
    operator = on_device(BY_NAME[name], float64=device.NAME)
    tensors, config, grad_output = BUILD[name](normals, **factors, layout=layout, grad_layout=layout)

    def results(convert):
        converted = {key: None if value is None else convert(value) for key, value in tensors.items()}
        output = {"output": operator.reference(**converted, **config)}
        return output | operator.stock_gradients(convert(grad_output), converted, config)

    tf32(True)
    actual = {"output": operator.forward(tensors, config)} | operator.gradients(grad_output, tensors, config)
    stock = results(lambda tensor: tensor.contiguous())
    exact = results(lambda tensor: tensor.double().contiguous())
    magnitude = results(lambda tensor: tensor.double().abs().contiguous())
    squares = results(lambda tensor: tensor.double().square().contiguous())
    for key, result in actual.items():
        if result is None:
            continue
        error, theirs = result.double() - exact[key], stock[key].double() - exact[key]
        bound = (2 * TF32_EPS * magnitude[key]).clamp_min(STOCK_FACTOR * theirs.abs().max())
        assert (error.abs() <= bound).all(), f"{key}: an element is wrong"
        random = TF32_EPS / 2 * squares[key].mean().sqrt().item()
        limit = STOCK_FACTOR * max(_rms(theirs), random)
        assert _rms(error) <= limit, f"{key}: root mean square error {_rms(error):.2e} above {limit:.2e}"
        bias, stock_bias = ((e * exact[key].sign()).mean().abs().item() for e in (error, theirs))
        limit = max(
            STOCK_FACTOR * stock_bias, BIAS_DEVIATIONS * _rms(error) / error.numel() ** 0.5, 0.15 * limit
        )
        assert bias <= limit, f"{key}: signed bias {bias:.2e} above {limit:.2e}: truncated, not rounded?"


@pytest.mark.parametrize("factors", LARGE, ids=identify)
def test_float32_without_tf32_is_within_the_bound_on_float32_sums(factors):
    """Whatever stock does: cuDNN's float32 may be a transform that is less accurate."""
    tensors, config, _ = BUILD["separable_conv2d"](normals, **factors, **IMAGES)
    operator = on_device(SEPARABLE_CONV2D, float64=device.NAME)
    exact, magnitude = (
        operator.reference(
            **{name: None if t is None else convert(t.double()) for name, t in tensors.items()}, **config
        )
        for convert in (torch.clone, torch.abs)
    )
    assert_near(operator.forward(tensors, config), exact, magnitude, torch.float32)


# Derivatives and determinism --------------------------------------------------------------------------------


def _leaves(name, factors, dtype=torch.float64):
    """The operator as a function of its tensors on the device, these as leaves, and a grad_output."""
    tensors, config, grad_output = BUILD[name](normals, **{"dtype": dtype, **factors})
    leaves = {key: carried(tensor).requires_grad_() for key, tensor in tensors.items() if tensor is not None}

    def call(*values):
        return getattr(torch.ops.sepconv, name)(**dict(zip(leaves, values, strict=True)), **config)

    return call, tuple(leaves.values()), carried(grad_output)


def _gradients(call, leaves, grad_output):
    output = call(*leaves)
    return (output.detach(), *torch.autograd.grad(output, leaves, grad_output))


@pytest.mark.parametrize(
    ("name", "factors"), [(name, factors) for name in SMALL for factors in SMALL[name]], ids=str
)
def test_every_derivative_agrees_with_finite_differences(name, factors):
    sizes = {"in_channels": 2, "out_channels": 3, "output_size": (2, 3)}
    sizes = {"channels": 2, "width": 3} if name == "row_average" else sizes
    function, leaves, _ = _leaves(name, {"batch": 2, **sizes, **factors})
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize(
    ("name", "factors"), [(name, factors) for name in WIDE for factors in WIDE[name]], ids=str
)
def test_derivatives_of_wide_layers_agree_along_random_directions(name, factors):
    function, leaves, _ = _leaves(name, factors)
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


DETERMINISM = [(name, factors) for name in SPLITS for factors in SPLITS[name]]
DETERMINISM += [("separable_conv2d", {**factors, **IMAGES}) for factors in LARGE[:3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "factors"), DETERMINISM, ids=str)
def test_twenty_runs_give_the_same_bits(name, factors, dtype, tf32):
    tf32(True)
    case = _leaves(name, factors, dtype)
    expected = _gradients(*case)
    for run in range(20):
        for result, wanted in zip(_gradients(*case), expected, strict=True):
            assert torch.equal(result, wanted), f"run {run}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "factors"), [(name, SPLITS[name][0]) for name in SPLITS], ids=str)
def test_output_and_input_gradient_bits_do_not_depend_on_batch_size(name, factors, dtype):
    """Input gradients that torch's own convolutions compute are left out: these may choose by batch size."""
    operator = on_device(BY_NAME[name])
    library = name == "row_average_conv2d" or (name == "separable_conv2d" and dtype == torch.float32)
    tensors, config, grad_output = BUILD[name](normals, dtype=dtype, **{**factors, "batch": 7})
    output = operator.forward(tensors, config)
    gradient = operator.gradients(grad_output, tensors, config)["input"]
    for part in (slice(0, 1), slice(3, 4), slice(2, 5), slice(6, 7)):
        some = {**tensors, "input": tensors["input"][part]}
        assert_same_bits(operator.forward(some, config), output[part], f"output of images {part}")
        if not (CUDA and library):
            found = operator.gradients(grad_output[part], some, config)["input"]
            assert_same_bits(found, gradient[part], f"gradient of images {part}")


def test_each_gradient_is_the_same_whichever_others_are_asked_for():
    tensors, config, grad_output = BUILD["separable_conv2d"](
        normals, in_channels=24, out_channels=40, **IMAGES
    )
    operator = on_device(SEPARABLE_CONV2D)
    every = operator.backward(grad_output, tensors, config, [True] * 5)
    for mask in itertools.product([False, True], repeat=5):
        some = operator.backward(grad_output, tensors, config, mask)
        for name, wanted, gradient, expected in zip(tensors, mask, some, every, strict=True):
            if wanted:
                assert_same_bits(gradient, expected, f"gradient of {name} with mask {mask}")
            else:
                assert gradient is None, f"gradient of {name} was not asked for in mask {mask}"


# Streams, graphs, devices -----------------------------------------------------------------------------------

BUSY = {
    "separable_conv2d": {"in_channels": 64, "out_channels": 96, "output_size": (20, 20), **IMAGES},
    "row_average": {"channels": 64, "height": 20, "width": 20, **IMAGES},
    "row_average_conv2d": {"in_channels": 3, "out_channels": 32, "output_size": (20, 20), **IMAGES},
}
busy = pytest.mark.parametrize(
    ("name", "dtype"), list(itertools.product(BUSY, (torch.float32, torch.bfloat16))), ids=str
)
CYCLES = 200_000_000  # of a GPU that sleeps: about 0.1 s


@only_cuda
@busy
def test_a_call_runs_on_the_current_stream(name, dtype):
    """The input is written there late: a kernel on another stream would read what was before."""
    call, leaves, grad_output = _leaves(name, BUSY[name], dtype)
    expected = _gradients(call, leaves, grad_output)
    values = leaves[0].detach().clone()
    with torch.no_grad():
        leaves[0].fill_(float("nan"))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        with torch.no_grad():
            leaves[0].copy_(values)
        found = _gradients(call, leaves, grad_output)
    stream.synchronize()
    for result, wanted in zip(found, expected, strict=True):
        assert torch.equal(result, wanted)


@only_cuda
@busy
def test_a_call_does_not_wait_for_the_device(name, dtype):
    case = _leaves(name, BUSY[name], dtype)
    _gradients(*case)
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)
    torch.cuda.set_sync_debug_mode("error")  # which knows torch's own waits alone
    try:
        _gradients(*case)
        waited = torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not waited


@only_cuda
@busy
def test_forward_and_backward_can_be_captured_and_replayed(name, dtype):
    call, leaves, grad_output = _leaves(name, BUSY[name], dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _gradients(call, leaves, grad_output)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _gradients(call, leaves, grad_output)
    for factor in (-0.5, 3.0):
        with torch.no_grad():
            for tensor in (*leaves, grad_output):
                tensor.mul_(factor)
        graph.replay()
        for result, wanted in zip(captured, _gradients(call, leaves, grad_output), strict=True):
            assert torch.equal(result, wanted)


@pytest.mark.skipif(not CUDA or torch.cuda.device_count() < 2, reason="needs two GPUs")
@busy
def test_a_call_runs_on_the_device_of_its_tensors(name, dtype):
    call, leaves, grad_output = _leaves(name, BUSY[name], dtype)
    others = [leaf.detach().to("cuda:1").requires_grad_() for leaf in leaves]
    found = _gradients(call, others, grad_output.to("cuda:1"))
    for result, wanted in zip(found, _gradients(call, leaves, grad_output), strict=True):
        assert result.device.index == 1
        assert torch.equal(result.cpu(), wanted.cpu())


@only_cuda
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_tensors_of_two_devices_are_refused_by_name(operator):
    tensors, config, grad_output = BUILD[operator.name]()
    for name in tensors if len(tensors) > 1 else ():
        mixed = {**carried_all(tensors), name: tensors[name]}
        with pytest.raises(RuntimeError, match=r"weight|bias|input"):
            operator.forward(mixed, config)
        if name != "pointwise_bias" and not (operator is ROW_AVERAGE_CONV2D and name == "bias"):
            with pytest.raises(RuntimeError, match=r"weight|bias|input"):
                operator.gradients(carried(grad_output), mixed, config)
    if len(tensors) > 1:
        with pytest.raises(RuntimeError, match=r"grad_output|input"):
            operator.gradients(grad_output, carried_all(tensors), config)


def test_bad_shapes_and_dtypes_are_refused_by_name():
    tensors, config, _ = BUILD["separable_conv2d"]()
    tensors = carried_all(tensors)
    for name in ("depthwise_weight", "pointwise_weight", "depthwise_bias", "pointwise_bias"):
        for wrong in (tensors[name][None], tensors[name].double()):
            with pytest.raises(RuntimeError, match=name):
                SEPARABLE_CONV2D.forward({**tensors, name: wrong}, config)


# Modules ----------------------------------------------------------------------------------------------------


def _module_results(module, call, image):
    image = image.detach().clone().requires_grad_()
    output = call(image)
    output.float().square().mean().backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    return [output.detach(), image.grad, *gradients]


def _assert_close(found, expected, dtype=torch.float32):
    tolerance = 8 * torch.finfo(dtype).eps
    for result, wanted in zip(found, expected, strict=True):
        result, wanted = result.double().cpu(), wanted.double().cpu()
        assert (result - wanted).norm() <= tolerance * wanted.norm()


def _modules():
    return torch.nn.Sequential(
        sepconv.RowAverageConv2d(3, 16, 3, padding=1, row_stride=2),
        sepconv.RowAverage(),
        sepconv.SeparableConv2d(16, 32, 3, padding=1, depthwise_bias=True),
    )


def _images(channels=3):
    return normals(2, channels, 20, 18).contiguous(memory_format=torch.channels_last)


def test_modules_compute_there_what_they_do_on_the_cpu():
    here = _modules()
    there = copy.deepcopy(here).to(device.NAME)
    expected = _module_results(here, here, _images())
    found = _module_results(there, there, _images().to(device.NAME))
    assert all(result.device.type == device.NAME for result in found)
    _assert_close(found, expected)


def test_a_compiled_module_agrees_with_eager():
    torch._dynamo.reset()
    module = _modules().to(device.NAME)
    compiled = torch.compile(module, fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    image = _images().to(device.NAME)
    _assert_close(_module_results(module, compiled, image), _module_results(module, module, image))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_comes_next_may_change_the_output_in_place(dtype):
    module = _modules().to(device.NAME, dtype)
    image = _images().to(device.NAME, dtype)

    def call(values):
        return module(values).add_(1)

    _assert_close(
        _module_results(module, call, image), _module_results(module, lambda x: module(x) + 1, image)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_runs_in_its_dtype(dtype):
    module = _modules().to(device.NAME)
    image = _images().to(device.NAME)

    def call(values):
        with torch.autocast(device.NAME, dtype):
            return module(values)

    assert call(image).dtype == dtype
    _assert_close(_module_results(module, call, image), _module_results(module, module, image), dtype)


def test_frozen_layers_compute_what_they_do_on_the_cpu():
    """There they run the reference."""
    separable = sepconv.SeparableConv2d(8, 16, 3, padding=1, bias=False)
    layers = separable.depthwise, separable.pointwise
    image = _images(8)
    expected = sepconv.FrozenSeparableConv2d.from_layers(*copy.deepcopy(layers), activation="relu")(image)
    moved = [copy.deepcopy(layer).to(device.NAME) for layer in layers]
    frozen = sepconv.FrozenSeparableConv2d.from_layers(*moved, activation="relu")
    _assert_close([frozen(image.to(device.NAME))], [expected])


# Chains -----------------------------------------------------------------------------------------------------

every_chain = pytest.mark.parametrize("name", CHAINS)


@pytest.fixture
def calls(monkeypatch):
    """How many units each call of the operator had."""
    counts = []
    forward = sepconv.chain._forward

    def counted(plan, *arguments, **keywords):
        counts.append(len(plan.kinds))
        return forward(plan, *arguments, **keywords)

    monkeypatch.setattr(sepconv.chain, "_forward", counted)
    return counts


def _chain(name, dtype, batch=3, memory_format=torch.channels_last):
    """A chain and its twin of stock on the device, with an image and a gradient."""
    torch.manual_seed(0)
    modules = twins(name, dtype)
    image = images(dtype, batch).contiguous(memory_format=memory_format)
    gradient = grad_like(modules[1], image)
    return (*(module.to(device.NAME) for module in modules), image.to(device.NAME), gradient.to(device.NAME))


@every_chain
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
def test_a_chain_equals_its_layers_one_by_one(name, memory_format, calls):
    fused, stock, image, gradient = _chain(name, torch.float64, memory_format=memory_format)
    found, expected = gradients(fused, image, gradient), gradients(stock, image, gradient)
    assert len(calls) == 1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fused.state_dict(), stock.state_dict(), rtol=1e-12, atol=1e-13)
    assert all(result.is_contiguous(memory_format=memory_format) for result in found[:2])


@every_chain
def test_a_chain_in_float32_is_as_exact_as_stock(name):
    """Distance to float64 at most a few times that of the stock layers."""
    fused, stock, image, gradient = _chain(name, torch.float32, batch=8)
    exact = gradients(copy.deepcopy(stock).double(), image.double(), gradient.double())
    found, plain = gradients(fused, image, gradient), gradients(stock, image, gradient)
    for result, of_stock, wanted in zip(found, plain, exact, strict=True):
        limit = 4 * (of_stock - wanted).abs().max() + 4e-6 * wanted.abs().max()
        assert (result - wanted).abs().max() <= limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["three", "short_vectors"])
def test_a_chain_under_autocast_is_as_exact_as_stock(name, dtype):
    fused, stock, image, gradient = _chain(name, torch.float32, batch=64)
    gradient = gradient.to(dtype)
    exact = gradients(copy.deepcopy(stock).double(), image.double(), gradient.double())
    with torch.autocast(device.NAME, dtype):
        found, plain = gradients(fused, image, gradient), gradients(stock, image, gradient)
    for result, of_stock, wanted in zip(found, plain, exact, strict=True):
        limit = 2 * (of_stock - wanted).norm() + 5e-3 * wanted.norm()  # a channel may flip a kink
        assert (result - wanted).norm() <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_chain
def test_a_chain_gives_the_same_bits_in_every_run(name, dtype, tf32):
    tf32(True)
    fused, _, image, gradient = _chain(name, torch.float32, batch=5)
    with torch.autocast(device.NAME, dtype, enabled=dtype != torch.float32):
        runs = [gradients(copy.deepcopy(fused), image, gradient.to(dtype)) for _ in range(5)]
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@only_cuda
def test_a_chain_can_be_captured_and_replayed():
    fused, _, image, gradient = _chain("vectors", torch.float32)
    leaves = (image.requires_grad_(), *fused.parameters())
    before = copy.deepcopy(fused.state_dict())

    def step():
        output = fused(image)
        return (output.detach(), *torch.autograd.grad(output, leaves, gradient))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    fused.load_state_dict(before)
    graph.replay()
    state = copy.deepcopy(fused.state_dict())
    fused.load_state_dict(before)
    for result, wanted in zip(captured, step(), strict=True):
        assert torch.equal(result, wanted)
    torch.testing.assert_close(state, fused.state_dict(), rtol=0, atol=0)


@only_cuda
def test_a_chain_does_not_wait_for_the_device():
    fused, _, image, gradient = _chain("vectors", torch.float32)
    gradients(fused, image, gradient)
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(fused, image, gradient)
        waited = torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not waited
