"""The training command: ``python -m sepconv.models.train --help``.

Trains one of the three settings of arXiv 2411.07544 by Adam and cross-entropy, as the paper does, without
augmentation unless asked. Learning rate, batch size and stem stride are not stated there: the defaults are
ours. Under ``torchrun -m`` the same command trains on all processes together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from .config import AMP_DTYPES, ConfigError, TrainConfig
from .data import DOWNLOADS, SHIPPED
from .files import WeightsError
from .images import DataError
from .layers import LAYERS
from .metrics import EpochRecord
from .recipe import AUGMENTATIONS, SCHEDULES
from .settings import SETTINGS
from .training import train

__all__ = ["ConfigError", "TrainConfig", "main", "train"]

_DEFAULTS = {field.name: field.default for field in fields(TrainConfig)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sepconv.models.train",
        description="Trains one of the three settings of arXiv 2411.07544 on a data set for classification.",
        epilog="Under torchrun (torchrun --nproc-per-node 2 -m sepconv.models.train ...) the same command "
        "trains on all processes, by gloo on CPUs and nccl on GPUs; the output folder has to be shared.",
    )

    def add(name: str, help: str, **options: object) -> None:
        field = name.replace("-", "_")
        parser.add_argument(f"--{name}", help=help, default=_DEFAULTS[field], **options)  # type: ignore

    parser.add_argument("--setting", required=True, choices=SETTINGS, help="the network")
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help=f"a torchvision folder of CIFAR-10, CIFAR-100 or Fashion-MNIST, a folder of IDX files, an .npz "
        f"of JPEGs, a folder of images by class, or the name {' or '.join(SHIPPED)} (shipped)",
    )
    add("download", "fetch this data set into --data first, unless it is there", choices=tuple(DOWNLOADS))
    add("epochs", "how many in all, those before a resume included (default %(default)s)", type=int)
    add("batch-size", "images a step, over all processes together (default %(default)s)", type=int)
    add("layers", "whose separable convolutions (default %(default)s)", choices=tuple(LAYERS))
    add("lr", "learning rate of Adam (default %(default)s)", type=float)
    add("seed", "of initial weights and order of images (default %(default)s)", type=int)
    add("image-size", "scale images to this (default: their own; 299 for a folder of images)", type=int)
    add("stem-stride", "2 as in Xception, 1 for small images (default %(default)s)", type=int)
    add("row-stride", "of the row average in optimized-with-data (default %(default)s)", type=int)
    add("channels-last", "NHWC in memory (default) or NCHW", action=argparse.BooleanOptionalAction)
    add("amp", "automatic mixed precision (default %(default)s)", choices=tuple(AMP_DTYPES))
    add("augment", "of training images (default %(default)s)", choices=AUGMENTATIONS)
    add("schedule", "of the learning rate; one-cycle ends with --epochs", choices=SCHEDULES)
    add("label-smoothing", "of the training loss (default %(default)s)", type=float)
    add("ema", "validate an average of the weights that keeps this part at each step (0: none)", type=float)
    add("device", "cpu, cuda, cuda:1, ... (default: cuda where available)")
    add("threads", "of the CPU (default: as PyTorch chooses)", type=int)
    add("workers", "processes that decode a folder of images (default %(default)s)", type=int)
    add("train-limit", "use only so many training images, evenly spaced", type=int)
    add("test-limit", "use only so many test images, evenly spaced", type=int)
    add("output", "folder of checkpoint.pt and epochs.csv (default runs/SETTING)", metavar="DIR")
    add("resume", "go on from the checkpoint in the output folder, if there is one", action="store_true")
    add("checkpoint-steps", "checkpoint within an epoch too, every so many steps", type=int)
    add("progress", "show a progress bar (default) or not", action=argparse.BooleanOptionalAction)
    return parser


def _print_epoch(record: EpochRecord) -> None:
    print(
        f"epoch {record.epoch}: train loss {record.train_loss:.4f} in {record.train_seconds:.1f} s, "
        f"validation accuracy {record.val_accuracy:.4f}, loss {record.val_loss:.4f} "
        f"in {record.val_seconds:.1f} s, peak memory {record.peak_memory_mib:.0f} MiB",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = vars(_parser().parse_args(arguments))
    if options["output"] is None:
        options["output"] = f"runs/{options['setting']}"
    try:
        train(TrainConfig(**options), on_epoch=_print_epoch)
    except (ConfigError, DataError, ImportError, OSError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; --resume goes on from {options['output']}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
