"""A data set as JPEG bytes in one ``.npz``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .data_cifar import CIFAR10_CLASSES
from .images import DataError, ImageData, MemoryImages, decode_image, imported_numpy, in_memory, labelled

if TYPE_CHECKING:
    import numpy as np


def load(path: Path) -> ImageData:
    """Arrays {train,test}_{bytes,len,label}: JPEGs one after the other, length of each, label of each."""
    numpy = imported_numpy()
    names = [f"{split}_{part}" for split in ("train", "test") for part in ("bytes", "len", "label")]
    try:
        with numpy.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
    except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as JPEGs in an .npz: {error}") from error
    splits = {
        split: _decode_all(path, split, *(arrays[f"{split}_{part}"] for part in ("bytes", "len", "label")))
        for split in ("train", "test")
    }
    highest = int(max(images.labels.max() for images in splits.values()))
    classes = CIFAR10_CLASSES if highest < 10 else tuple(str(label) for label in range(highest + 1))
    return in_memory(path, splits["train"], splits["test"], classes)


def _decode_all(
    path: Path, split: str, content: np.ndarray, lengths: np.ndarray, labels: np.ndarray
) -> MemoryImages:
    if not content.ndim == lengths.ndim == labels.ndim == 1 or len(lengths) != len(labels):
        raise DataError(
            f"{path}: {split}_bytes, _len and _label must be flat, with as many lengths as labels"
        )
    ends = lengths.astype("int64").cumsum()
    if not len(ends) or int(ends[-1]) != len(content):
        raise DataError(f"{path}: {split}_len does not add up to the {len(content)} bytes of {split}_bytes")
    # A plain loop: threads cost more to switch than an image of this size takes to decode.
    images = [
        decode_image(content[end - length : end].tobytes(), f"{path}: {split} image {index}")
        for index, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True))
    ]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(f"{path}: {split} images differ in size: {sorted(shapes)[:2]}")
    return labelled(path, torch.stack(images), torch.from_numpy(labels.astype("int64")))
