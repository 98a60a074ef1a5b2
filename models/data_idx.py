"""Fashion-MNIST as IDX files: big-endian header, then bytes; gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch

from .images import DataError, ImageData, in_memory, labelled

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def _read_idx(path: Path, dimensions: int) -> torch.Tensor:
    """Reads an IDX file of bytes, gzipped or not: 0, 0, type 8, dimensions; sizes big-endian; content."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: is no IDX file of bytes in {dimensions} dimension(s)")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(f"{path}: holds {len(content) - start} bytes where {shape} wants {math.prod(shape)}")
    if not math.prod(shape):
        raise DataError(f"{path}: holds no images")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)


def _idx_file(folder: Path, stem: str) -> Path | None:
    candidates = (folder / f"{stem}{suffix}" for suffix in (".gz", ""))
    return next((path for path in candidates if path.is_file()), None)


def find_folder(path: Path) -> Path | None:
    folders = (path, path / "FashionMNIST" / "raw", path / "raw")
    return next((folder for folder in folders if _idx_file(folder, "train-images-idx3-ubyte")), None)


def load(folder: Path) -> ImageData:
    splits = []
    for split in ("train", "t10k"):
        tensors = []
        for stem, dimensions in ((f"{split}-images-idx3-ubyte", 3), (f"{split}-labels-idx1-ubyte", 1)):
            path = _idx_file(folder, stem)
            if path is None:
                raise DataError(f"{folder / stem}: is missing")
            tensors.append(_read_idx(path, dimensions))
        images, labels = tensors
        splits.append(labelled(path, images[:, None], labels.long(), len(CLASSES)))
    return in_memory(folder, *splits, CLASSES)
