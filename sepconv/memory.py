"""The memory of large results on the CPU.

Memory that an allocator gives back to the system has to be zeroed by the system when it is taken again, which
takes a tenth of a training step and longer than an operator that only moves memory. As ``torch.cuda`` does on
GPUs, sepconv therefore keeps the memory of its own results and gradients from 1 MiB on when no tensor uses it
any more, for the next result of about the same size: on Linux, with torch 2.11 or newer. Blocks of memory are
up to a quarter larger than their tensors; those in use and those kept are together at most 1.5 times what was
in use at once since :func:`empty_cache`. torch's own operators cannot use what is kept. A fork releases it.

The environment variable ``SEPCONV_NO_MEMORY_CACHING=1`` leaves all memory to torch. Some things are different
in kept memory, as in every tensor made of foreign memory: its storage cannot be resized, neither enlarged
(``resize_``, ``out=`` with a larger result) nor freed early (``untyped_storage().resize_(0)``); and torch's
profiler does not count it.
"""

from __future__ import annotations

import torch

from sepconv import _loader


def empty_cache() -> None:
    """Give memory that is kept and that no tensor uses back to the system.

    Example:
        >>> import sepconv
        >>> before = sepconv.memory_reserved()
        >>> sepconv.empty_cache()
        >>> sepconv.memory_reserved() <= before
        True
    """
    if _loader.load().loaded:
        torch.ops.sepconv.empty_cache()


def memory_reserved() -> int:
    """Return how many bytes large results on the CPU take: those that tensors use, and those that are kept.

    Returns:
        Bytes; 0 where no memory is kept.

    Example:
        >>> import sepconv
        >>> sepconv.memory_reserved() >= 0
        True
    """
    return torch.ops.sepconv.memory_reserved() if _loader.load().loaded else 0
