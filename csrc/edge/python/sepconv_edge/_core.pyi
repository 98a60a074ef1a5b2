from .functional import Array

GRAD_INPUT: int
GRAD_DEPTHWISE_WEIGHT: int
GRAD_POINTWISE_WEIGHT: int
GRAD_DEPTHWISE_BIAS: int
GRAD_POINTWISE_BIAS: int
GRAD_WEIGHT: int
GRAD_BIAS: int

_Pair = tuple[int, int]

def version() -> str: ...
def has_openmp() -> bool: ...
def cpu_capability() -> str: ...
def set_cpu_capability(name: str) -> None: ...
def separable_conv2d(
    input: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    depthwise_bias: Array | None,
    pointwise_bias: Array | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    nhwc: bool,
    threads: int,
) -> Array: ...
def separable_conv2d_backward(
    grad_output: Array,
    input: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    depthwise_bias: Array | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    nhwc: bool,
    wanted: int,
    threads: int,
) -> tuple[Array | None, Array | None, Array | None, Array | None, Array | None]: ...
def row_average(input: Array, stride: int, nhwc: bool, threads: int) -> Array: ...
def row_average_backward(grad_output: Array, height: int, stride: int, nhwc: bool, threads: int) -> Array: ...
def row_average_conv2d(
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    row_stride: int,
    nhwc: bool,
    threads: int,
) -> Array: ...
def row_average_conv2d_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    row_stride: int,
    nhwc: bool,
    wanted: int,
    threads: int,
) -> tuple[Array | None, Array | None, Array | None]: ...
