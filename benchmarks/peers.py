"""The contestants that run one separable layer: sepconv, stock PyTorch, and the inference engines.

Each builder takes a `Case` and returns a `Contestant`, or raises `Unavailable` with the reason. Builders fold
what their engine can fold beforehand; the timed call takes and gives the arrays of the engine's own API.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from layer_shapes import Layer
from torch.nn import functional as F

import sepconv

Tensors = tuple[torch.Tensor, ...]


class Unavailable(Exception):
    """This contestant cannot run this case here; the message says why."""


@dataclass(frozen=True)
class Case:
    """One layer with its data: NCHW float32 or other, weights as `nn.Conv2d` holds them."""

    layer: Layer
    input: torch.Tensor
    depthwise: torch.Tensor
    pointwise: torch.Tensor
    grad_output: torch.Tensor | None  # None: forward alone
    threads: int

    @staticmethod
    def random(layer: Layer, batch: int, dtype: torch.dtype, *, backward: bool, threads: int) -> Case:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(dtype)

        channels, kernel = layer.in_channels, layer.kernel
        return Case(
            layer,
            input=normal(batch, channels, layer.height, layer.width),
            depthwise=normal(channels, 1, kernel, kernel, scale=1 / kernel),
            pointwise=normal(layer.out_channels, channels, 1, 1, scale=channels**-0.5),
            grad_output=normal(batch, layer.out_channels, *layer.output_size) if backward else None,
            threads=threads,
        )

    @property
    def window(self) -> dict[str, int]:
        return {"stride": self.layer.stride, "padding": self.layer.padding, "dilation": self.layer.dilation}


@dataclass(frozen=True)
class Contestant:
    """`run` is what gets timed; `outputs` runs it once and gives its results in torch's NCHW order."""

    run: Callable[[], object]
    outputs: Callable[[], Tensors]


Convolution = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


# PyTorch and sepconv ----------------------------------------------------------------------------------------


def stock(case: Case) -> Convolution:
    """Two stock convolutions, the specification of all others."""
    window = case.window

    def convolve(x: torch.Tensor, depthwise: torch.Tensor, pointwise: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(x, depthwise, None, groups=x.shape[1], **window), pointwise)

    return convolve


def _fused(case: Case) -> Convolution:
    window = case.window

    def convolve(x: torch.Tensor, depthwise: torch.Tensor, pointwise: torch.Tensor) -> torch.Tensor:
        return sepconv.functional.separable_conv2d(x, depthwise, pointwise, **window)

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
                return (convolve(x, *weights),)

        return Contestant(forward, forward)
    grad_output = case.grad_output.contiguous(memory_format=memory_format)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights)]

    def forward_backward() -> Tensors:
        output = convolve(*leaves)
        return (output.detach(), *torch.autograd.grad(output, leaves, grad_output))

    return Contestant(forward_backward, forward_backward)


def _sepconv_nhwc(case: Case) -> Contestant:
    return _in_torch(_fused(case), case, torch.channels_last)


def _sepconv_nchw(case: Case) -> Contestant:
    return _in_torch(_fused(case), case)


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

    def convolve(x: torch.Tensor, depthwise: torch.Tensor, pointwise: torch.Tensor) -> torch.Tensor:
        y = torch.mkldnn_convolution(x, depthwise, None, padding, stride, dilation, x.shape[1])
        return torch.mkldnn_convolution(y, pointwise, None, [0, 0], [1, 1], [1, 1], 1)

    return _in_torch(convolve, case, torch.channels_last)


def _compile(case: Case) -> Contestant:
    return _in_torch(torch.compile(stock(case), dynamic=False), case, torch.channels_last)


class _StockLayer(torch.nn.Module):
    """Stock convolutions with their weights as parameters, which freezing takes as constants."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.depthwise = torch.nn.Parameter(case.depthwise, requires_grad=False)
        self.pointwise = torch.nn.Parameter(case.pointwise, requires_grad=False)
        self.convolve = stock(case)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolve(x, self.depthwise, self.pointwise)


def _compile_frozen(case: Case) -> Contestant:
    if case.grad_output is not None:
        raise Unavailable("frozen weights have no gradient")
    from torch._inductor import config

    frozen = torch.compile(_StockLayer(case).eval(), dynamic=False)
    x = case.input.contiguous(memory_format=torch.channels_last)

    def forward() -> Tensors:
        with torch.no_grad():
            return (frozen(x),)

    with config.patch(freezing=True):
        forward()  # compiles here, where the patch holds
    return Contestant(forward, forward)


# Inference engines ------------------------------------------------------------------------------------------


def onnx_bytes(case: Case) -> bytes:
    """The layer as an ONNX model of two Conv nodes whose weights are constants."""
    if case.grad_output is not None:
        raise Unavailable("inference only")
    if case.input.dtype != torch.float32:
        raise Unavailable("float32 only")
    onnx = require("onnx")
    helper, layer = onnx.helper, case.layer
    shape_in = list(case.input.shape)
    shape_out = [shape_in[0], layer.out_channels, *layer.output_size]
    float32 = onnx.TensorProto.FLOAT
    depthwise = helper.make_node(
        "Conv",
        ["x", "depthwise"],
        ["y"],
        group=layer.in_channels,
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        dilations=[layer.dilation] * 2,
        pads=[layer.padding] * 4,
    )
    pointwise = helper.make_node("Conv", ["y", "pointwise"], ["z"], kernel_shape=[1, 1])
    graph = helper.make_graph(
        [depthwise, pointwise],
        layer.name,
        [helper.make_tensor_value_info("x", float32, shape_in)],
        [helper.make_tensor_value_info("z", float32, shape_out)],
        [
            onnx.numpy_helper.from_array(case.depthwise.numpy(), "depthwise"),
            onnx.numpy_helper.from_array(case.pointwise.numpy(), "pointwise"),
        ],
    )
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


CONTESTANTS: dict[str, Callable[[Case], Contestant]] = {
    "sepconv": _sepconv_nhwc,
    "sepconv-nchw": _sepconv_nchw,
    "stock-nhwc": _stock_nhwc,
    "stock-nchw": _stock_nchw,
    "onednn": _onednn,
    "compile": _compile,
    "compile-frozen": _compile_frozen,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


# Correctness ------------------------------------------------------------------------------------------------


def reference(case: Case) -> tuple[Tensors, Tensors]:
    """Float64 results, and for each the same sum over absolute values, which bounds any rounding error."""

    def double(transform: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
        exact = Case(
            case.layer,
            *(transform(tensor.double()) for tensor in (case.input, case.depthwise, case.pointwise)),
            grad_output=None if case.grad_output is None else transform(case.grad_output.double()),
            threads=case.threads,
        )
        return _in_torch(stock(exact), exact).outputs()

    return double(lambda tensor: tensor), double(torch.abs)


def check(name: str, outputs: Tensors, exact: Tensors, bounds: Tensors, dtype: torch.dtype) -> None:
    """Raises where an element is further from float64 than 4 eps times its sum of absolute products."""
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
