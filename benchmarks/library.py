"""What the C library takes: bytes of the stripped shared library, and the workspace of each layer.

    python benchmarks/library.py
    python benchmarks/library.py --shapes mobilenetv2 --threads 4

Builds the library (CMake's native preset) in build/library/, with everything in it and with less, so that
it takes some minutes the first time. The workspace of a layer is what its plan asks for, as `sepconv_bench
--workspace` prints it: one block as large as the largest serves a whole network.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import harness
import layer_shapes

BUILDS = harness.ROOT / "build" / "library"
# What is in it: the options of the build.
VARIANTS = {
    "everything": [],
    "float32": ["-DSEPCONV_DTYPES=float32"],
    "float32, inference": ["-DSEPCONV_DTYPES=float32", "-DSEPCONV_TRAINING=OFF"],
}


def run(*command: str | Path) -> str:
    """What a command prints; its own words if it fails."""
    result = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def build(name: str) -> Path:
    """Builds this variant, the benchmark with it; the folder."""
    folder = BUILDS / name.replace(", ", "-")
    options = ["-DBUILD_TESTING=OFF", "-DSEPCONV_BENCHMARKS=ON", *VARIANTS[name]]
    run("cmake", "--preset", "native", "-B", folder, *options)
    run("cmake", "--build", folder)
    return folder


def stripped_bytes(folder: Path) -> int:
    """Of the shared library, installed without its symbols."""
    with tempfile.TemporaryDirectory() as prefix:
        run("cmake", "--install", folder, "--strip", "--prefix", prefix)
        library = next(path for path in Path(prefix).rglob("libsepconv.*") if ".a" not in path.suffixes)
        return os.path.getsize(library)


def workspaces(folder: Path, shapes: Path, threads: int) -> list[dict[str, Any]]:
    """A row a layer: bytes by the kind of call, as the program's own table names them."""
    text = run(folder / "sepconv_bench", "--workspace", "--threads", str(threads), shapes)
    header, *rows = text.partition("layer, bytes")[2].strip().splitlines()
    names = header.split()
    return [
        {"name": row.split()[0], "bytes": dict(zip(names, map(int, row.split()[1:]), strict=True))}
        for row in rows
    ]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    folders = {name: build(name) for name in VARIANTS}
    return {
        "sizes": {name: stripped_bytes(folder) for name, folder in folders.items()},
        "rows": workspaces(folders["everything"], layer_shapes.path_of(args.shapes), args.threads),
    }


def sizes_table(run: dict[str, Any]) -> str:
    rows = [[name, f"{size / 1024:,.0f}"] for name, size in run["sizes"].items()]
    return harness.table(["stripped libsepconv.so, all instruction sets", "KiB"], rows)


def workspace_table(run: dict[str, Any]) -> str:
    names = list(run["rows"][0]["bytes"])
    rows = [[row["name"], *(f"{row['bytes'][name]:,}" for name in names)] for row in run["rows"]]
    threads = run["settings"]["threads"]
    return harness.table([f"bytes, {threads} thread{'s' * (threads > 1)}", *names], rows)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--threads", type=harness.positive, default=os.cpu_count() or 1, help="default: all cores"
    )
    options.add_argument("--shapes", default="xception", help="a network of shapes/, or a .txt file")
    options.add_argument("--json", type=Path, metavar="PATH", help="write the record here")
    args = options.parse_args()
    run = harness.record("library", args, **measure(args))
    print(harness.describe(run), sizes_table(run), workspace_table(run), sep="\n\n")
    if args.json:
        harness.save(run, args.json)


if __name__ == "__main__":
    main()
