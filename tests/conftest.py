"""What all tests share: the compiled library, without which nothing here would be tested, and its ISAs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import capabilities
import pytest
import torch

from sepconv import _loader

# Whether the CUDA kernels, run by the emulator of tests/cuda_host, take the place of the CPU's: compiled as
# C++, or ("cuda_host:ptx") translated from PTX.
CUDA_HOST, _, CUDA_HOST_KIND = os.environ.get("SEPCONV_TEST_KERNELS", "").partition(":")
CUDA_HOST = CUDA_HOST == "cuda_host"


def _available() -> list[str]:
    if CUDA_HOST:  # they know no instruction set
        return [torch.ops.sepconv.cpu_capability()]
    return torch.ops.sepconv.available_cpu_capabilities().split(",")


def pytest_sessionstart(session: pytest.Session) -> None:
    library = _loader.load()
    if not library.loaded:
        pytest.exit(f"sepconv's compiled library is missing: {library.reason}", returncode=1)
    if CUDA_HOST:
        from cuda_host.build import build

        torch.ops.load_library(build("library", CUDA_HOST_KIND or "plain"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "capability" in metafunc.fixturenames:
        metafunc.parametrize("capability", _available(), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what would run the very kernels of avx512 again: other dtypes on the levels for bfloat16."""

    def repeats(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        dtype = parameters.get("dtype")
        return parameters.get("capability") in capabilities.BFLOAT16 and dtype not in (None, torch.bfloat16)

    config.hook.pytest_deselected(items=[item for item in items if repeats(item)])
    items[:] = [item for item in items if not repeats(item)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _loader.load().loaded:
        return
    if CUDA_HOST:
        terminalreporter.write_line("the CUDA kernels ran in place of the CPU's, in emulation")
    available = _available()
    absent = [name for name in capabilities.ALL if name not in available]
    terminalreporter.write_line(
        f"sepconv from {_loader.PACKAGE}; CPU capabilities tested: {', '.join(available)}; "
        f"absent on this machine, hence not tested: {', '.join(absent) or 'none'}"
    )


@pytest.fixture
def capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each instruction set of this machine."""
    before = torch.ops.sepconv.cpu_capability()
    torch.ops.sepconv.set_cpu_capability(request.param)
    yield request.param
    torch.ops.sepconv.set_cpu_capability(before)
