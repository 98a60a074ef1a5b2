"""The core without torch: CMake builds it; its tests in tests/cpp pass, here and on emulated Arm cores."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WERROR = "ON" if os.environ.get("SEPCONV_WERROR") == "1" else "OFF"
# The oldest of 64-bit Arm cores, with nothing but the base instructions; one of 2018; all that qemu knows.
ARM_CORES = ("cortex-a53", "cortex-a76", "max")
EMULATED_CASES = {"test_core_sweep": 200, "test_batch_norm": 30, "test_axis": None, "test_parallel": None}

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").is_file(), reason="runs in a checkout: the core's sources are not here"
)


def run(*command: str | Path) -> str:
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def require_cmake() -> None:
    for tool in ("cmake", "ctest", "ninja"):
        assert shutil.which(tool), f"{tool} is not on the PATH; pip install 'sepconv[test]' brings it"


def test_cmake_builds_the_core_and_its_tests_pass(tmp_path: Path) -> None:
    require_cmake()
    run("cmake", "--preset", "native", "-B", tmp_path, f"-DSEPCONV_WERROR={WERROR}")
    run("cmake", "--build", tmp_path)
    run("ctest", "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error")


def test_neon_kernels_agree_with_the_reference_on_emulated_cores(tmp_path: Path) -> None:
    require_cmake()
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None or shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: qemu-user-static)")
    run("cmake", "--preset", "aarch64", "-B", tmp_path, f"-DSEPCONV_WERROR={WERROR}")
    run("cmake", "--build", tmp_path)
    for core in ARM_CORES:
        for test, cases in EMULATED_CASES.items():
            arguments = [] if cases is None else [str(cases)]
            said = run(emulator, "-cpu", core, "-L", "/usr/aarch64-linux-gnu", tmp_path / test, *arguments)
            assert test != "test_core_sweep" or "neon" in said, said
