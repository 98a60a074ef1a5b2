"""What was built, what was loaded and what the kernels would use on this machine."""

from __future__ import annotations

from typing import Any

import torch

import sepconv
from sepconv import _loader


def info() -> dict[str, Any]:
    """Describe this installation.

    Returns:
        A dict with the keys ``version``, ``torch``, ``library`` (the path of the compiled library, or None),
        ``not_loaded`` (why it is not in use, or None), ``build`` (how it was built), ``cpu_capability`` (the
        instruction set in use), ``available_cpu_capabilities`` (weakest first), ``cuda`` (whether there are
        CUDA kernels), ``no_cuda`` (why not, or None) and ``threads``.

    Example:
        >>> import sepconv
        >>> sepconv.info()["version"] == sepconv.__version__
        True
    """
    library = _loader.load()
    return {
        "version": sepconv.__version__,
        "torch": torch.__version__,
        "library": None if library.path is None else str(library.path),
        "not_loaded": library.reason,
        **(_of_library() if library.loaded else _of_reference()),
        "threads": torch.get_num_threads(),
    }


def _of_library() -> dict[str, Any]:
    from sepconv.ops import has_backend

    ops = torch.ops.sepconv
    cuda = has_backend("CUDA")
    return {
        "build": ops.build_configuration(),
        "cpu_capability": ops.cpu_capability(),
        "available_cpu_capabilities": ops.available_cpu_capabilities().split(","),
        "cuda": cuda,
        "no_cuda": None if cuda else "the library was built without CUDA kernels",
    }


def _of_reference() -> dict[str, Any]:
    return {
        "build": None,
        "cpu_capability": None,
        "available_cpu_capabilities": [],
        "cuda": False,
        "no_cuda": "the compiled library is not loaded",
    }
