"""Builds the CUDA kernels for the CPU: a library that registers them there, or `seeded`.

    python tests/cuda_host/build.py [library|seeded] [plain|address|thread|ptx]

writes to build/cuda_host/ and prints nothing unless a compiler fails. What is there serves again while
nothing that went into it has changed. The kernels are their own source, compiled as C++; of `ptx`, what nvcc
made of it, translated (ptx.py).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

try:
    from . import ptx
except ImportError:  # run as a program
    import ptx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "cuda_host"

EMULATOR = sorted(HERE.glob("*.cpp"))
# Sanitizers follow the kernels alone; fibers.h says why.
SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=vptr", "-g"],
    "thread": ["-fsanitize=thread", "-g"],
    "ptx": [],
}
DEFINITIONS = {
    "plain": [],
    "address": ["-DSEPCONV_CUDA_HOST_ADDRESS"],
    "thread": ["-DSEPCONV_CUDA_HOST_THREAD"],
    "ptx": ["-DSEPCONV_CUDA_HOST_PTX"],
}
# Of the oldest family that the library has binaries for, whose instructions all later ones have.
PTX_ARCHITECTURE = "sm_80"
TORCH_TARGET_VERSION = "0x020a000000000000"


@functools.cache
def cuda_include() -> Path | None:
    """Return the folder of CUDA's headers, which is all of CUDA that is needed."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    if nvcc := shutil.which("nvcc"):
        command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]
        top = re.search(
            r"^#\$ TOP=(.+)$", subprocess.run(command, capture_output=True, text=True).stderr, re.M
        )
        homes += [top[1]] if top else []
    folders = [Path(home, "include").resolve() for home in homes]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


@functools.cache
def nvcc() -> Path | None:
    """Return the compiler of the toolkit whose headers these are."""
    include = cuda_include()
    found = shutil.which("nvcc", path=str(include.parent / "bin")) if include else None
    found = found or (shutil.which("nvcc", path=str(include.parents[2] / "bin")) if include else None)
    return Path(found) if found else None


def library_sources() -> list[Path]:
    """Return the sources of the CUDA operators: kernels, their launchers, bindings and what these call."""
    kernels = [*CSRC.glob("core/cuda/*.cu"), *CSRC.glob("core/cuda/*.cpp")]
    shared = [CSRC / "torch" / name for name in ("checks.cpp", "result_memory.cpp")]
    return sorted([*kernels, *CSRC.glob("torch/*_cuda.cpp"), *shared])


def build(target: str = "library", kind: str = "plain") -> Path:
    """Return the built file; raise RuntimeError with the compiler's messages when one fails."""
    if cuda_include() is None:
        raise RuntimeError("no CUDA headers were found: set CUDA_HOME, or put nvcc on the PATH")
    sources = library_sources() if target == "library" else [HERE / "seeded.cu"]
    with _alone():
        jobs = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(jobs) as pool:
            if kind == "ptx":
                kernels = [source for source in sources if source.suffix == ".cu"]
                sources += [part for parts in pool.map(_translated, kernels) for part in parts]
            objects = list(pool.map(lambda source: _compile(source, kind, target), [*EMULATOR, *sources]))
        return _link(objects, target, kind)


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps other processes, such as pytest-xdist's workers, from building the same."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{ran.stdout}")


@functools.cache
def _torch_folder() -> Path:
    import torch

    return Path(torch.__file__).parent


@functools.cache
def _headers() -> bytes:
    digest = hashlib.sha256()
    for folder in (CSRC, HERE):
        for header in sorted([*folder.rglob("*.h"), *folder.rglob("*.cuh")]):
            digest.update(str(header).encode() + header.read_bytes())
    digest.update(subprocess.run([_compiler(), "--version"], capture_output=True).stdout)
    return digest.digest()


def _compile(source: Path, kind: str, target: str) -> Path:
    own = source in EMULATOR
    optimization = "-O2" if own or kind == "plain" else "-O1"  # a third of the time to compile
    translated = FOLDER in source.parents
    flags = [
        "-std=c++20",
        optimization,
        "-march=native",
        "-fPIC",
        "-fvisibility=hidden",
        "-fno-strict-aliasing",
    ]
    flags += ["-Wno-psabi", *DEFINITIONS[kind], *([] if own else SANITIZERS[kind])]
    flags += ["-ffp-contract=off"] if translated else []  # what is to be fused, nvcc has fused
    # torch/cuda.h of this folder stands before that of csrc/.
    folders = [f"-I{HERE}", f"-I{CSRC}", "-isystem", str(cuda_include())]
    if target == "library" and not own and not translated:
        include = _torch_folder() / "include"
        folders += ["-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")]
        flags += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    command = [_compiler(), *flags, *folders, "-x", "c++", "-c", str(source)]
    key = hashlib.sha256(_headers() + "\0".join(command).encode() + source.read_bytes()).hexdigest()[:16]
    built = FOLDER / f"{'ptx' if translated else source.parent.name}-{source.stem}-{kind}-{key}.o"
    if not built.is_file():
        unfinished = built.with_suffix(".unfinished")
        _run([*command, "-o", str(unfinished)])
        _replace(unfinished, built)
    return built


def _translated(source: Path) -> list[Path]:
    """What nvcc makes of the kernels of this source, as C++: a file each."""
    if nvcc() is None:
        raise RuntimeError("no nvcc was found beside CUDA's headers: there is no PTX to translate")
    command = [str(nvcc()), "-std=c++20", "-O3", "-lineinfo", f"-arch={PTX_ARCHITECTURE}", f"-I{CSRC}"]
    command += ["-I" + str(HERE)] if source.parent == HERE else []
    version = subprocess.run([str(nvcc()), "--version"], capture_output=True).stdout
    made_from = _headers() + Path(ptx.__file__).read_bytes() + version + source.read_bytes()
    key = hashlib.sha256(made_from + "\0".join(command).encode()).hexdigest()[:16]
    folder = FOLDER / f"translated-{source.stem}-{key}"
    if not folder.is_dir():
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        text = unfinished / "kernels.ptx"
        _run([*command, "-ptx", str(source), "-o", str(text)])
        for name, kernel in ptx.translate(text.read_text()).items():
            digest = hashlib.sha256(name.encode()).hexdigest()[:16]  # names are longer than a file's may be
            (unfinished / f"{source.stem}_{digest}.cpp").write_text(kernel)
        _replace(unfinished, folder)
    return sorted(folder.glob("*.cpp"))


def _link(objects: list[Path], target: str, kind: str) -> Path:
    command = [_compiler(), *SANITIZERS[kind], *map(str, objects)]
    if target == "library":
        # The runtime's functions are the emulator's, even in a process that has loaded the true ones.
        lib = _torch_folder() / "lib"
        command += ["-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", f"-L{lib}", "-ltorch_cpu", "-ltorch", "-lc10"]
    key = hashlib.sha256("\0".join(command).encode()).hexdigest()[:16]
    built = FOLDER / f"{target}-{kind}-{key}{'.so' if target == 'library' else ''}"
    if not built.is_file():
        unfinished = built.with_suffix(".unfinished")
        _run([*command, "-o", str(unfinished)])
        _replace(unfinished, built)
    return built


def _replace(unfinished: Path, built: Path) -> None:
    """Put a new file in its place and drop those of former sources."""
    for former in FOLDER.glob(f"{built.name.rpartition('-')[0]}-*"):
        if former == unfinished:
            continue
        shutil.rmtree(former) if former.is_dir() else former.unlink()
    unfinished.replace(built)


if __name__ == "__main__":
    try:
        build(*sys.argv[1:])
    except (RuntimeError, ptx.UnknownError) as error:
        sys.exit(str(error))
