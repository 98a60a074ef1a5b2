"""Finds and loads the compiled library ``_C``, whose static initialisers register ``torch.ops.sepconv``.

``_C`` holds no Python symbol: it is loaded by :func:`torch.ops.load_library`, so one file serves every Python
and, through libtorch's stable ABI, every torch from 2.10 on.
"""

from __future__ import annotations

import functools
import importlib.machinery
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Library:
    """What became of ``_C``: the file that was loaded, or the reason why none was."""

    path: Path | None = None
    reason: str | None = None

    @property
    def loaded(self) -> bool:
        return self.reason is None


def find(folder: Path = PACKAGE) -> Path | None:
    """Return the ``_C`` in `folder` that this Python would import, or None."""
    names = (f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def attempt(folder: Path = PACKAGE) -> Library:
    """Load ``_C`` from `folder` without a warning."""
    path = find(folder)
    if path is None:
        return Library(reason=f"there is no compiled _C in {folder}")
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:  # a missing symbol or file; a namespace registered before
        return Library(path=path, reason=f"{path.name} could not be loaded: {error}")
    return Library(path=path)


@functools.cache
def load() -> Library:
    """Load ``_C`` once for the process; when that fails, warn once and name the imported package.

    The path matters: in a checkout's root, the sources shadow an installed package that may be fine.
    """
    library = attempt()
    if not library.loaded:
        warnings.warn(
            f"sepconv, imported from {PACKAGE}, runs without its compiled kernels: {library.reason}. "
            "The plain-torch reference serves instead. Install the package (pip install .), or, in a "
            "checkout, build in place (pip install --no-build-isolation -e .).",
            RuntimeWarning,
            stacklevel=2,
        )
    return library
