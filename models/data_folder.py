"""A folder of image files by class."""

from __future__ import annotations

from pathlib import Path

import torch

from .images import DataError, ImageData, ImageFiles

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("val", "valid", "validation", "test")
# Where a folder has no split of its own, every tenth file of a class validates.
HOLD_OUT_EVERY = 10


def _subfolder(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _class_files(path: Path) -> dict[str, list[Path]]:
    files = {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    return {name: found for name, found in files.items() if found}


def _image_files(files: dict[str, list[Path]], classes: tuple[str, ...], size: int) -> ImageFiles:
    labels = [label for label, name in enumerate(classes) for _ in files[name]]
    return ImageFiles([file for name in classes for file in files[name]], torch.tensor(labels), size)


def load(path: Path, size: int) -> ImageData:
    """``train/CLASS/…`` and ``val/CLASS/…``, or ``CLASS/…`` alone, whose files are split here."""
    train_folder, test_folder = _subfolder(path, TRAIN_FOLDERS), _subfolder(path, TEST_FOLDERS)
    if train_folder and test_folder:
        train, test = _class_files(train_folder), _class_files(test_folder)
        if train.keys() != test.keys():
            odd = sorted(train.keys() ^ test.keys())
            raise DataError(
                f"{path}: {train_folder.name} and {test_folder.name} differ in classes: {odd[:5]}"
            )
    else:
        files = _class_files(path)
        single = [name for name, found in files.items() if len(found) < 2]
        if single:
            raise DataError(f"{path / single[0]}: needs at least 2 images, to train and to validate")
        test = {name: found[::HOLD_OUT_EVERY] for name, found in files.items()}
        train = {name: [f for i, f in enumerate(files[name]) if i % HOLD_OUT_EVERY] for name in files}
    if len(train) < 2:
        raise DataError(f"{path}: expected a folder of images for each of at least 2 classes")
    classes = tuple(sorted(train))
    return ImageData(
        train=_image_files(train, classes, size),
        test=_image_files(test, classes, size),
        classes=classes,
        channels=3,
        image_size=size,
    )
