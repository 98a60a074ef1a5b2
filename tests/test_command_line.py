"""``python -m sepconv`` and what an installation without its compiled library says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import capabilities
import pytest
import torch

import sepconv
from sepconv.__main__ import main
from sepconv.ops import has_backend

PACKAGE = Path(sepconv.__file__).parent


def _run(*arguments: str, path: Path = PACKAGE.parent) -> subprocess.CompletedProcess[str]:
    """Python with the sepconv that lies in `path`, away from any checkout."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(sys.prefix))


@pytest.fixture(scope="module")
def without_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package's Python files and no compiled library."""
    folder = tmp_path_factory.mktemp("without_library")
    shutil.copytree(
        PACKAGE, folder / "sepconv", ignore=shutil.ignore_patterns("*.so", "__pycache__", "models")
    )
    return folder


def test_info_says_what_is_in_use():
    info = sepconv.info()
    assert info["version"] == sepconv.__version__
    assert info["torch"] == torch.__version__
    assert Path(info["library"]).is_file() and info["not_loaded"] is None
    assert info["cpu_capability"] in info["available_cpu_capabilities"]
    assert info["available_cpu_capabilities"][0] == "scalar"
    assert info["threads"] == torch.get_num_threads()
    assert info["cuda"] is (info["no_cuda"] is None)
    json.dumps(info)  # benchmarks write it into their results


def test_info_follows_the_capability(capability):
    assert sepconv.info()["cpu_capability"] == capability


def test_the_module_prints_what_info_says():
    result = _run("-m", "sepconv")
    assert result.returncode == 0, result.stderr
    info = sepconv.info()
    for value in (info["version"], info["torch"], info["library"], *info["available_cpu_capabilities"]):
        assert str(value) in result.stdout
    assert not result.stderr


def test_the_environment_caps_the_capability():
    script = "import sepconv; print(sepconv.info()['cpu_capability'])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "SEPCONV_CPU_CAPABILITY": "scalar"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(sys.prefix))
    assert result.stdout.split() == ["scalar"], result.stderr


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == sepconv.__version__


def _described(
    *arguments: object, kernel: int = 3, stride: int = 1, padding: int = 1, dilation: int = 1
) -> str:
    batch, in_channels, height, width, out_channels, multiplier, dtype, channels_last = arguments
    window = ([kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2)
    return torch.ops.sepconv.describe_separable_conv2d(
        batch, in_channels, height, width, out_channels, *window, multiplier, dtype, channels_last
    )


def test_plan_describes_the_shape(capsys):
    assert main(["plan", "64", "128", "147", "146"]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip("\n") == _described(1, 64, 147, 146, 128, 1, torch.float32, True).rstrip("\n")
    assert printed.strip()


def test_plan_takes_every_option(capsys):
    options = "--batch 4 --kernel-size 5 --stride 2 --padding 3 --dilation 2 --depth-multiplier 3"
    assert main(["plan", "8", "16", "33", "35", *options.split(), "--dtype", "bfloat16", "--nchw"]) == 0
    expected = _described(
        4, 8, 33, 35, 16, 3, torch.bfloat16, False, kernel=5, stride=2, padding=3, dilation=2
    )
    assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")
    assert expected != _described(4, 8, 33, 35, 16, 3, torch.bfloat16, True, kernel=5, stride=2, padding=3)


def test_plan_says_where_pairs_of_bfloat16_are_multiplied(capability):
    described = _described(1, 64, 28, 28, 128, 1, torch.bfloat16, True)
    assert ("pairs of bfloat16" in described) == (capability in capabilities.BFLOAT16)
    assert "pairs of bfloat16" not in _described(1, 64, 28, 28, 128, 1, torch.float32, True)


def test_plan_takes_two_values_an_axis(capsys):
    assert main(["plan", "8", "16", "33", "35", "--kernel-size", "3", "5", "--stride", "1", "2"]) == 0
    expected = torch.ops.sepconv.describe_separable_conv2d(
        1, 8, 33, 35, 16, [3, 5], [1, 2], [1, 2], [1, 1], 1, torch.float32, True
    )
    assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")


def test_plan_of_a_gpu_needs_none(capsys):
    status = main(["plan", "728", "728", "19", "19", "--batch", "32", "--dtype", "float16", "--gpu", "sm_90"])
    printed, error = capsys.readouterr()
    if has_backend("CUDA"):
        assert status == 0 and error == ""
        for part in (
            "132 multiprocessors, 227 KiB",
            "32 x 728 x 19 x 19",
            "would fuse: 160 tiles of 4 x 32 pixels",
        ):
            assert part in printed
    else:
        assert status == 1 and "--gpu needs the CUDA kernels: the library was built without" in error


def test_plan_runs_as_a_command():
    result = _run("-m", "sepconv", "plan", "64", "128", "147", "147")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "128", "7", "7"], "in_channels must be at least 1, got 0"),
        (["64", "128", "7", "7", "--stride", "0"], "stride must be between 1"),
        (["64", "128", "2", "2", "--padding", "0"], "the dilated kernel must not be larger"),
    ],
)
def test_plan_says_what_is_wrong_with_a_shape(arguments, message, capsys):
    assert main(["plan", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["64", "128", "7"], "required: W"),
        (
            ["64", "128", "7", "7", "--kernel-size", "3", "3", "3"],
            "--kernel-size must have 1 or 2 values, got 3",
        ),
        (["64", "128", "7", "7", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_plan_explains_its_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["plan", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_without_the_library_the_reference_serves_after_one_warning(without_library):
    script = (
        "import torch, sepconv\n"
        "x = torch.randn(2, 3, 5, 6, requires_grad=True)\n"
        "layer = sepconv.SeparableConv2d(3, 4, 3)\n"
        "for _ in range(2):\n"
        "    assert torch.equal(layer(x), layer.pointwise(layer.depthwise(x)))\n"
        "    sepconv.row_average_conv2d(x, torch.randn(4, 3, 3, 3)).sum().backward()\n"
        "    sepconv.row_average(x[0])\n"
        "assert sepconv.info()['library'] is None and sepconv.info()['not_loaded']\n"
    )
    result = _run("-W", "always", "-c", script, path=without_library)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    assert str(without_library / "sepconv") in result.stderr


def test_without_the_library_the_command_says_why(without_library):
    result = _run("-m", "sepconv", path=without_library)
    assert result.returncode == 0, result.stderr
    assert "not loaded" in result.stdout and "no compiled _C" in result.stdout
    result = _run("-m", "sepconv", "plan", "64", "128", "7", "7", path=without_library)
    assert result.returncode == 1
    assert "the kernels are not loaded: there is no compiled _C" in result.stderr
