"""``python -m sepconv`` says what was built; ``python -m sepconv plan`` says what would run for a shape."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import sepconv
from sepconv import _loader

_DTYPES = ("float32", "float64", "bfloat16", "float16")
# Multiprocessors of a GPU of each family (A100, RTX 3090, RTX 4090, H100, B200, RTX 5090), and KiB of shared
# memory that a block may have there (CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability").
_GPUS = {
    "sm_80": (108, 163),
    "sm_86": (82, 99),
    "sm_89": (128, 99),
    "sm_90": (132, 227),
    "sm_100": (148, 227),
    "sm_120": (170, 99),
}


def _show_info() -> str:
    info = sepconv.info()
    lines = [
        ("sepconv", info["version"]),
        ("torch", info["torch"]),
        ("library", info["library"] or "none"),
        ("not loaded", info["not_loaded"]),
        ("build", info["build"]),
        ("CPU capability", info["cpu_capability"]),
        ("available", ", ".join(info["available_cpu_capabilities"]) or None),
        ("threads", info["threads"]),
        ("CUDA", "yes" if info["cuda"] else f"no: {info['no_cuda']}"),
    ]
    return "\n".join(f"{name:<16}{value}" for name, value in lines if value is not None)


def _pair(name: str, values: Sequence[int], parser: argparse.ArgumentParser) -> list[int]:
    if len(values) > 2:
        parser.error(f"{name} must have 1 or 2 values, got {len(values)}")
    return [values[0], values[-1]]


def _plan(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    kernel_size = _pair("--kernel-size", arguments.kernel_size, parser)
    stride = _pair("--stride", arguments.stride, parser)
    dilation = _pair("--dilation", arguments.dilation, parser)
    if arguments.padding is None:
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel_size, strict=True)]
    else:
        padding = _pair("--padding", arguments.padding, parser)
    shape = (
        arguments.batch,
        arguments.in_channels,
        arguments.height,
        arguments.width,
        arguments.out_channels,
        kernel_size,
        stride,
        padding,
        dilation,
        arguments.depth_multiplier,
        getattr(torch, arguments.dtype),
        not arguments.nchw,
    )
    if arguments.gpu is None:
        return torch.ops.sepconv.describe_separable_conv2d(*shape)
    if reason := sepconv.info()["no_cuda"]:
        raise RuntimeError(f"--gpu needs the CUDA kernels: {reason}")
    multiprocessors, kib = _GPUS[arguments.gpu]
    return torch.ops.sepconv.describe_separable_conv2d_cuda(*shape, multiprocessors, kib * 1024)


def _parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="python -m sepconv", description="What was built and what would run."
    )
    parser.add_argument("--version", action="version", version=sepconv.__version__)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="[plan]")
    plan = commands.add_parser(
        "plan",
        help="say what would run for a separable convolution of this shape",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, metavar, text in (
        ("in_channels", "C_in", "input channels"),
        ("out_channels", "C_out", "output channels"),
        ("height", "H", "input rows"),
        ("width", "W", "input columns"),
    ):
        plan.add_argument(name, metavar=metavar, type=int, help=text)
    plan.add_argument("--batch", metavar="N", type=int, default=1, help="images")
    for option, default, text in (
        ("--kernel-size", [3], "one value, or vertical and horizontal"),
        ("--stride", [1], "one value, or vertical and horizontal"),
        ("--padding", None, "one value, or vertical and horizontal; without it, half the dilated kernel"),
        ("--dilation", [1], "one value, or vertical and horizontal"),
    ):
        plan.add_argument(option, metavar="K", type=int, nargs="+", default=default, help=text)
    plan.add_argument(
        "--depth-multiplier", metavar="M", type=int, default=1, help="depthwise outputs a channel"
    )
    plan.add_argument("--dtype", choices=_DTYPES, default=_DTYPES[0], help="dtype of all tensors")
    plan.add_argument(
        "--gpu", choices=_GPUS, help="what would run on a GPU of this family, which need not be there"
    )
    plan.add_argument("--nchw", action="store_true", help="contiguous instead of channels_last tensors")
    return parser, plan


def main(argv: Sequence[str] | None = None) -> int:
    parser, plan = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        print(_show_info())
        return 0
    library = _loader.load()
    if not library.loaded:
        print(f"python -m sepconv plan: the kernels are not loaded: {library.reason}", file=sys.stderr)
        return 1
    try:
        print(_plan(arguments, plan))
    except RuntimeError as error:
        print(f"python -m sepconv plan: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
