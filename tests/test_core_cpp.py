"""The core without torch: CMake builds and installs it, its tests pass, here and on emulated Arm cores."""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import aarch64_python
import pytest

import sepconv

ROOT = Path(__file__).resolve().parents[1]
EDGE = ROOT / "csrc" / "edge" / "python"
WERROR = "ON" if os.environ.get("SEPCONV_WERROR") == "1" else "OFF"
# The oldest of 64-bit Arm cores, with nothing but the base instructions; one of 2018; all that qemu knows.
# Each has the instruction sets that the tests then find, as x86 cores of 2008 and 2013 have.
ARM_CORES = {"cortex-a53": "scalar neon", "cortex-a76": "scalar neon", "max": "scalar neon neon_bf16"}
X86_CORES = {"Nehalem": "scalar", "Haswell": "scalar avx2"}
# The fingerprints of the float64 reference for so many random calls, as x86 computes it.
REFERENCES = {"test_core_sweep": (200, "247da484223a8429"), "test_c_api_sweep": (40, "1cac902e81e6f87a")}
EMULATED_CASES = {
    **{test: cases for test, (cases, _) in REFERENCES.items()},
    "test_batch_norm": 30,
    "test_axis": None,
    "test_c_api": None,
    "test_parallel": None,
}

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


def build_documented_program(folder: Path, prefix: Path, *options: str) -> str:
    """What the program of docs/c_api.md says, built against the library in `prefix`."""
    page = (ROOT / "docs" / "c_api.md").read_text()
    for language, name in (("c", "main.c"), ("cmake", "CMakeLists.txt")):
        blocks = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        assert len(blocks) == 1, f"docs/c_api.md has {len(blocks)} blocks of {language}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(blocks[0])
    flags = "-std=c99 -pedantic -Wall -Wextra -Werror"
    run(
        *("cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={prefix}"),
        *(f"-DCMAKE_C_FLAGS={flags}", *options),
    )
    run("cmake", "--build", folder / "build")
    return run(folder / "build" / "program")


def check_installed(prefix: Path, folder: Path) -> None:
    shared = next(prefix.rglob("libsepconv.so"))
    symbols = run("nm", "--dynamic", "--defined-only", "--format=posix", shared).split("\n")
    names = [line.split()[0] for line in symbols if line]
    assert "sepconv_run_separable_conv2d" in names
    assert [name for name in names if not name.startswith("sepconv_")] == []
    version = ".".join(sepconv.__version__.split(".")[:2])
    assert f"[libsepconv.so.{version}]" in run("readelf", "--dynamic", shared)

    said = build_documented_program(folder / "shared", prefix)
    # Each output is the mean of the inputs under the window, of which zero padding leaves 4 of 9 at a corner.
    assert re.fullmatch(
        rf"sepconv {sepconv.__version__} on \w+: 32 x 32 pixels, corner 0\.4444, middle 1\.0000\n", said
    ), said
    assert build_documented_program(folder / "static", prefix, "-Dsepconv_USE_STATIC_LIBS=ON") == said
    needed = run("readelf", "--dynamic", folder / "static" / "build" / "program")
    assert "libsepconv" not in needed, needed


def check_benchmark(program: Path, folder: Path) -> None:
    shapes = ROOT / "benchmarks" / "shapes"
    lines = (shapes / "xception.txt").read_text().splitlines()
    layers = [line.split()[0] for line in lines if line[:1].isalpha() and not line.startswith("stages:")]
    library = importlib.import_module("library")
    rows = library.workspaces(program.parent, shapes / "xception.txt", 2)
    assert [row["name"] for row in rows] == layers
    assert all(min(row["bytes"].values()) > 0 for row in rows), rows
    assert library.stripped_bytes(program.parent) > 1 << 20

    broken = folder / "broken.txt"
    for line, wrong in (
        ("stages: none | bn+gelu | bn", "a stage is none, bn, relu, relu6, or as bn+relu, got 'bn+gelu'"),
        ("stages: bn | none | bn", "no batch norm folds into what stands before it, got ' bn | none | bn'"),
        ("x 8 8 4 4 3 1 1 1 1 1 5", "expected at most [count [multiplier]] after the dilation, got "),
        ("x -1 8 4 4 3 1 1 1", "sepconv_plan_separable_conv2d: in_channels must be at least 1, got -1"),
    ):
        broken.write_text(f"# name ...\n{line}\n")
        ran = subprocess.run([program, broken], capture_output=True, text=True)
        assert ran.returncode == 1 and ran.stderr.startswith(f"sepconv_bench: {broken}, line 2: {wrong}")
    for arguments, message in (
        ([folder / "missing.txt"], f"{folder / 'missing.txt'} cannot be read"),
        (["--rounds", "0"], "--rounds must be a positive number, got '0'"),
    ):
        ran = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (1, f"sepconv_bench: {message}\n")

    layer = folder / "layer.txt"
    layer.write_text("stages: relu | bn | bn+relu6\nodd 24 40 15 15 5 2 2 1 3 2\n")
    for dtype in ("float32", "bfloat16"):
        said = run(program, "--rounds", "1", "--threads", "2", "--dtype", dtype, layer)
        assert re.search(r"^odd +3 +\d+\.\d{4} +\d+\.\d +(\d+%|-)$", said, re.MULTILINE), said


def check_older_x86(build: Path) -> None:
    """An instruction above a core's level would end the test there."""
    if platform.machine() != "x86_64":
        return
    emulator = shutil.which("qemu-x86_64-static")
    if emulator is None:
        warnings.warn(
            "no qemu-x86_64-static (Debian: qemu-user-static): older x86 is not tested", stacklevel=2
        )
        return
    for core, levels in X86_CORES.items():
        said = run(emulator, "-cpu", core, build / "test_core_sweep", "20")
        assert said.endswith(f"on {levels}\n"), said


def check_emulated_amx(build: Path) -> None:
    """ctest passes over the test where the CPU lacks the other instructions of these kernels."""
    if platform.machine() != "x86_64":
        return
    cases, fingerprint = REFERENCES["test_core_sweep"]
    ran = subprocess.run([build / "test_amx_sweep", str(cases)], capture_output=True, text=True)
    if ran.returncode == 77:
        warnings.warn(f"the AMX kernels are not tested: {ran.stdout.strip()}", stacklevel=2)
        return
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"reference {fingerprint}, on amx\n" in ran.stdout, ran.stdout


def run_suite_of_edge(python: Sequence[str | Path], levels: str, folder: Path, *path: Path) -> None:
    """The tests of sepconv_edge on these instruction sets, away from torch and the checkout's settings."""
    suite = folder / "suite"
    shutil.copytree(EDGE / "tests", suite)
    places = ":".join(map(str, path))
    # An emulator takes what is set for the emulated program as arguments of its own.
    settings = f"PYTHONPATH={places}", f"SEPCONV_EDGE_ISAS={levels}"
    said = run("env", *settings, *python, "-B", "-m", "pytest", "-q", "--color=no", suite)
    assert re.search(r"^\d+ passed in ", said, re.MULTILINE), said


def check_numpy_binding(prefix: Path, folder: Path) -> None:
    settings = {"sepconv_ROOT": prefix, "SEPCONV_WERROR": WERROR}
    pip = sys.executable, "-m", "pip"
    run(
        *(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder / "wheel", EDGE),
        *(f"--config-settings=cmake.define.{name}={value}" for name, value in settings.items()),
    )
    (wheel,) = (folder / "wheel").glob("sepconv_edge-*.whl")
    assert wheel.name.startswith(f"sepconv_edge-{sepconv.__version__}-")
    run(*pip, "install", "--no-deps", "--target", folder / "site", wheel)
    levels = " ".join(sepconv.info()["available_cpu_capabilities"])
    run_suite_of_edge([sys.executable], levels, folder, folder / "site")
    examples = re.findall(
        r"^```python\n(.*?)^```$", (EDGE / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    said = run("env", f"PYTHONPATH={folder / 'site'}", sys.executable, "-c", "".join(examples))
    assert said.startswith("(1, 56, 56, 128) "), said


def check_numpy_binding_on_arm(prefix: Path, folder: Path, emulator: str) -> None:
    python = aarch64_python.found(ROOT / "build" / "aarch64-python")
    if python is None:
        warnings.warn(
            "no build/aarch64-python (`make aarch64-python`): sepconv_edge is not tested on Arm", stacklevel=2
        )
        return
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    run(
        *("cmake", "-G", "Ninja", "-S", EDGE, "-B", folder / "edge", f"-Dsepconv_ROOT={prefix}"),
        *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-Dpybind11_DIR={pybind11}"),
        *("-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"),
        *(f"-DPython_INCLUDE_DIR={python.headers}", f"-DCMAKE_CXX_FLAGS=-idirafter {python.headers.parent}"),
        *(f"-DPYTHON_MODULE_EXTENSION={python.extension_suffix}", f"-DSEPCONV_WERROR={WERROR}"),
    )
    run("cmake", "--build", folder / "edge")
    run("cmake", "--install", folder / "edge", "--prefix", folder / "site")
    shutil.copytree(EDGE / "sepconv_edge", folder / "site" / "sepconv_edge", dirs_exist_ok=True)
    for core, levels in ARM_CORES.items():
        run_suite_of_edge(python.command(emulator, core), levels, folder / core, folder / "site", python.site)


def test_cmake_builds_and_installs_the_core_and_its_tests_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test, for one build: compiling takes minutes, and workers share nothing."""
    require_cmake()
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    run("cmake", "--preset", "native", "-B", build, f"-DSEPCONV_WERROR={WERROR}", "-DSEPCONV_BENCHMARKS=ON")
    run("cmake", "--build", build)
    run("ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error")
    for test, (cases, fingerprint) in REFERENCES.items():
        said = run(build / test, str(cases))
        assert f"reference {fingerprint}, on" in said, said
    check_older_x86(build)
    check_emulated_amx(build)
    run("cmake", "--install", build, "--prefix", prefix)
    check_installed(prefix, tmp_path)
    check_numpy_binding(prefix, tmp_path / "edge")
    check_benchmark(build / "sepconv_bench", tmp_path)


def check_neon_loops(build: Path) -> None:
    arm_loops = importlib.import_module("arm_loops")
    loops = arm_loops.loops_of(build)
    widest = loops[0]
    assert (widest.transposed, widest.dtype) == (False, "float")
    assert widest.share >= 0.8, arm_loops.table(loops)


def check_neon_counts(build: Path, folder: Path) -> None:
    """What is executed for a layer of Xception's middle, and for one whose channels leave tails of four."""
    arm_counts = importlib.import_module("arm_counts")
    if (reason := arm_counts.why_not()) is not None:
        warnings.warn(f"executed instructions are not counted: {reason}", stacklevel=2)
        return
    shapes = folder / "counted.txt"
    shapes.write_text("stages: relu | none | bn\nmiddle 728 728 19 19 3 1 1 1\ntails 20 36 15 15 3 1 1 1\n")
    middle, tails = arm_counts.count(build / "sepconv_bench", shapes, "cortex-a53")
    table = arm_counts.table([middle, tails])
    assert middle.product_share >= 0.8, table
    for layer in middle, tails:
        assert 0.95 <= layer.fma / layer.due <= 1.02, table  # zero padding is not multiplied
        assert layer.single < layer.due / 1000, table


def test_neon_kernels_agree_with_the_reference_on_emulated_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_cmake()
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None or shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: qemu-user-static)")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    run("cmake", "--preset", "aarch64", "-B", build, f"-DSEPCONV_WERROR={WERROR}", "-DSEPCONV_BENCHMARKS=ON")
    run("cmake", "--build", build)
    for core, levels in ARM_CORES.items():
        for test, cases in EMULATED_CASES.items():
            arguments = [] if cases is None else [str(cases)]
            said = run(emulator, "-cpu", core, "-L", "/usr/aarch64-linux-gnu", build / test, *arguments)
            if test in REFERENCES:
                assert f"reference {REFERENCES[test][1]}, on {levels}\n" in said, said
    check_neon_loops(build)
    check_neon_counts(build, tmp_path)
    run("cmake", "--install", build, "--prefix", prefix)
    check_numpy_binding_on_arm(prefix, tmp_path, emulator)
