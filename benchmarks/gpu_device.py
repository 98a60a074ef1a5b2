"""The GPU that the benchmarks in gpu*.py run on: its clock, its memory, and what it reaches at best."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

# Tensors, whether TF32 is allowed, and the dtype whose rounding of the products is that of the arithmetic.
DTYPES = {
    "float32": (torch.float32, False, torch.float32),
    "tf32": (torch.float32, True, torch.float16),  # 10 bits, as float16 has them
    "float16": (torch.float16, False, torch.float16),
    "bfloat16": (torch.bfloat16, False, torch.bfloat16),
}


def allow_tf32(dtype: str) -> None:
    """Sets torch's flags to what this name of DTYPES says."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = DTYPES[dtype][1]


class Device:
    """The GPU, or the CPU to try the scripts out."""

    def __init__(self, name: str) -> None:
        self.name, self.cuda = name, name == "cuda"
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size if self.cuda else 2**14

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _queue(self, run: Callable[[], object], calls: int) -> Callable[[], float]:
        """Starts the calls; the function that is returned waits for them and gives the seconds of one."""
        start = self._mark()
        for _ in range(calls):
            run()
        end = self._mark()

        def seconds() -> float:
            if not self.cuda:
                return (end - start) / calls
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / calls

        return seconds

    def interleave(
        self, runs: dict[str, Callable[[], object]], rounds: int, sample_ms: float
    ) -> dict[str, list[float]]:
        """harness.interleave by the GPU's clock, which has no pause between turns."""
        names, calls, seconds = list(runs), {}, {name: [] for name in runs}
        for name in names:
            self._queue(runs[name], 1)()
            calls[name] = max(1, round(sample_ms / 1e3 / self._queue(runs[name], 2)()))
        for turn in range(rounds if names else 0):
            first = turn % len(names)
            waits = {name: self._queue(runs[name], calls[name]) for name in names[first:] + names[:first]}
            for name, wait in waits.items():
                seconds[name].append(wait())
        return seconds

    def peak_mib(self, run: Callable[[], object]) -> float | None:
        """What a call allocates at its highest; None on the CPU."""
        if not self.cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def requested_bytes(self, run: Callable[[], object]) -> int:
        """What a call allocates in all; 0 on the CPU."""
        if not self.cuda:
            return 0
        key = "requested_bytes.all.allocated"
        before = torch.cuda.memory_stats()[key]
        run()
        return torch.cuda.memory_stats()[key] - before

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """`run` as a CUDA graph, which keeps `run` and so the tensors it works on; on the CPU as it is."""
        if not self.cuda:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()

        def replay(run: Callable[[], object] = run) -> None:
            graph.replay()

        return replay

    def ceilings(self, dtypes: Iterable[str]) -> tuple[float, dict[str, float]]:
        """GB/s of a copy, read and written, and TFLOP/s of each dtype's matrix product: the best of ten."""

        def best(run: Callable[[], object]) -> float:
            return min(self._queue(run, 2)() for _ in range(10))

        source = torch.ones(2**30 if self.cuda else 2**24, dtype=torch.uint8, device=self.name)
        target = torch.empty_like(source)
        gbps = 2 * source.numel() / best(lambda: target.copy_(source)) / 1e9
        size, rates = 8192 if self.cuda else 256, {}
        for name in dtypes:
            allow_tf32(name)
            a, b = (torch.randn(size, size, device=self.name, dtype=DTYPES[name][0]) for _ in range(2))
            rates[name] = 2 * size**3 / best(lambda a=a, b=b: a @ b) / 1e12
        return gbps, rates

    def description(self) -> dict[str, Any]:
        if not self.cuda:
            return {"name": "CPU", "driver": None, "cudnn": None}
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, IndexError, subprocess.CalledProcessError):
            driver = "unknown"
        return {
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30),
            "l2_mib": properties.L2_cache_size / 2**20,
            "driver": driver,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
