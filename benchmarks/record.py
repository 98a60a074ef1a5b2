"""Measures what the README shows: runs each benchmark below into results/ and rewrites the README's tables.

    python benchmarks/record.py                    all of them: 14 runs, on a machine that does nothing else
    python benchmarks/record.py demo training      only these

On a machine that does nothing else: rows that were disturbed all the same are marked in the tables.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import harness

FOLDER = Path(__file__).resolve().parent
# Name of the record: the command that makes it. `tables.py` and the README know the records by these names.
RUNS = {
    "demo": ["demo.py", "--save"],
    "layers-xception": ["layers.py", "--shapes", "xception"],
    "layers-xception-1-thread": ["layers.py", "--shapes", "xception", "--threads", "1"],
    "layers-xception-raised": ["layers.py", "--shapes", "xception", "--malloc", "raised"],
    "layers-xception-training": ["layers.py", "--shapes", "xception", "--batch", "8", "--backward"],
    "layers-optimized_xception": ["layers.py", "--shapes", "optimized_xception", "--batch", "64"],
    "layers-mobilenetv1": ["layers.py", "--shapes", "mobilenetv1"],
    "layers-mobilenetv2": ["layers.py", "--shapes", "mobilenetv2"],
    "layers-efficientnet_b0": ["layers.py", "--shapes", "efficientnet_b0"],
    "layers-deeplabv3plus": ["layers.py", "--shapes", "deeplabv3plus"],
    "models-xception": ["models.py", "--model", "xception", "--size", "299"],
    "models-optimized_xception": ["models.py", "--model", "optimized_xception", "--size", "299"],
    "training-optimized_xception": ["training.py", "--model", "optimized_xception"],
    "training-xception": ["training.py", "--model", "xception"],
}


def path_of(name: str) -> Path:
    return harness.RESULTS / f"{name}.json"


def main() -> None:
    names = harness.choose(",".join(sys.argv[1:]) or None, RUNS, option="record")
    if not harness.kernels_linked():
        raise SystemExit(
            f"sepconv has no kernels here, nothing to record: {harness.sepconv.info()['not_loaded']}"
        )
    for number, name in enumerate(names, start=1):
        script, *options = RUNS[name]
        print(f"[{number}/{len(names)}] {name}", flush=True)
        command = [sys.executable, str(FOLDER / script), *options, "--json", str(path_of(name))]
        subprocess.run(command, check=True)
    subprocess.run([sys.executable, str(FOLDER / "tables.py"), "--write"], check=True)


if __name__ == "__main__":
    main()
