"""The two kinds of image sets: whole in memory, and files decoded when they are read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

Batch = tuple[torch.Tensor, torch.Tensor]


class DataError(ValueError):
    """A data set is missing, broken or truncated; the message names the file."""


def imported_numpy() -> Any:
    """NumPy, which torch alone does not bring."""
    try:
        import numpy
    except ImportError as error:
        raise ImportError("reading this data set needs the package numpy (extra 'models')") from error
    return numpy


def decode_image(content: bytes, origin: str) -> torch.Tensor:
    """Decodes a JPEG, PNG, … to uint8 RGB of shape (3, H, W); raises :class:`DataError` naming `origin`."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(f"{origin}: decoding it needs the package pillow (extra 'models')") from error
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except UnidentifiedImageError as error:
        raise DataError(f"{origin}: cannot be decoded: it is no image of a known format") from error
    except Exception as error:  # Pillow raises whatever the parser of the format does
        raise DataError(f"{origin}: cannot be decoded: {error}") from error
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def scale_and_crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """Scales a uint8 image (C, H, W) so that its shorter side is `size`, and cuts out the centre square."""
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    scaled = (max(size, round(height * scale)), max(size, round(width * scale)))
    if scaled != (height, width):
        resized = F.interpolate(image[None].float(), scaled, mode="bilinear", antialias=True)
        image = resized[0].round().clamp(0, 255).to(torch.uint8)
    top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return image[:, top : top + size, left : left + size].contiguous()


class MemoryImages(Dataset):
    """Images of one size as one uint8 tensor (N, C, H, W), labels as int64 (N,)."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def take(self, indices: torch.Tensor) -> MemoryImages:
        """The images at `indices`, in that order."""
        return MemoryImages(self.images[indices], self.labels[indices])


class ImageFiles(Dataset):
    """Image files, decoded to uint8 (3, size, size) when asked for."""

    def __init__(self, paths: list[Path], labels: torch.Tensor, size: int) -> None:
        self.paths = paths
        self.labels = labels
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Batch:
        path = self.paths[index]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        return scale_and_crop(decode_image(content, os.fspath(path)), self.size), self.labels[index]

    def take(self, indices: torch.Tensor) -> ImageFiles:
        """The files at `indices`, in that order."""
        return ImageFiles([self.paths[i] for i in indices.tolist()], self.labels[indices], self.size)


Images = MemoryImages | ImageFiles


@dataclass(frozen=True)
class ImageData:
    """A data set for classification.

    Attributes:
        train, test: the two splits; every item is (uint8 image (C, H, W), int64 label).
        classes: their names, in the order of the labels.
        channels: of every image: 1 (grey) or 3 (RGB).
        image_size: height and width of every image.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    channels: int
    image_size: int


def labelled(
    path: Path, images: torch.Tensor, labels: torch.Tensor, num_classes: int | None = None
) -> MemoryImages:
    """Joins images and labels that were read from `path`, once they are checked against each other."""
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(labels)} labels for {len(images)} images")
    if not len(labels):
        raise DataError(f"{path}: holds no images")
    highest = int(labels.max())
    if int(labels.min()) < 0 or (num_classes is not None and highest >= num_classes):
        raise DataError(f"{path}: labels must lie in 0..{(num_classes or highest + 1) - 1}, got {highest}")
    return MemoryImages(images, labels)


def in_memory(path: Path, train: MemoryImages, test: MemoryImages, classes: tuple[str, ...]) -> ImageData:
    """The data set of two splits that were read from `path`, once they are checked against each other."""
    channels, height, width = train.images.shape[1:]
    if test.images.shape[1:] != train.images.shape[1:] or height != width:
        shapes = tuple(train.images.shape[1:]), tuple(test.images.shape[1:])
        raise DataError(f"{path}: expected square images of one size, got {shapes[0]} and {shapes[1]}")
    return ImageData(train, test, classes, channels, height)


def evenly_spaced(images: Images, count: int | None) -> Images:
    """At most `count` of `images`, evenly spaced, so that a set sorted by class keeps its classes."""
    if count is None or count >= len(images):
        return images
    if count < 1:
        raise ValueError(f"the limit on images must be at least 1, got {count}")
    return images.take(torch.arange(count) * len(images) // count)


def batches(images: Images, indices: torch.Tensor, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Yields (uint8 (n, C, H, W), int64 (n,)) for `indices` in order; the last batch may be smaller.

    `workers` processes decode image files ahead; images in memory need none.
    """
    chunks = indices.split(batch_size) if len(indices) else ()
    if isinstance(images, MemoryImages):
        for chunk in chunks:
            yield images.images[chunk], images.labels[chunk]
        return
    # The generator of its own keeps the loader from drawing on the global one, whose state is checkpointed.
    loader = DataLoader(
        images,
        batch_sampler=[chunk.tolist() for chunk in chunks],
        num_workers=workers,
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except DataError as error:
        # From a worker it comes with a traceback for its message, whose last line is what we said.
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None
