"""The CUDA kernels' own source, run on the CPU (tests/cuda_host), passes the operators' tests.

And the emulator that runs it finds the bugs that were put into kernels.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir() or platform.machine() != "x86_64",
    reason="runs in a checkout on x86-64: the kernels' sources are not here, or fibers cannot switch",
)

SCHEDULES = ("forward", "reverse", "random:1")

# What of each file is run: small images that meet every kernel.
OPERATOR_TESTS = {
    "test_row_average.py": "exact_where_means_are_integers or rows_that_exist",
    "test_separable_conv2d.py": "exact_where_sums_are_exact and channels_last",
    "test_row_average_conv2d.py": "exact_where_sums_are_exact and channels_last",
}

# Bug, build and schedule in which the emulator finds it, and what it says.
FOUND = (
    ("wrong_wait_group", "plain", "forward", "is -nan|is nan"),
    ("missing_barrier", "plain", "forward", "is -nan|is nan"),
    ("missing_barrier", "plain", "reverse", "is -nan|is nan"),
    ("missing_barrier", "thread", "forward", "data race"),
    ("missing_barrier_at_loop_end", "plain", "forward", "is -nan|is nan"),
    ("missing_barrier_at_loop_end", "thread", "reverse", "data race"),
    ("no_bound_check", "address", "forward", "heap-buffer-overflow"),
    ("no_bound_check", "thread", "forward", "data race"),
    ("index_past_the_end", "address", "forward", "out of bounds"),
    ("divergent_barrier", "plain", "forward", "while other threads of the block wait at another one"),
    ("barrier_left_behind", "plain", "forward", "never come to the barrier"),
    ("barrier_left_behind", "plain", "reverse", "some threads of the block have left behind"),
    ("divergent_collective", "plain", "forward", "while other lanes of the warp are in another one"),
    ("misaligned_copy", "plain", "forward", "no multiples of 16"),
    ("too_little_shared_memory", "plain", "forward", "less shared memory than the kernel uses"),
    ("too_large_block", "plain", "forward", "not launched: invalid configuration"),
)


def _build(target: str, kind: str) -> Path:
    from cuda_host import build

    if build.cuda_include() is None:
        pytest.skip("CUDA's headers are not here: set CUDA_HOME, or put nvcc on the PATH")
    return build.build(target, kind)


def _run(*command: object, schedule: str, **variables: str) -> tuple[int, str]:
    environment = os.environ | variables | {"SEPCONV_CUDA_HOST_SCHEDULE": schedule}
    ran = subprocess.run(
        [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return ran.returncode, ran.stdout


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["plain", "address", "thread"])
def test_a_kernel_without_a_bug_is_right_in_every_build_and_schedule(kind: str, schedule: str) -> None:
    assert _run(_build("seeded", kind), "none", schedule=schedule) == (0, "")


@pytest.mark.parametrize(("bug", "kind", "schedule", "message"), FOUND)
def test_the_emulator_finds_a_bug(bug: str, kind: str, schedule: str, message: str) -> None:
    status, output = _run(_build("seeded", kind), bug, schedule=schedule)
    assert status != 0 and any(part in output for part in message.split("|")), output


OVERRIDDEN = """\
import sys, torch, sepconv
torch.ops.load_library(sys.argv[1])
torch.ops.sepconv.row_average(torch.ones(1, 1, 3, 3), 1)
"""


def test_the_library_takes_the_place_of_the_cpu_kernels() -> None:
    """A schedule that there is not is an error of the emulator, which the CPU kernels never ask."""
    library = _build("library", "plain")
    status, output = _run(sys.executable, "-c", OVERRIDDEN, library, schedule="sideways")
    assert status != 0 and "must be forward, reverse or random:SEED, got sideways" in output, output


@pytest.mark.parametrize("file", OPERATOR_TESTS)
def test_the_kernels_pass_the_operators_own_tests(file: str) -> None:
    _build("library", "plain")
    status, output = _run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *(ROOT / "tests" / file, "-k", OPERATOR_TESTS[file]),
        schedule="random:1",
        SEPCONV_TEST_KERNELS="cuda_host",
        SEPCONV_CUDA_PATH="fused",  # wherever the kernel can
        OMP_NUM_THREADS="1",
    )
    assert status == 0 and "the CUDA kernels ran" in output, output
