"""Builds sepconv._C: csrc/core and csrc/torch, one shared library on libtorch's stable ABI.

The metadata is in pyproject.toml. Environment variables read here:

SEPCONV_CUDA=0|1       leave the CUDA sources out, or fail when they cannot be built (unset: try)
SEPCONV_WERROR=1       make compiler warnings errors
TORCH_CUDA_ARCH_LIST   GPU architectures, as torch.utils.cpp_extension documents it
MAX_JOBS               compilers that run at once, likewise
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

TORCH_SOURCES = [
    "torch/schema.cpp",
    "torch/checks.cpp",
    "torch/cpu_capability.cpp",
    "torch/separable_conv2d_cpu.cpp",
    "torch/frozen_separable_conv2d_cpu.cpp",
    "torch/row_average_cpu.cpp",
    "torch/row_average_conv2d_cpu.cpp",
    "torch/conv_chain_cpu.cpp",
]
CUDA_SOURCES: list[str] = []  # relative to csrc/ too; .cpp launch code and .cu kernels

TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10, the oldest torch that loads the library
OLDEST_PYTHON = "cp310"
THREE_LINES_OF_CUDA = """\
#include <cuda_runtime.h>
__global__ void twice(float* x) { x[threadIdx.x] *= 2; }
void launch(float* x) { twice<<<1, 32>>>(x); }
"""


def core_sources() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (CSRC / "core/sources.txt").read_text().splitlines())
    return [line for line in lines if line]


def find_cuda_home() -> str | None:
    """The toolkit's own folder as nvcc knows it: the `nvcc` on the PATH may be a wrapper."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = f"{home}/bin/nvcc" if home else shutil.which("nvcc")
    if home or nvcc is None:
        return home
    dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    return os.path.realpath(top[1]) if top else None


def why_no_cuda(cuda_home: str | None, torch_cuda: str | None) -> str | None:
    """One line, or None when the CUDA sources can be built."""
    if not CUDA_SOURCES:
        return "this version has no CUDA sources"
    if os.environ.get("SEPCONV_CUDA") == "0":
        return "SEPCONV_CUDA=0"
    if torch_cuda is None:
        return "torch was built without CUDA"
    if cuda_home is None:
        return "no CUDA toolkit was found (nvcc is not on the PATH, CUDA_HOME is not set)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "three_lines.cu")
        source.write_text(THREE_LINES_OF_CUDA)
        command = [f"{cuda_home}/bin/nvcc", "-std=c++20", "-c", str(source), "-o", f"{folder}/three_lines.o"]
        try:
            trial = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return f"nvcc cannot be run: {error}"
    if trial.returncode == 0:
        return None
    return f"nvcc cannot compile three lines: {(trial.stderr or trial.stdout).strip().partition(chr(10))[0]}"


# torch.utils.cpp_extension reads CUDA_HOME when it is imported.
CUDA_HOME = find_cuda_home() if CUDA_SOURCES else None
if CUDA_HOME:
    os.environ["CUDA_HOME"] = CUDA_HOME

import torch  # noqa: E402
from torch.utils import cpp_extension  # noqa: E402

if os.environ.get("SEPCONV_CUDA", "0") not in ("0", "1"):
    sys.exit(f"sepconv: SEPCONV_CUDA must be 0 or 1, got {os.environ['SEPCONV_CUDA']!r}")
NO_CUDA = why_no_cuda(CUDA_HOME, torch.version.cuda)
if NO_CUDA and os.environ.get("SEPCONV_CUDA") == "1":
    sys.exit(f"sepconv: SEPCONV_CUDA=1, but CUDA cannot be built: {NO_CUDA}")


def extension():
    sources = core_sources() + TORCH_SOURCES + ([] if NO_CUDA else CUDA_SOURCES)
    make = cpp_extension.CppExtension if NO_CUDA else cpp_extension.CUDAExtension
    ext = make(
        "sepconv._C",
        [f"csrc/{source}" for source in sources],
        depends=[str(header.relative_to(ROOT)) for header in sorted(CSRC.rglob("*.h"))],
        define_macros=[
            ("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION),
            *([] if NO_CUDA else [("USE_CUDA", None)]),
        ],
        py_limited_api=True,
    )
    # Warnings are for this project's code: torch's headers come in as system headers.
    system = [argument for folder in ext.include_dirs for argument in ("-isystem", folder)]
    ext.include_dirs = [str(CSRC)]
    warnings = ["-Wall", "-Wextra"]
    if cpp_extension.check_compiler_is_gcc(cpp_extension.get_cxx_compiler()):
        warnings += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC 12's AVX-512 headers, falsely
    if os.environ.get("SEPCONV_WERROR") == "1":
        warnings += ["-Werror"]
    ext.extra_compile_args = {
        # Python's own flags come before these: -g and -fwrapv would be for it, not for us.
        "cxx": ["-std=c++20", "-O3", "-g0", "-fno-wrapv", "-fvisibility=hidden", *warnings, *system],
        "nvcc": ["-std=c++20", "-O3", *system],
    }
    return ext


class BuildExtension(cpp_extension.BuildExtension):
    """Keeps the objects of every kind of build in one folder: ninja compiles only what changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(ROOT / "build" / f"objects-{platform.machine()}-torch-{torch.__version__}")

    def build_extensions(self) -> None:
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        print(f"sepconv: CUDA is left out: {NO_CUDA}" if NO_CUDA else f"sepconv: CUDA from {CUDA_HOME}")
        super().build_extensions()


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}},
)
