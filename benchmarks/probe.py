"""The machine's own limits, measured without torch: peak of fused multiply-adds and copy bandwidth."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("probe.cpp")
# Bytes of a vector and compiler flags, by the names that sepconv gives instruction sets.
VECTORS = {
    "avx512": (64, ["-mavx512f", "-mprefer-vector-width=512"]),
    "amx-bf16": (64, ["-mamx-tile", "-mamx-bf16"]),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "neon": (16, []),
}
TORCH_NAMES = {"AVX512": "avx512", "AVX2": "avx2"}


@dataclass(frozen=True)
class Peak:
    """GFLOP/s: the ceiling, what a noisy machine left of it over the probe's time, and how it was found."""

    gflops: float
    sustained: float
    method: str


def strongest_isa() -> str:
    """The widest instruction set of this CPU that has a probe, or 'scalar'."""
    if os.uname().machine in ("aarch64", "arm64"):
        return "neon"
    # torch tells what the CPU has; ATEN_CPU_CAPABILITY can only lower it, and then lowers the peers too.
    return TORCH_NAMES.get(torch.backends.cpu.get_cpu_capability(), "scalar")


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "sepconv-benchmarks"


def compiled(name: str, sources: Sequence[Path], flags: Sequence[str], inputs: Iterable[Path]) -> Path | None:
    """A shared library of `sources`, made where there is none of these `inputs`; None if that fails."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    command = [compiler, "-O3", "-std=c++20", "-shared", "-fPIC", *flags, *map(str, sources)]
    content = b"".join(path.read_bytes() for path in sorted({*sources, *inputs}))
    key = hashlib.sha256(content + " ".join(command).encode()).hexdigest()[:16]
    target = cache_folder() / f"{name}-{key}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            built = Path(scratch) / target.name
            if subprocess.run([*command, "-o", str(built)], capture_output=True).returncode != 0:
                return None
            built.replace(target)  # whole or absent, also when two runs build at once
    return target


@functools.cache
def _library(isa: str) -> ctypes.CDLL | None:
    """The compiled probe, or None where there is no vector unit to probe or no working compiler."""
    if isa not in VECTORS:
        return None
    vector_bytes, flags = VECTORS[isa]
    target = compiled(
        f"probe-{isa}", [SOURCE], ["-pthread", f"-DVECTOR_BYTES={vector_bytes}", *flags], inputs=()
    )
    if target is None:
        return None
    library = ctypes.CDLL(str(target))
    pointer = ctypes.POINTER(ctypes.c_double)
    library.fma_gflops.argtypes = [ctypes.c_int, ctypes.c_double, pointer, pointer]
    library.fma_gflops.restype = None
    library.copy_gbps.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int]
    library.copy_gbps.restype = ctypes.c_double
    library.copy.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.copy.restype = None
    return library


def fma_peak(threads: int, isa: str | None = None, seconds: float = 0.25) -> Peak:
    """The float32 FMA peak of `threads` threads on `isa`; where there is no probe, a large matrix product."""
    isa = isa if isa in VECTORS else strongest_isa()
    library = _library(isa)
    if library is None:
        return _matrix_product_peak(threads, seconds)
    best, sustained = ctypes.c_double(), ctypes.c_double()
    library.fma_gflops(threads, seconds, ctypes.byref(best), ctypes.byref(sustained))
    return Peak(best.value, sustained.value, f"FMA from registers, {isa}, float32")


def dtype_peak(threads: int, dtype: torch.dtype, isa: str, float32_gflops: float) -> tuple[float, str]:
    """GFLOP/s that `dtype` could reach on `isa`, where float32 reaches `float32_gflops`, and what that is."""
    if dtype == torch.float64:
        return float32_gflops / 2, "half the float32 peak"
    if dtype == torch.bfloat16 and isa == "avx512" and _has("amx_bf16"):
        library = _library("amx-bf16")
        best, sustained = ctypes.c_double(), ctypes.c_double()
        if library is not None:
            library.fma_gflops(threads, 0.25, ctypes.byref(best), ctypes.byref(sustained))
        if best.value > float32_gflops:
            return best.value, "AMX"
    return float32_gflops, "the float32 peak"


def _has(feature: str) -> bool:
    """Whether Linux names this feature of the CPU."""
    try:
        return feature in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def _matrix_product_peak(threads: int, seconds: float) -> Peak:
    size, rates = 1536, []
    left, right = torch.randn(2, size, size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        deadline = time.perf_counter() + seconds
        while len(rates) < 3 or time.perf_counter() < deadline:
            start = time.perf_counter()
            torch.mm(left, right)
            rates.append(2e-9 * size**3 / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    return Peak(
        max(rates), sum(rates) / len(rates), f"torch.mm of {size}x{size}, float32 (no compiler for the probe)"
    )


def last_level_cache() -> int:
    """Bytes of the largest cache that the system reports, or 32 MiB where it reports none."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(text[-1], 1))
    return max(sizes, default=32 * 2**20)


def copier(threads: int, size: int) -> Callable[[], object]:
    """A copy of `size` bytes between two places in memory, to take turns with what should be as fast."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    library = _library(strongest_isa())
    if library is None:
        return lambda: target.copy_(source)

    def copy() -> None:  # holds the tensors, and so their memory
        library.copy(threads, target.data_ptr(), source.data_ptr(), source.nbytes)

    return copy


def copy_bandwidth(threads: int, rounds: int = 5) -> float:
    """GB/s, read plus written, of copies four times as large as the last-level cache (at most 512 MiB)."""
    size = min(4 * last_level_cache(), 512 * 2**20)
    library = _library(strongest_isa())
    if library is not None:
        return library.copy_gbps(threads, size, rounds)
    source = torch.ones(size // 4)
    target = torch.zeros_like(source)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        target.copy_(source)
        best = max(best, 2e-9 * size / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    for thread_count in sorted({1, os.cpu_count() or 1}):
        peak = fma_peak(thread_count)
        rates = f"{peak.gflops:.0f} GFLOP/s, sustained {peak.sustained:.0f} ({peak.method})"
        print(f"{thread_count} threads: {rates}, copy {copy_bandwidth(thread_count):.1f} GB/s")
