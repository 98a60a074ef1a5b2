"""The device of test_cuda.py: a GPU, or the CPU with SEPCONV_TEST_DEVICE=cpu, which tests the tests."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from operators import Operator
from torch import Tensor

NAME = os.environ.get("SEPCONV_TEST_DEVICE", "cuda")
CUDA = NAME == "cuda"


def missing() -> str | None:
    """Why nothing can be tested here, or None."""
    from sepconv.ops import has_backend

    if not CUDA:
        return None
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU (SEPCONV_TEST_DEVICE=cpu tests on the CPU)"
    return None if has_backend("CUDA") else "sepconv was built without CUDA kernels"


def carried(tensor: Tensor | None, device: str = NAME) -> Tensor | None:
    """The same view of the same storage on the device: strides, offset and what lies around are kept."""
    if tensor is None:
        return None
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).to(device)
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def carried_all(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: carried(tensor) for name, tensor in tensors.items()}


class uninitialized_memory_is_nan:
    """What a kernel forgets to write is NaN. Not around stock, which is not deterministic everywhere."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        assert torch.utils.deterministic.fill_uninitialized_memory

    def __exit__(self, *error: object) -> None:
        torch.use_deterministic_algorithms(self.before)


def on_device(operator: Operator, float64: str = "cpu") -> Operator:
    """The operator for tensors of the CPU, run on the device as stock is; float64 runs on `float64`."""

    def forward(tensors, config):
        with uninitialized_memory_is_nan():
            return operator.forward(carried_all(tensors), config).cpu()

    def backward(grad_output, tensors, config, mask):
        with uninitialized_memory_is_nan():
            found = operator.backward(carried(grad_output), carried_all(tensors), config, mask)
        return [None if gradient is None else gradient.cpu() for gradient in found]

    def reference(**arguments: Any) -> Tensor:
        place = float64 if arguments["input"].dtype is torch.float64 else NAME
        moved = {
            key: value.to(place) if isinstance(value, Tensor) else value for key, value in arguments.items()
        }
        return operator.reference(**moved).cpu()

    return replace(operator, forward=forward, backward=backward, reference=reference)
