"""CIFAR-10 and CIFAR-100 as torchvision unpacks them: one pickle of NumPy arrays a batch."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from .images import DataError, ImageData, MemoryImages, imported_numpy, in_memory, labelled

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers; a pickle of anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        numpy = imported_numpy()
        # NumPy 2 moved its core; files of either age are read under either version.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return numpy.ndarray(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(numpy, name)
        if (module, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR file")


def _read_pickle(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: is missing")
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"expected a dict, got {type(content).__name__}")
    except ImportError:
        raise
    except Exception as error:  # a broken pickle may raise nearly anything
        raise DataError(f"{path}: cannot be read as a CIFAR file: {error}") from error
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def _read_cifar(path: Path, label_key: str, num_classes: int) -> MemoryImages:
    content = _read_pickle(path)
    try:
        pixels = torch.from_numpy(content["data"])
        labels = torch.tensor(content[label_key], dtype=torch.int64)
        images = pixels.view(torch.uint8).reshape(-1, 3, 32, 32)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: is no CIFAR file: {type(error).__name__}: {error}") from error
    return labelled(path, images, labels, num_classes)


def load_cifar10(folder: Path) -> ImageData:
    parts = [_read_cifar(folder / f"data_batch_{i}", "labels", 10) for i in range(1, 6)]
    train = MemoryImages(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    return in_memory(folder, train, _read_cifar(folder / "test_batch", "labels", 10), CIFAR10_CLASSES)


def load_cifar100(folder: Path) -> ImageData:
    meta = folder / "meta"
    names = _read_pickle(meta).get("fine_label_names")
    if not isinstance(names, list) or len(names) != 100:
        raise DataError(f"{meta}: names no 100 classes")
    train, test = (_read_cifar(folder / split, "fine_labels", 100) for split in ("train", "test"))
    return in_memory(folder, train, test, tuple(names))
