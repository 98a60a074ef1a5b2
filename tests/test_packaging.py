"""What a user relies on when installing: the library loads, or says why not, and no source is forgotten."""

import importlib.metadata
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sepconv
from sepconv import _loader

ROOT = Path(__file__).resolve().parents[1]
in_checkout = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="runs in a checkout: setup.py is not here"
)


def run(*arguments: Any, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# --- the library ------------------------------------------------------------------------------------------


def test_the_compiled_library_is_loaded() -> None:
    library = _loader.load()
    assert library.loaded, library.reason
    assert library.path is not None and library.path.parent == Path(sepconv.__file__).resolve().parent


def test_one_library_serves_every_python() -> None:
    path = _loader.load().path
    assert path is not None and path.suffixes == [".abi3", ".so"]


def test_the_library_holds_no_python_symbol() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    symbols = run(nm, "--dynamic", "--undefined-only", _loader.load().path, cwd=ROOT).stdout
    names = re.findall(r"\bU (\S+)", symbols)
    assert any(name.startswith("aoti_torch_") for name in names), "nm listed no symbol of libtorch"
    assert [name for name in names if re.match(r"_?Py", name)] == []


def test_the_library_uses_only_the_stable_interface_of_libtorch() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    symbols = run(nm, "--dynamic", "--undefined-only", "--demangle", _loader.load().path, cwd=ROOT).stdout
    assert re.findall(r"\bU ((?:at|c10|torch)::.*)", symbols) == []


def test_the_installed_version_is_the_version_of_the_package() -> None:
    assert importlib.metadata.version("sepconv") == sepconv.__version__


def test_torch_is_the_only_requirement() -> None:
    required = importlib.metadata.requires("sepconv") or []
    assert [line for line in required if "extra ==" not in line] == ["torch>=2.10"]


def test_the_wheel_is_tagged_for_every_python_from_3_10() -> None:
    wheel = importlib.metadata.distribution("sepconv").read_text("WHEEL")
    if wheel is None:
        pytest.skip("this installation keeps no WHEEL file")
    tags = re.findall(r"^Tag: (\S+)", wheel, re.MULTILINE)
    assert tags and all(tag.startswith("cp310-abi3-") for tag in tags)


# --- without it -------------------------------------------------------------------------------------------


@pytest.fixture
def package_without_library(tmp_path: Path) -> Path:
    package = tmp_path / "sepconv"
    shutil.copytree(
        Path(sepconv.__file__).parent, package, ignore=shutil.ignore_patterns("_C*", "__pycache__", "models")
    )
    return package


USE_THE_FALLBACK = """
import torch, sepconv
from torch.nn import functional as F
x = torch.arange(12.0).reshape(1, 1, 4, 3)
for _ in range(2):
    y = sepconv.row_average(x)
assert torch.equal(y, F.avg_pool2d(x, (3, 1), 1, (1, 0), count_include_pad=False))
print(sepconv.__file__)
"""


def test_without_the_library_one_warning_names_the_imported_path(package_without_library: Path) -> None:
    ran = run(sys.executable, "-W", "always", "-c", USE_THE_FALLBACK, cwd=package_without_library.parent)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(package_without_library / "__init__.py")
    assert ran.stderr.count("RuntimeWarning: sepconv") == 1
    assert f"imported from {package_without_library}," in ran.stderr


def test_info_says_why_the_library_is_not_in_use(package_without_library: Path) -> None:
    command = "import sepconv; print(sepconv.info())"
    ran = run(sys.executable, "-W", "ignore", "-c", command, cwd=package_without_library.parent)
    assert ran.returncode == 0, ran.stderr
    assert f"there is no compiled _C in {package_without_library}" in ran.stdout


def test_a_broken_library_is_named_and_does_not_break_the_import(package_without_library: Path) -> None:
    loaded = _loader.load().path
    assert loaded is not None
    (package_without_library / loaded.name).write_bytes(loaded.read_bytes()[:32])
    ran = run(sys.executable, "-W", "always", "-c", USE_THE_FALLBACK, cwd=package_without_library.parent)
    assert ran.returncode == 0, ran.stderr
    assert f"{loaded.name} could not be loaded" in ran.stderr


def test_a_loaded_library_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _loader.load.cache_clear()
        assert _loader.load().loaded


# --- the operators' own checks ----------------------------------------------------------------------------

ARGUMENTS = (torch.ones(1, 3, 4, 4), torch.ones(3, 1, 3, 3), torch.ones(2, 3, 1, 1))


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_lists_of_a_wrong_length_reach_no_kernel(name: str, length: int) -> None:
    with pytest.raises(RuntimeError, match=rf"^separable_conv2d: {name} must have 2 elements, got {length}"):
        torch.ops.sepconv.separable_conv2d(*ARGUMENTS, **{name: [1] * length})


def test_memory_that_cannot_be_had_is_an_error_that_names_the_operator() -> None:
    with pytest.raises(
        RuntimeError, match=r"^separable_conv2d: there is no memory for output of shape \(1, 2, "
    ):
        torch.ops.sepconv.separable_conv2d(*ARGUMENTS, padding=[2**25, 2**25])


def test_a_byte_count_beyond_64_bits_is_an_error() -> None:
    x = ARGUMENTS[0].expand(2**31, 3, 4, 4)
    with pytest.raises(RuntimeError, match=r"^separable_conv2d: output of shape .* more than 2\^63 bytes"):
        torch.ops.sepconv.separable_conv2d(x, *ARGUMENTS[1:], padding=[2**30, 2**30])


def test_an_unknown_cpu_capability_is_refused_with_the_known_ones() -> None:
    before = torch.ops.sepconv.cpu_capability()
    known = torch.ops.sepconv.available_cpu_capabilities()
    with pytest.raises(RuntimeError, match=rf"must be one of {known} on this machine, got 'sse9'"):
        torch.ops.sepconv.set_cpu_capability("sse9")
    assert torch.ops.sepconv.cpu_capability() == before


@pytest.mark.skipif(sys.platform != "linux", reason="asks the dynamic linker of Linux")
def test_cuda_kernels_find_the_current_stream_of_a_torch_with_cuda() -> None:
    """A weak symbol, for torch without CUDA: with it, something must have brought libtorch_cuda along."""
    if torch.version.cuda is None or not sepconv.info()["cuda"]:
        pytest.skip("torch or the library has no CUDA")
    loaded = subprocess.run(
        [sys.executable, "-c", "import sepconv"],
        env=os.environ | {"LD_DEBUG": "bindings"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"_C\S* .*libtorch_cuda\S* .*`aoti_torch_get_current_cuda_stream'", loaded.stderr)


# --- setup.py ---------------------------------------------------------------------------------------------


@pytest.fixture
def setup_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Runs setup.py as far as setup(), with SEPCONV_CUDA as given, and returns its names."""

    def execute(cuda: str | None = None) -> dict[str, Any]:
        monkeypatch.setattr("setuptools.setup", lambda **_: None)
        monkeypatch.chdir(ROOT)
        monkeypatch.delenv("SEPCONV_CUDA", raising=False)
        if cuda is not None:
            monkeypatch.setenv("SEPCONV_CUDA", cuda)
        return runpy.run_path(str(ROOT / "setup.py"))

    return execute


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> Callable[[str], Path]:
    """Puts a shell script in the place of a toolkit's nvcc and returns the toolkit's folder."""

    def make(script: str) -> Path:
        nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(f"#!/bin/sh\n{script}\n")
        nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
        toolkit = nvcc.parents[1]
        runtime = toolkit / "lib64" / "libcudart_static.a"
        runtime.parent.mkdir()
        runtime.touch()
        return toolkit

    return make


@in_checkout
def test_every_source_is_listed_once(setup_script: Callable[..., dict[str, Any]]) -> None:
    names = setup_script()
    lines = (ROOT / "csrc/capi/sources.txt").read_text().splitlines()  # of the C library, for CMake alone
    capi = [line for line in lines if not line.startswith("#")]
    edge = (ROOT / "csrc/edge/python/CMakeLists.txt").read_text()  # a module of its own
    binding = [f"edge/python/{source}" for source in re.findall(r"\bsrc/\w+\.cpp", edge)]
    listed = names["core_sources"]() + capi + names["TORCH_SOURCES"] + names["CUDA_SOURCES"] + binding
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "csrc")) for path in sources)


@in_checkout
def test_a_wish_for_cuda_that_is_neither_0_nor_1_is_refused(
    setup_script: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(SystemExit, match="SEPCONV_CUDA must be 0 or 1, got 'yes'"):
        setup_script("yes")


@in_checkout
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'no licence' >&2; exit 1", "nvcc cannot compile three lines: no licence"),
        ("echo 'release 13.0'", None),
        ("echo 'release 12.8'", "nvcc is of CUDA 12.8, torch of CUDA 13.0"),
    ],
)
def test_cuda_is_tried_on_three_lines(
    script: str,
    reason: str | None,
    setup_script: Callable[..., dict[str, Any]],
    fake_nvcc: Callable[[str], Path],
) -> None:
    names = setup_script()
    assert names["why_no_cuda"](str(fake_nvcc(script)), "13.0") == reason


@in_checkout
def test_a_toolkit_without_the_static_runtime_is_named(
    setup_script: Callable[..., dict[str, Any]], fake_nvcc: Callable[[str], Path]
) -> None:
    toolkit = fake_nvcc("echo 'release 13.0'")
    (toolkit / "lib64" / "libcudart_static.a").unlink()
    reason = setup_script()["why_no_cuda"](str(toolkit), "13.0")
    assert reason == f"there is no libcudart_static.a in {toolkit}"


@in_checkout
def test_cuda_is_left_out_on_request_and_for_a_torch_without_it(
    setup_script: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = setup_script("0")
    assert names["why_no_cuda"]("/toolkit", "13.0") == "SEPCONV_CUDA=0"
    monkeypatch.delenv("SEPCONV_CUDA")
    assert names["why_no_cuda"]("/toolkit", None) == "torch was built without CUDA"
    assert names["why_no_cuda"](None, "13.0").startswith("no CUDA toolkit was found")
    assert names["why_no_cuda"]("/no/such/toolkit", "13.0").startswith("nvcc cannot be run")


@in_checkout
def test_a_toolkit_behind_a_wrapper_is_found(
    setup_script: Callable[..., dict[str, Any]],
    fake_nvcc: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = setup_script()
    toolkit = fake_nvcc(f"echo '#$ _SPACE_= ' >&2; echo '#$ TOP={tmp_path}/toolkit/bin/..' >&2")
    wrapper = tmp_path / "elsewhere" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=os.pathsep)
    assert names["find_cuda_home"]() == str(toolkit)
    monkeypatch.setenv("CUDA_HOME", "/chosen")
    assert names["find_cuda_home"]() == "/chosen"
