"""Weights that come with this package, by name: which network they are for, and where the file lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .weights import Model, load_pretrained

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Pretrained:
    """A file, and the arguments of the network that it was trained with."""

    file: str
    options: Mapping[str, object]

    @property
    def path(self) -> Path:
        return FOLDER / self.file


OPTIMIZED_XCEPTION = {
    "cifar10": Pretrained(
        "optimized_xception_cifar10.pt",
        {
            "num_classes": 10,
            "in_channels": 3,
            "row_average": False,
            "row_stride": 1,
            "stem_stride": 1,
            "shortcuts": "every",
            "hidden": (128,),
        },
    )
}


def load(
    name: str, available: Mapping[str, Pretrained], given: Mapping[str, object], build: Callable[..., Model]
) -> Model:
    """Builds the network that the weights called `name` were trained with, and loads them.

    Args:
        name: of the weights.
        available: those there are.
        given: the caller's arguments; None stands for what the weights need.
        build: makes the network from its arguments.

    Raises:
        ValueError: no such name, or an argument that the weights do not fit, by name.
        FileNotFoundError: this copy of the package came without the file.
        WeightsError: the file is broken.
    """
    if name not in available:
        raise ValueError(f"weights must be one of {', '.join(map(repr, available))}, got {name!r}")
    chosen = available[name]
    for option, value in given.items():
        if value is not None and value != chosen.options[option]:
            raise ValueError(
                f"{option} must be {chosen.options[option]!r} with weights {name!r}, got {value!r}"
            )
    if not chosen.path.is_file():
        raise FileNotFoundError(
            f"{chosen.path}: the weights {name!r} are not shipped with this version; train them, and load "
            "yours by sepconv.models.load_pretrained"
        )
    return load_pretrained(build(**chosen.options), chosen.path)
