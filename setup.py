"""Builds sepconv._C: csrc/core and csrc/torch, one shared library on libtorch's stable ABI.

The metadata is in pyproject.toml. Environment variables read here:

SEPCONV_CUDA=0|1       leave the CUDA sources out, or fail when they cannot be built (unset: try)
SEPCONV_WERROR=1       make compiler warnings errors
TORCH_CUDA_ARCH_LIST   GPU architectures from 8.0 on, as torch.utils.cpp_extension documents it (unset:
                       those of this machine's GPUs, or without any all that nvcc knows of ARCHITECTURES)
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
    "torch/memory.cpp",
    "torch/result_memory.cpp",
    "torch/cpu_capability.cpp",
    "torch/separable_conv2d_cpu.cpp",
    "torch/frozen_separable_conv2d_cpu.cpp",
    "torch/row_average_cpu.cpp",
    "torch/row_average_conv2d_cpu.cpp",
    "torch/conv_chain_cpu.cpp",
]
CUDA_SOURCES = [
    "core/cuda/launch.cu",
    "core/cuda/batch_norm.cu",
    "core/cuda/depthwise.cu",
    "core/cuda/separable_conv2d.cu",
    "core/cuda/row_average.cu",
    "core/cuda/row_average_conv2d.cu",
    "torch/separable_conv2d_cuda.cpp",
    "torch/row_average_cuda.cpp",
    "torch/row_average_conv2d_cuda.cpp",
    "torch/conv_chain_cuda.cpp",
]
# The first GPU of each family that has tensor cores for bfloat16: its binaries serve the later ones.
ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")

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


def cuda_library_folder(cuda_home: str) -> str | None:
    """Where the static runtime is: with it, one library serves machines with and without CUDA."""
    folders = (Path(cuda_home, name) for name in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib"))
    return next((str(folder) for folder in folders if (folder / "libcudart_static.a").is_file()), None)


def cuda_version(cuda_home: str) -> str | None:
    ran = subprocess.run([f"{cuda_home}/bin/nvcc", "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+\.\d+)", ran.stdout)
    return found[1] if found else None


def compiles(cuda_home: str, architecture: str) -> str | None:
    """The first line that nvcc says against three lines of CUDA for "9.0", say; None when they compile."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "three_lines.cu")
        source.write_text(THREE_LINES_OF_CUDA)
        command = [f"{cuda_home}/bin/nvcc", "-std=c++20", f"-arch=sm_{architecture.replace('.', '')}"]
        command += ["-c", str(source), "-o", f"{folder}/three_lines.o"]
        trial = subprocess.run(command, capture_output=True, text=True)
    return (trial.stderr or trial.stdout).strip().partition("\n")[0] if trial.returncode else None


def architectures(cuda_home: str) -> str:
    """TORCH_CUDA_ARCH_LIST for this machine's GPUs, or, where none will do, for all that nvcc knows."""
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    own = [f"{major}.{minor}" for major, minor in sorted(capabilities) if major >= 8]
    known = own or [name for name in ARCHITECTURES if compiles(cuda_home, name) is None]
    return ";".join(known) + "+PTX"


def why_no_cuda(cuda_home: str | None, torch_cuda: str | None) -> str | None:
    """One line, or None when the CUDA sources can be built."""
    if os.environ.get("SEPCONV_CUDA") == "0":
        return "SEPCONV_CUDA=0"
    if torch_cuda is None:
        return "torch was built without CUDA"
    if cuda_home is None:
        return "no CUDA toolkit was found (nvcc is not on the PATH, CUDA_HOME is not set)"
    try:
        version = cuda_version(cuda_home)
        refusal = compiles(cuda_home, ARCHITECTURES[0])
    except OSError as error:
        return f"nvcc cannot be run: {error}"
    if refusal is not None:
        return f"nvcc cannot compile three lines: {refusal}"
    if version is None or version.partition(".")[0] != torch_cuda.partition(".")[0]:
        return f"nvcc is of CUDA {version}, torch of CUDA {torch_cuda}"
    if cuda_library_folder(cuda_home) is None:
        return f"there is no libcudart_static.a in {cuda_home}"
    return None


# torch.utils.cpp_extension reads CUDA_HOME when it is imported.
CUDA_HOME = find_cuda_home()
if CUDA_HOME:
    os.environ["CUDA_HOME"] = CUDA_HOME

import torch  # noqa: E402
from torch.utils import cpp_extension  # noqa: E402

if os.environ.get("SEPCONV_CUDA", "0") not in ("0", "1"):
    sys.exit(f"sepconv: SEPCONV_CUDA must be 0 or 1, got {os.environ['SEPCONV_CUDA']!r}")
NO_CUDA = why_no_cuda(CUDA_HOME, torch.version.cuda)
if not NO_CUDA and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(CUDA_HOME)
if NO_CUDA and os.environ.get("SEPCONV_CUDA") == "1":
    sys.exit(f"sepconv: SEPCONV_CUDA=1, but CUDA cannot be built: {NO_CUDA}")


def extension():
    sources = core_sources() + TORCH_SOURCES + ([] if NO_CUDA else CUDA_SOURCES)
    # Not CUDAExtension: it links torch's CUDA libraries, and then no torch without CUDA loads the result.
    ext = cpp_extension.CppExtension(
        "sepconv._C",
        [f"csrc/{source}" for source in sources],
        depends=[
            str(header.relative_to(ROOT)) for header in sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")])
        ],
        define_macros=[
            ("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION),
            *([] if NO_CUDA else [("USE_CUDA", None), ("SEPCONV_CUDA_VERSION", torch.version.cuda)]),
        ],
        py_limited_api=True,
    )
    # Warnings are for this project's code: torch's headers come in as system headers.
    system = [argument for folder in ext.include_dirs for argument in ("-isystem", folder)]
    ext.include_dirs = [str(CSRC)]
    warnings = ["-Wall", "-Wextra"]
    if cpp_extension.check_compiler_is_gcc(cpp_extension.get_cxx_compiler()):
        # GCC 12's AVX-512 headers, falsely; on Arm notes on functions that nobody else calls.
        warnings += ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]
    errors = os.environ.get("SEPCONV_WERROR") == "1"
    if errors:
        warnings += ["-Werror"]
    if not NO_CUDA:
        system += ["-isystem", f"{CUDA_HOME}/include"]
        ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
        ext.library_dirs += [cuda_library_folder(CUDA_HOME)]
        # torch's CUDA part is found, where there is one, through libtorch.so, of which nothing else is used:
        # it must stay among what is loaded, whatever the linker thinks.
        ext.extra_link_args = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--exclude-libs,libcudart_static.a"]
    ext.extra_compile_args = {
        # Python's own flags come before these: -g and -fwrapv would be for it, not for us.
        "cxx": ["-std=c++20", "-O3", "-g0", "-fno-wrapv", "-fvisibility=hidden", *warnings, *system],
        "nvcc": [
            "-std=c++20",
            "-O3",
            "-lineinfo",
            "-Xcompiler",
            "-fvisibility=hidden",
            *(["-Werror", "all-warnings"] if errors else []),
            *system,
        ],
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
