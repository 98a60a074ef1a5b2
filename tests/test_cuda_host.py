"""The CUDA kernels, run on the CPU (tests/cuda_host), pass the operators' tests.

They run as their own source compiled as C++, and as what nvcc made of it. The emulator finds the bugs that
were put into kernels, and counts what kernels ask of a GPU's memory.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from profiles import nightly_only

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
    "test_large.py": "32_bits or 2_31_elements",
    "test_conv_chain.py": "not any_number_of_threads",
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
    ("wrong_wait_group", "ptx", "forward", "is -nan|is nan"),
    ("missing_barrier", "ptx", "reverse", "is -nan|is nan"),
    ("missing_barrier_at_loop_end", "ptx", "forward", "is -nan|is nan"),
    ("index_past_the_end", "ptx", "forward", "less shared memory than the kernel uses"),
    ("divergent_barrier", "ptx", "forward", "while other threads of the block wait at another one"),
    ("barrier_left_behind", "ptx", "forward", "never come to the barrier"),
    ("divergent_collective", "ptx", "forward", "while other lanes of the warp are in another one"),
    ("misaligned_copy", "ptx", "forward", "no multiples of 16"),
    ("swapped_registers", "ptx", "forward", "wrong: element"),
)


def _build(target: str, kind: str) -> Path:
    from cuda_host import build

    if build.cuda_include() is None:
        pytest.skip("CUDA's headers are not here: set CUDA_HOME, or put nvcc on the PATH")
    if kind == "ptx" and build.nvcc() is None:
        pytest.skip("CUDA's headers are here without nvcc, which makes the PTX")
    return build.build(target, kind)


def _run(*command: object, schedule: str, **variables: str) -> tuple[int, str]:
    environment = os.environ | variables | {"SEPCONV_CUDA_HOST_SCHEDULE": schedule}
    ran = subprocess.run(
        [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return ran.returncode, ran.stdout


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["plain", "address", "thread", "ptx"])
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


def _run_operator_tests(file: str, kind: str, schedule: str = "random:1", **variables: str) -> None:
    _build("library", kind)
    status, output = _run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *(ROOT / "tests" / file, "-k", OPERATOR_TESTS[file]),
        schedule=schedule,
        SEPCONV_TEST_KERNELS=f"cuda_host:{kind}",
        SEPCONV_CUDA_PATH="fused",  # wherever the kernel can
        OMP_NUM_THREADS="1",
        **variables,
    )
    assert status == 0 and "the CUDA kernels ran" in output, output


@pytest.mark.parametrize("kind", ["plain", "ptx"])
@pytest.mark.parametrize("file", OPERATOR_TESTS)
def test_the_kernels_pass_the_operators_own_tests(file: str, kind: str) -> None:
    _run_operator_tests(file, kind)


@nightly_only
@pytest.mark.parametrize("schedule", ["forward", "reverse", "random:2"])
@pytest.mark.parametrize("kind", ["plain", "ptx"])
@pytest.mark.parametrize("file", OPERATOR_TESTS)
def test_the_kernels_pass_in_every_order_of_threads(file: str, kind: str, schedule: str) -> None:
    _run_operator_tests(file, kind, schedule)


@nightly_only
@pytest.mark.parametrize("file", OPERATOR_TESTS)
def test_the_kernels_pass_under_address_sanitizer(file: str) -> None:
    _run_operator_tests(file, "address", LD_PRELOAD=_runtime("asan"), ASAN_OPTIONS="detect_leaks=0")


def _runtime(name: str) -> str:
    """The sanitizer's library, which a process that was built without it has to load first."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name=lib{name}.so"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


DESCRIBED = """\
import sys, torch, sepconv
torch.ops.load_library(sys.argv[1])
shape = [2, int(sys.argv[2]), 40, 40, 128, [3, 3], [1, 1], [1, 1], [1, 1], 1, torch.bfloat16, True]
print(torch.ops.sepconv.describe_separable_conv2d_cuda(*shape, 100, int(sys.argv[3]) * 1024))
"""


@pytest.mark.parametrize(("kib", "most_channels"), [(99, 512), (163, 1024), (227, 1536)])
def test_the_plan_says_how_many_channels_the_fused_kernel_takes(kib: int, most_channels: int) -> None:
    for channels, said in ((most_channels, "would fuse"), (most_channels + 8, "does not serve this call")):
        library = _build("library", "plain")
        status, output = _run(sys.executable, "-c", DESCRIBED, library, channels, kib, schedule="forward")
        assert status == 0 and said in output, output


def test_an_instruction_that_nobody_translates_is_an_error() -> None:
    from cuda_host import ptx

    text = ".visible .entry kernel(\n)\n{\n.reg .b32 %r<3>;\npopc.b32 %r1, %r2;\nret;\n}\n"
    with pytest.raises(ptx.UnknownError, match=r"kernel: an opcode of this kind: popc\.b32 %r1, %r2"):
        ptx.translate(text)


# --- what kernels ask of a GPU's memory ---


def test_accesses_of_known_cost_are_counted_right(tmp_path: Path) -> None:
    from cuda_host import counts

    path = tmp_path / "counts.csv"
    status, output = _run(
        _build("seeded", "ptx"), "counts", schedule="forward", SEPCONV_CUDA_HOST_COUNTS=str(path)
    )
    assert (status, output) == (0, "")
    # By the distance of the words that the lanes of a warp access: wavefronts, and sectors.
    for step, wavefronts, sectors in ((1, 1, 4), (8, 8, 32), (33, 1, 32)):
        found = counts.read(path, "strided", f"ILi{step}EE")
        assert found == {
            "shared load": counts.Cost(wavefronts, 1),
            "shared store": counts.Cost(wavefronts, 1),
            "global load": counts.Cost(sectors, 4),
            "global store": counts.Cost(4, 4),
        }

    # Six iterations of one wavefront each; half of the words in every second one fill half of each sector.
    found = counts.read(path, "divergent")
    assert found["shared store"] == counts.Cost(6, 6) and found["global load"] == counts.Cost(24, 18)


def _calls() -> list[str]:
    from cuda_host import counts

    return list(counts.CALLS)


@pytest.mark.parametrize("name", _calls())
def test_the_main_kernels_have_no_conflicts_of_banks(name: str) -> None:
    from cuda_host import counts

    costs, none = counts.measure(_build("library", "ptx"), name), counts.Cost()
    assert costs.get("shared load", none).ratio <= 1.1  # what loops do
    assert costs.get("shared store", none).ratio <= counts.CALLS[name].shared_store
    assert costs["global store"].ratio <= counts.CALLS[name].global_store
