"""The core without torch: CMake builds it, and its own tests in tests/cpp pass."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").is_file(), reason="runs in a checkout: the core's sources are not here"
)
def test_cmake_builds_the_core_and_its_tests_pass(tmp_path: Path) -> None:
    for tool in ("cmake", "ctest", "ninja"):
        assert shutil.which(tool), f"{tool} is not on the PATH; pip install 'sepconv[test]' brings it"
    werror = "ON" if os.environ.get("SEPCONV_WERROR") == "1" else "OFF"
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DSEPCONV_WERROR={werror}"],
        ["cmake", "--build", build],
        ["ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error"],
    ):
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert ran.returncode == 0, ran.stdout
