"""Measures what the README shows: runs each benchmark below into results/, then makes plot and tables.

    python benchmarks/record.py                       all of them, on a machine that does nothing else
    python benchmarks/record.py demo 'training-*'     only these

Rows that were disturbed all the same are marked in the tables.
"""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import harness
import mobilenets

FOLDER = Path(__file__).resolve().parent
# Shape files of whole networks, measured at batch 1, and what they are called in tables.
NETWORKS = {
    "xception": "Xception, 299x299",
    "mobilenetv1": "MobileNetV1, 224x224",
    "mobilenetv2": "MobileNetV2, 224x224",
    "efficientnet_b0": "EfficientNet-B0, 224x224",
    "deeplabv3plus": "DeepLabV3+ (Xception-65), 513x513",
}
SMALL_MAPS = {
    "optimized_xception": "optimized Xception, maps 13, 7, 4, 2, 1",
    "optimized_xception_stride1": "optimized Xception, maps 32, 16, 8, 4, 2",
}
BATCHES = (1, 32, 128)
TORCH_ONLY = ["--contestants", "sepconv,sepconv-nchw,stock-nhwc,stock-nchw"]
AUTOCAST = ["--contestants", "sepconv,sepconv-bfloat16,stock-bfloat16,stock-bfloat16-nchw,compile-bfloat16"]
# MobileNets train as timm makes them.
MOBILENET = ["--size", "224", "--batch", "16", "--classes", "1000", "--rounds", "9", "--steps", "1"]


def _layers(shapes: str, *options: str) -> list[str]:
    return ["layers.py", "--shapes", shapes, *options]


def _training(model: str, *options: str) -> list[str]:
    return ["training.py", "--model", model, *options]


# Records of training.py, first those in float32.
TRAINING = {
    "training-optimized_xception": _training("optimized_xception"),
    "training-optimized_xception-stride1": _training("optimized_xception", "--stem-stride", "1"),
    "training-xception": _training("xception"),
    "training-xception-stride1": _training("xception", "--stem-stride", "1", "--rounds", "9", "--steps", "1"),
    **{f"training-{model}": _training(model, *MOBILENET) for model in mobilenets.NAMES},
}
TRAINING_BFLOAT16 = {
    f"{name}-bfloat16": [*command, *AUTOCAST]
    for name, command in TRAINING.items()
    if "mobilenet" not in name and name != "training-xception-stride1"
}

# Name of the record: the command that makes it. `tables.py` and the README know the records by these names.
RUNS = {
    "demo": ["demo.py", "--save"],
    **{f"layers-{network}": _layers(network) for network in NETWORKS},
    **{f"layers-{network}-frozen": _layers(network, "--frozen") for network in NETWORKS},
    "layers-xception-raised": _layers("xception", "--malloc", "raised"),
    "layers-xception-frozen-raised": _layers("xception", "--frozen", "--malloc", "raised"),
    "layers-xception-1-thread": _layers("xception", "--threads", "1"),
    "layers-xception-avx2": _layers("xception", "--isa", "avx2", *TORCH_ONLY),
    "layers-xception-batch-8": _layers("xception", "--batch", "8"),
    "layers-xception-training": _layers("xception", "--batch", "8", "--backward"),
    "layers-gradients": _layers("gradients", "--batch", "32", "--backward"),
    "layers-gradients-bfloat16": _layers("gradients", "--batch", "32", "--backward", "--dtype", "bfloat16"),
    "layers-hard": _layers("hard"),
    "layers-hard-frozen": _layers("hard", "--frozen"),
    "layers-windows": _layers("windows"),
    **{
        f"layers-{shapes}-batch-{batch}": _layers(shapes, "--batch", str(batch))
        for shapes in SMALL_MAPS
        for batch in BATCHES
    },
    **{f"layers-{network}-bfloat16": _layers(network, "--dtype", "bfloat16") for network in NETWORKS},
    "average": ["average.py", "--core"],
    "average-raised": ["average.py", "--core", "--malloc", "raised"],
    "overhead": ["overhead.py"],
    "library": ["library.py"],
    "models-xception": ["models.py", "--model", "xception", "--size", "299"],
    "models-optimized_xception": ["models.py", "--model", "optimized_xception", "--size", "299"],
    **TRAINING,
    **TRAINING_BFLOAT16,
    "convergence": ["convergence.py"],
}
# What the README's plot is drawn from.
ROOFLINE = [f"layers-{network}{kind}" for network in NETWORKS for kind in ("", "-frozen")]


def path_of(name: str) -> Path:
    return harness.RESULTS / f"{name}.json"


def existing(names: Iterable[str]) -> list[Path]:
    """The paths of those records that have been measured."""
    return [path for path in map(path_of, names) if path.exists()]


def chosen(patterns: list[str]) -> list[str]:
    """Names of the records that match any of these patterns, all of them if there are none."""
    for pattern in patterns:
        if not fnmatch.filter(RUNS, pattern):
            raise SystemExit(f"record: {pattern} matches none of {', '.join(RUNS)}")
    return [name for name in RUNS if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]


def main() -> None:
    names = chosen(sys.argv[1:])
    if not harness.kernels_linked():
        raise SystemExit(
            f"sepconv has no kernels here, nothing to record: {harness.sepconv.info()['not_loaded']}"
        )
    failed = []
    for number, name in enumerate(names, start=1):
        script, *options = RUNS[name]
        print(f"[{number}/{len(names)}] {name}", flush=True)
        started = time.monotonic()
        command = [sys.executable, str(FOLDER / script), *options, "--json", str(path_of(name))]
        if subprocess.run(command).returncode != 0:
            failed.append(name)  # the others are worth having all the same
        print(f"{time.monotonic() - started:.0f} s", flush=True)
    if existing(ROOFLINE):
        subprocess.run([sys.executable, str(FOLDER / "roofline.py")], check=True)
    subprocess.run([sys.executable, str(FOLDER / "tables.py"), "--write"], check=True)
    if failed:
        raise SystemExit(f"no new record of {', '.join(failed)}: the reasons stand above")


if __name__ == "__main__":
    main()
