"""The contestants that run one separable layer: sepconv, stock PyTorch, and the inference engines.

Each builder takes a `Case` and returns a `Contestant`, or raises `Unavailable` with the reason. The timed
call takes and gives the arrays of the engine's own API.

The plain contestants get a layer without stages and weights that may change from call to call. The frozen
ones may prepare constant weights beforehand, and run the layer with its stages: batch norm comes folded into
weights and biases, for all of them alike, and activations are theirs to fuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from layer_shapes import Layer, Stage, Stages
from torch.nn import functional as F

import sepconv

Tensors = tuple[torch.Tensor, ...]


class Unavailable(Exception):
    """This contestant cannot run this case here; the message says why."""


@dataclass(frozen=True)
class Case:
    """One layer with its data: NCHW float32 or other, weights and biases as `nn.Conv2d` holds them."""

    layer: Layer
    input: torch.Tensor
    depthwise: torch.Tensor
    pointwise: torch.Tensor
    depthwise_bias: torch.Tensor | None  # where batch norm follows
    pointwise_bias: torch.Tensor | None
    grad_output: torch.Tensor | None  # None: forward alone
    threads: int

    @staticmethod
    def random(layer: Layer, batch: int, dtype: torch.dtype, *, backward: bool, threads: int) -> Case:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(dtype)

        def shift(stage: Stage, channels: int) -> torch.Tensor | None:
            return normal(channels) if stage.batch_norm else None

        middle, kernel = layer.middle_channels, layer.kernel
        return Case(
            layer,
            input=normal(batch, layer.in_channels, layer.height, layer.width),
            depthwise=normal(middle, 1, kernel, kernel, scale=1 / kernel),
            pointwise=normal(layer.out_channels, middle, 1, 1, scale=middle**-0.5),
            depthwise_bias=shift(layer.stages.middle, middle),
            pointwise_bias=shift(layer.stages.epilogue, layer.out_channels),
            grad_output=normal(batch, layer.out_channels, *layer.output_size) if backward else None,
            threads=threads,
        )

    def mapped(self, transform: Callable[[torch.Tensor], torch.Tensor]) -> Case:
        """The same case with `transform` applied to each of its tensors."""
        return replace(
            self,
            **{
                name: transform(value)
                for name, value in vars(self).items()
                if isinstance(value, torch.Tensor)
            },
        )

    @property
    def biases(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.depthwise_bias, self.pointwise_bias

    @property
    def window(self) -> dict[str, int]:
        return {"stride": self.layer.stride, "padding": self.layer.padding, "dilation": self.layer.dilation}


@dataclass(frozen=True)
class Contestant:
    """`run` is what gets timed; `outputs` runs it once and gives its results in torch's NCHW order."""

    run: Callable[[], object]
    outputs: Callable[[], Tensors]


# Of input, depthwise weight, pointwise weight, depthwise bias, pointwise bias.
Convolution = Callable[..., torch.Tensor]
ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "relu6": F.relu6}


# PyTorch and sepconv ----------------------------------------------------------------------------------------


def stock(case: Case) -> Convolution:
    """Two stock convolutions between the layer's activations, the specification of all others."""
    window = case.window
    before, between, after = (
        ACTIVATIONS[stage.activation]
        for stage in (case.layer.stages.prologue, case.layer.stages.middle, case.layer.stages.epilogue)
    )

    def convolve(x, depthwise, pointwise, depthwise_bias, pointwise_bias):
        y = F.conv2d(before(x), depthwise, depthwise_bias, groups=x.shape[1], **window)
        return after(F.conv2d(between(y), pointwise, pointwise_bias))

    return convolve


def fused(case: Case) -> Convolution:
    """sepconv's function."""
    window = case.window

    def convolve(*tensors):
        return sepconv.functional.separable_conv2d(*tensors, **window)

    return convolve


def _in_torch(
    convolve: Convolution, case: Case, memory_format: torch.memory_format = torch.contiguous_format
) -> Contestant:
    """`convolve` on tensors of this memory format; with a backward pass, its three gradients too."""
    x = case.input.contiguous(memory_format=memory_format)
    # nn.Module.to(memory_format=...) gives weights the format of the images, and so do these.
    weights = [w.contiguous(memory_format=memory_format) for w in (case.depthwise, case.pointwise)]
    if case.grad_output is None:

        def forward() -> Tensors:
            with torch.inference_mode():
                return (convolve(x, *weights, *case.biases),)

        return Contestant(forward, forward)
    grad_output = case.grad_output.contiguous(memory_format=memory_format)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights)]

    def forward_backward() -> Tensors:
        output = convolve(*leaves, *case.biases)
        return (output.detach(), *torch.autograd.grad(output, leaves, grad_output))

    return Contestant(forward_backward, forward_backward)


def _sepconv_nhwc(case: Case) -> Contestant:
    return _in_torch(fused(case), case, torch.channels_last)


def _sepconv_nchw(case: Case) -> Contestant:
    return _in_torch(fused(case), case)


def _sepconv_float32(case: Case) -> Contestant:
    """What a narrower dtype is measured against: the same layer in float32."""
    return _sepconv_nhwc(case.mapped(torch.Tensor.float))


def _stock_nhwc(case: Case) -> Contestant:
    return _in_torch(stock(case), case, torch.channels_last)


def _stock_nchw(case: Case) -> Contestant:
    return _in_torch(stock(case), case)


def _onednn(case: Case) -> Contestant:
    """Where stock would leave oneDNN for another library: one thread, small batch."""
    if case.threads != 1:
        raise Unavailable("forced at one thread only: with more, stock takes oneDNN by itself")
    if case.grad_output is not None:
        raise Unavailable("the forced call has no backward pass")
    if not torch.backends.mkldnn.is_available():
        raise Unavailable("this torch has no oneDNN")
    if case.input.dtype not in (torch.float32, torch.bfloat16):
        raise Unavailable(f"not for {case.input.dtype}")
    stride, padding, dilation = ([case.window[key]] * 2 for key in ("stride", "padding", "dilation"))

    def convolve(x, depthwise, pointwise, depthwise_bias, pointwise_bias):
        y = torch.mkldnn_convolution(x, depthwise, depthwise_bias, padding, stride, dilation, x.shape[1])
        return torch.mkldnn_convolution(y, pointwise, pointwise_bias, [0, 0], [1, 1], [1, 1], 1)

    return _in_torch(convolve, case, torch.channels_last)


def _compile(case: Case) -> Contestant:
    return _in_torch(torch.compile(stock(case), dynamic=False), case, torch.channels_last)


# Frozen weights ---------------------------------------------------------------------------------------------


def convolutions(case: Case) -> tuple[torch.nn.Conv2d, torch.nn.Conv2d]:
    """The layer's two stock modules, in inference mode."""
    layer, dtype = case.layer, case.input.dtype
    depthwise = torch.nn.Conv2d(
        layer.in_channels,
        layer.middle_channels,
        layer.kernel,
        **case.window,
        groups=layer.in_channels,
        bias=case.depthwise_bias is not None,
        dtype=dtype,
    )
    pointwise = torch.nn.Conv2d(
        layer.middle_channels, layer.out_channels, 1, bias=case.pointwise_bias is not None, dtype=dtype
    )
    tensors = ((case.depthwise, case.depthwise_bias), (case.pointwise, case.pointwise_bias))
    for module, (weight, bias) in zip((depthwise, pointwise), tensors, strict=True):
        state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        module.load_state_dict(state)
        module.requires_grad_(False).eval()
    return depthwise, pointwise


def _frozen(case: Case, memory_format: torch.memory_format) -> Contestant:
    """sepconv's layer for inference, with the stages inside its one call."""
    stages = case.layer.stages
    layer = sepconv.FrozenSeparableConv2d.from_layers(
        *convolutions(case),
        prologue_activation=stages.prologue.activation,
        middle_activation=stages.middle.activation,
        activation=stages.epilogue.activation,
    )
    x = case.input.contiguous(memory_format=memory_format)

    def forward() -> Tensors:
        with torch.inference_mode():
            return (layer(x),)

    return Contestant(forward, forward)


def _sepconv_frozen(case: Case) -> Contestant:
    return _frozen(case, torch.channels_last)


def _sepconv_frozen_nchw(case: Case) -> Contestant:
    return _frozen(case, torch.contiguous_format)


class _StockLayer(torch.nn.Module):
    """Stock convolutions with their weights as parameters, which freezing takes as constants."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.depthwise, self.pointwise = convolutions(case)
        self.convolve = stock(case)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        depthwise, pointwise = self.depthwise, self.pointwise
        return self.convolve(x, depthwise.weight, pointwise.weight, depthwise.bias, pointwise.bias)


def _compile_frozen(case: Case) -> Contestant:
    from torch._inductor import config

    frozen = torch.compile(_StockLayer(case), dynamic=False)
    x = case.input.contiguous(memory_format=torch.channels_last)

    def forward() -> Tensors:
        with torch.no_grad():
            return (frozen(x),)

    with config.patch(freezing=True):
        forward()  # compiles here, where the patch holds
    return Contestant(forward, forward)


# Inference engines ------------------------------------------------------------------------------------------


def onnx_bytes(case: Case) -> bytes:
    """The layer as an ONNX model: two Conv nodes with constant weights, and a node for each activation."""
    if case.input.dtype != torch.float32:
        raise Unavailable("float32 only")
    onnx = require("onnx")
    helper, layer = onnx.helper, case.layer
    nodes, constants, values = [], [], ["x"]

    def constant(name: str, value: torch.Tensor) -> str:
        constants.append(onnx.numpy_helper.from_array(value.numpy(), name))
        return name

    def append(kind: str, *inputs: str, **attributes: Any) -> None:
        values.append(f"{kind}{len(nodes)}")
        nodes.append(helper.make_node(kind, [values[-2], *inputs], [values[-1]], **attributes))

    def activate(stage: Stage) -> None:
        if stage.activation == "relu":
            append("Relu")
        elif stage.activation == "relu6":
            bounds = {
                f"{name}{len(nodes)}": torch.tensor(value) for name, value in (("low", 0.0), ("high", 6.0))
            }
            append("Clip", *(constant(name, value) for name, value in bounds.items()))

    def convolve(name: str, weight: torch.Tensor, bias: torch.Tensor | None, **attributes: Any) -> None:
        inputs = [constant(name, weight)] + ([] if bias is None else [constant(f"{name}_bias", bias)])
        append("Conv", *inputs, kernel_shape=list(weight.shape[2:]), **attributes)

    activate(layer.stages.prologue)
    convolve(
        "depthwise",
        case.depthwise,
        case.depthwise_bias,
        group=layer.in_channels,
        strides=[layer.stride] * 2,
        dilations=[layer.dilation] * 2,
        pads=[layer.padding] * 4,
    )
    activate(layer.stages.middle)
    convolve("pointwise", case.pointwise, case.pointwise_bias)
    activate(layer.stages.epilogue)
    shapes = [list(case.input.shape), [case.input.shape[0], layer.out_channels, *layer.output_size]]
    image, output = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip((values[0], values[-1]), shapes, strict=True)
    )
    graph = helper.make_graph(nodes, layer.name, [image], [output], constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def require(module: str) -> Any:
    """Imports an optional peer, or says how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"not installed ({error}); pip install 'sepconv[bench]'") from error


def onnxruntime_contestant(model: bytes, input: torch.Tensor, threads: int) -> Contestant:
    """An ONNX model with one input and one output in ONNX Runtime, NumPy arrays in and out."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Or its threads go on spinning after a call, and the next contestant has half a core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: input.contiguous().numpy()}
    return Contestant(
        lambda: session.run(None, feed), lambda: (torch.from_numpy(session.run(None, feed)[0]),)
    )


def openvino_contestant(model: bytes, input: torch.Tensor, threads: int) -> Contestant:
    """An ONNX model with one input and one output in OpenVINO, NumPy arrays in and out."""
    openvino = require("openvino")
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # where there is AMX the default would be bfloat16
        },
    )
    request = compiled.create_infer_request()
    array = input.contiguous().numpy()
    return Contestant(
        lambda: request.infer([array], share_inputs=True),
        lambda: (torch.from_numpy(request.infer([array], share_inputs=True)[0].copy()),),
    )


def _onnxruntime(case: Case) -> Contestant:
    return onnxruntime_contestant(onnx_bytes(case), case.input, case.threads)


def _openvino(case: Case) -> Contestant:
    return openvino_contestant(onnx_bytes(case), case.input, case.threads)


PLAIN: dict[str, Callable[[Case], Contestant]] = {
    "sepconv": _sepconv_nhwc,
    "sepconv-nchw": _sepconv_nchw,
    "sepconv-float32": _sepconv_float32,
    "stock-nhwc": _stock_nhwc,
    "stock-nchw": _stock_nchw,
    "onednn": _onednn,
    "compile": _compile,
}
FROZEN: dict[str, Callable[[Case], Contestant]] = {
    "sepconv-frozen": _sepconv_frozen,
    "sepconv-frozen-nchw": _sepconv_frozen_nchw,
    "compile-frozen": _compile_frozen,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
CONTESTANTS = PLAIN | FROZEN


# Correctness ------------------------------------------------------------------------------------------------


def reference(case: Case) -> tuple[Tensors, Tensors]:
    """Float64 results, and for each the same sum over absolute values, which bounds any rounding error.

    Activations do not widen differences, so that the bound is that of the layer without them.
    """
    exact = case.mapped(torch.Tensor.double)
    bound = replace(exact.mapped(torch.abs), layer=replace(case.layer, stages=Stages()))
    return tuple(_in_torch(stock(double), double).outputs() for double in (exact, bound))


def check(name: str, outputs: Tensors, exact: Tensors, bounds: Tensors, dtype: torch.dtype) -> float:
    """Raises where an element is further from float64 than 4 eps times its sum of absolute products.

    Returns how far the output is away as a whole: the norm of the difference over that of the float64 result.
    """
    for index, (got, want, bound) in enumerate(zip(outputs, exact, bounds, strict=True)):
        if got.shape != want.shape:
            raise AssertionError(
                f"{name}: result {index} has shape {tuple(got.shape)}, expected {tuple(want.shape)}"
            )
        excess = (got.double() - want).abs() / (4 * torch.finfo(dtype).eps * bound).clamp_min(1e-300)
        if not bool((excess <= 1).all()):  # NaN fails too
            worst = float(excess.max())
            raise AssertionError(
                f"{name}: result {index} is {worst:.1f} times the tolerance away from float64"
            )
    return float((outputs[0].double() - exact[0]).norm() / exact[0].norm())
