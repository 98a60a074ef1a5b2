"""A Python for 64-bit Arm in a folder, to run under qemu: Debian's packages, and wheels beside them.

    python tests/aarch64_python.py build/aarch64-python

It needs apt-get, dpkg-deb and pip, and what they fetch (60 MB), but no rights and no Arm: nothing of what is
unpacked runs here, and no list of the machine's own packages changes. A complete folder is left as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("python3", "libpython3-dev", "libgomp1", "libstdc++6")
WHEELS = ("numpy", "ml_dtypes", "pytest", "iniconfig", "packaging", "pluggy", "pygments")
PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)


@dataclass(frozen=True)
class Aarch64Python:
    """Such a folder."""

    root: Path
    version: str  # as 3.11

    @property
    def executable(self) -> Path:
        return self.root / "usr" / "bin" / f"python{self.version}"

    @property
    def site(self) -> Path:
        return self.root / "site"

    @property
    def headers(self) -> Path:
        return self.root / "usr" / "include" / f"python{self.version}"

    @property
    def extension_suffix(self) -> str:
        return f".cpython-{self.version.replace('.', '')}-aarch64-linux-gnu.so"

    def command(self, emulator: str, core: str) -> list[str]:
        """What runs it as `core`; arguments follow."""
        return [emulator, "-cpu", core, "-L", str(self.root), str(self.executable)]


def found(root: Path) -> Aarch64Python | None:
    """The Python in this folder, or None where it is not complete."""
    if not (root / "complete").is_file():
        return None
    return Aarch64Python(root.resolve(), (root / "complete").read_text().strip())


def fetch(root: Path) -> Aarch64Python:
    """Fills the folder unless it is complete."""
    there = found(root)
    if there is not None:
        return there
    unfinished = root / "unfinished"
    if root.exists() and any(root.iterdir()) and not unfinished.exists():
        raise SystemExit(f"error: {root} must be empty or not there: it has other files")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    unfinished.touch()
    archives = _download_packages(root.resolve() / "apt")
    for archive in archives:
        _run(["dpkg-deb", "--extract", str(archive), str(root)])
    shutil.rmtree(root / "apt")
    if not (root / "lib").exists():  # where the loader is looked for
        (root / "lib").symlink_to("usr/lib")
    version = min(path.name.removeprefix("python") for path in (root / "usr" / "bin").glob("python3.*[0-9]"))
    _run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--target", str(root / "site"), "--python-version", version, "--implementation", "cp"),
            *(option for platform in PLATFORMS for option in ("--platform", platform)),
            *WHEELS,
        ]
    )
    (root / "complete").write_text(version + "\n")
    unfinished.unlink()
    return Aarch64Python(root.resolve(), version)


def _download_packages(folder: Path) -> list[Path]:
    """By an apt of another architecture, whose lists and archives are in `folder`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    settings = folder / "apt.conf"
    settings.write_text(
        'APT::Architecture "arm64";\nAPT::Architectures { "arm64"; };\nAPT::Install-Recommends "false";\n'
        'APT::Sandbox::User "";\nDebug::NoLocking "true";\n'
        f'Dir::State "{folder}/state";\nDir::State::status "{folder}/status";\nDir::Cache "{folder}/cache";\n'
    )
    for command in ["update"], ["--yes", "--download-only", "install", *PACKAGES]:
        _run(["apt-get", "--quiet=2", *command], APT_CONFIG=str(settings))
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _run(command: Sequence[str], **environment: str) -> None:
    ran = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    if ran.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{ran.stdout}")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("root", type=Path, help="the folder")
    python = fetch(options.parse_args().root)
    print(f"Python {python.version} for 64-bit Arm is in {python.root}")


if __name__ == "__main__":
    main()
