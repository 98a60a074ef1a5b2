"""Finds out what kind of data a path holds, and loads it: :func:`load`; one module a format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from . import data_cifar, data_folder, data_idx, data_npz
from .images import DataError, ImageData, evenly_spaced

SHIPPED = {"fashion-mnist-subset": Path(__file__).parent / "fashion_mnist_subset"}
DOWNLOADS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}
FILES_DEFAULT_SIZE = 299


def _reader(path: Path) -> Callable[[], ImageData] | None:
    """What reads `path` if it is one of the known layouts held in memory."""
    if path.is_file():
        return lambda: data_npz.load(path)
    for folder in (path / "cifar-10-batches-py", path):
        if (folder / "data_batch_1").is_file():
            return lambda: data_cifar.load_cifar10(folder)
    for folder in (path / "cifar-100-python", path):
        if (folder / "meta").is_file() and (folder / "train").is_file():
            return lambda: data_cifar.load_cifar100(folder)
    idx_folder = data_idx.find_folder(path)
    if idx_folder is not None:
        return lambda: data_idx.load(idx_folder)
    return None


def download(name: str, path: str | os.PathLike[str]) -> None:
    """Downloads ``'cifar10'``, ``'cifar100'`` or ``'fashion-mnist'`` into `path` through torchvision.

    Files that are there already and whole are left alone.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"download must be one of {', '.join(map(repr, DOWNLOADS))}, got {name!r}")
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError("downloading needs the package torchvision (extra 'models')") from error
    getattr(datasets, DOWNLOADS[name])(os.fspath(path), download=True)


def load(
    name_or_path: str | os.PathLike[str],
    image_size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> ImageData:
    """Loads a data set for classification.

    Args:
        name_or_path: ``'fashion-mnist-subset'`` (shipped with this package); or a folder that torchvision
            made for CIFAR-10, CIFAR-100 or Fashion-MNIST; or a folder of Fashion-MNIST's IDX files, gzipped
            or not; or an ``.npz`` with arrays ``{train,test}_{bytes,len,label}`` (concatenated JPEGs, the
            length and the label of each); or a folder of images by class: ``train/CLASS/…`` and
            ``val/CLASS/…``, or just ``CLASS/…``, of which every tenth file then validates.
        image_size: for a folder of images: scale the shorter side to this (299 by default) and crop the
            centre. Data sets held in memory keep their size; training scales batch by batch.
        train_limit, test_limit: use only so many images, evenly spaced through the set.

    Returns:
        An :class:`~sepconv.models.images.ImageData`.

    Raises:
        DataError: nothing usable there, or a broken or truncated file, which the message names.

    >>> from sepconv.models import data
    >>> shipped = data.load('fashion-mnist-subset')
    >>> len(shipped.train), len(shipped.test), shipped.channels, shipped.image_size
    (4000, 1000, 1, 28)
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    path = SHIPPED.get(os.fspath(name_or_path), Path(name_or_path))
    if not path.exists():
        names = ", ".join(map(repr, SHIPPED))
        raise DataError(f"{path}: no such file or folder, and none of the names {names}")
    reader = _reader(path)
    data = reader() if reader is not None else data_folder.load(path, image_size or FILES_DEFAULT_SIZE)
    return ImageData(
        evenly_spaced(data.train, train_limit),
        evenly_spaced(data.test, test_limit),
        data.classes,
        data.channels,
        data.image_size,
    )
