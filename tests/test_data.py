"""Data sets are read as they are published, and a broken file is named."""

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sepconv.models import data
from sepconv.models.images import DataError, batches, decode_image, evenly_spaced, scale_and_crop

SUBSET = data.SHIPPED["fashion-mnist-subset"]
PILLOW_REASON = "pillow is not installed: it makes and decodes the images"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray, image_format: str = "JPEG") -> bytes:
    image = pytest.importorskip("PIL.Image", reason=PILLOW_REASON)
    buffer = io.BytesIO()
    image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


# --- the shipped subset ------------------------------------------------------------------------------------


def test_shipped_subset_has_as_many_images_of_each_class():
    shipped = data.load("fashion-mnist-subset")
    assert torch.equal(shipped.train.labels.bincount(), torch.full((10,), 400))
    assert torch.equal(shipped.test.labels.bincount(), torch.full((10,), 100))
    assert (shipped.channels, shipped.image_size, len(shipped.classes)) == (1, 28, 10)
    image, label = shipped.train[0]
    assert image.dtype == torch.uint8
    assert image.shape == (1, 28, 28)
    assert label.dtype == torch.int64


def test_shipped_files_are_those_of_the_readme_and_small():
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (SUBSET / "README.md").read_text(), re.MULTILINE)
    assert {name for _, name in listed} == {path.name for path in SUBSET.glob("*.gz")}
    for digest, name in listed:
        content = (SUBSET / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert len(content) < 2_000_000
    assert "MIT License" in (SUBSET / "LICENSE").read_text()


def test_shipped_images_are_the_first_of_each_class():
    source = Path("/usr/share/datasets/fashion-mnist")
    if not source.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed: nothing to compare with")
    full, shipped = data.load(source), data.load("fashion-mnist-subset")
    for whole, part, count in ((full.train, shipped.train, 400), (full.test, shipped.test, 100)):
        firsts = torch.cat([(whole.labels == c).nonzero().flatten()[:count] for c in range(10)]).sort().values
        assert torch.equal(whole.images[firsts], part.images)
        assert torch.equal(whole.labels[firsts], part.labels)


# --- IDX ---------------------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path):
    for split, count in (("train", 30), ("t10k", 20)):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", noise(count, 28, 28))
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_fashion_mnist_folders(suffix, inside, tmp_path):
    images = {"train": noise(30, 28, 28), "t10k": noise(20, 28, 28, seed=1)}
    for split, pixels in images.items():
        write_idx(tmp_path / inside / f"{split}-images-idx3-ubyte{suffix}", pixels)
        labels = np.arange(len(pixels), dtype=np.uint8) % 10
        write_idx(tmp_path / inside / f"{split}-labels-idx1-ubyte{suffix}", labels)
    loaded = data.load(tmp_path)
    assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(images["train"]))
    assert torch.equal(loaded.test.images[:, 0], torch.from_numpy(images["t10k"]))
    assert loaded.test.labels.tolist() == list(range(10)) * 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("<html>404</html>"),
        lambda path: path.write_bytes(path.read_bytes()[:100] + b"\0\0\0\0" + path.read_bytes()[104:]),
        lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1])),
        lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x04" + bytes(16))),
        lambda path: path.unlink(),
    ],
    ids=["truncated", "empty", "text", "flipped", "short", "dimensions", "missing"],
)
@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"])
def test_broken_idx_files_are_named(idx_folder, name, damage):
    if name.startswith("train-labels") and len((idx_folder / name).read_bytes()) < 104:
        path = idx_folder / name
        write_idx(path, noise(200) % 10)
    damage(idx_folder / name)
    with pytest.raises(DataError, match=name.removesuffix(".gz")):
        data.load(idx_folder)


def test_labels_out_of_range_and_counts_that_differ_are_named(idx_folder):
    path = idx_folder / "t10k-labels-idx1-ubyte.gz"
    write_idx(path, np.full(20, 10, dtype=np.uint8))
    with pytest.raises(DataError, match=r"t10k-labels.*0\.\.9, got 10"):
        data.load(idx_folder)
    write_idx(path, np.zeros(19, dtype=np.uint8))
    with pytest.raises(DataError, match=r"t10k-labels.*19 labels for 20 images"):
        data.load(idx_folder)


# --- CIFAR -------------------------------------------------------------------------------------------------


def python2_pickle(content: dict[str, object]) -> bytes:
    """Pickles as the published files were made, by Python 2: byte strings, and NumPy's former module."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def item(value: object) -> bytes:
        if isinstance(value, str):
            return text(value.encode())
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        if isinstance(value, np.ndarray):
            empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
            dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|")
            dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            shape = b"(" + b"".join(map(item, value.shape)) + b"t"
            return empty + b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"
        raise TypeError(type(value))

    pairs = b"".join(text(key.encode()) + item(value) for key, value in content.items())
    return b"\x80\x02}(" + pairs + b"u."


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        content = {"data": noise(20, 3072, seed=i), "labels": list(range(10)) * 2, "batch_label": name}
        (folder / name).write_bytes(python2_pickle(content))
    return tmp_path


def test_cifar10_as_published(cifar10):
    loaded = data.load(cifar10)
    assert loaded.train.images.shape == (100, 3, 32, 32)
    assert torch.equal(loaded.train.images[20:40].flatten(1), torch.from_numpy(noise(20, 3072, seed=1)))
    assert loaded.train.labels.tolist() == list(range(10)) * 10
    assert loaded.classes[9] == "truck"
    assert len(data.load(cifar10 / "cifar-10-batches-py").test) == 20


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar100_with_its_fine_labels(tmp_path, protocol):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol))
    for split, count in (("train", 300), ("test", 100)):
        labels = [i % 100 for i in range(count)]
        content = {"data": noise(count, 3072), "fine_labels": labels, "coarse_labels": [0] * count}
        (folder / split).write_bytes(pickle.dumps(content, protocol))
    loaded = data.load(tmp_path)
    assert (len(loaded.train), len(loaded.test)) == (300, 100)
    assert loaded.train.labels[101] == 1
    assert loaded.classes == tuple(names)


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        python2_pickle({"data": noise(20, 3072), "labels": [0] * 20})[:-100],
        pickle.dumps({"data": RunsCode()}),
        pickle.dumps([1, 2]),
        python2_pickle({"labels": [0] * 20}),
        python2_pickle({"data": noise(20, 3000), "labels": [0] * 20}),
        python2_pickle({"data": noise(20, 3072), "labels": [0] * 19}),
        python2_pickle({"data": noise(20, 3072), "labels": [10] * 20}),
    ],
    ids=["empty", "truncated", "unsafe", "no dict", "no data", "shape", "counts", "range"],
)
def test_broken_cifar_files_are_named(cifar10, content, monkeypatch):
    monkeypatch.chdir(cifar10)
    (cifar10 / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_3"):
        data.load(cifar10)
    assert not Path("ran").exists()


def test_missing_cifar_file_is_named(cifar10):
    (cifar10 / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match="test_batch"):
        data.load(cifar10)


# --- JPEGs in an .npz --------------------------------------------------------------------------------------


def jpeg_arrays() -> dict[str, np.ndarray]:
    arrays = {}
    for seed, split in enumerate(("train", "test")):
        jpegs = [encoded(pixels) for pixels in noise(20, 32, 32, 3, seed=seed)]
        arrays[f"{split}_bytes"] = np.frombuffer(b"".join(jpegs), np.uint8)
        arrays[f"{split}_len"] = np.array([len(jpeg) for jpeg in jpegs], np.uint16)
        arrays[f"{split}_label"] = np.arange(20, dtype=np.uint8) // 2
    return arrays


def test_npz_of_jpegs(tmp_path):
    arrays = jpeg_arrays()
    np.savez(tmp_path / "images.npz", **arrays)
    loaded = data.load(tmp_path / "images.npz")
    assert loaded.train.images.shape == (20, 3, 32, 32)
    start, end = arrays["test_len"][:4].sum(), arrays["test_len"][:5].sum()
    assert torch.equal(
        loaded.test.images[4], decode_image(arrays["test_bytes"][start:end].tobytes(), "a test image")
    )
    assert loaded.train.labels.tolist() == [i // 2 for i in range(20)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_len": np.full(20, 3, np.uint16)}, "test_len does not add up"),
        ({"train_label": np.zeros(19, np.uint8)}, "as many lengths as labels"),
        ({"train_bytes": None}, "train_bytes"),
        ({"train_len": np.array([{}])}, "cannot be read"),
    ],
)
def test_npz_with_a_wrong_array_is_named(tmp_path, change, words):
    path = tmp_path / "images.npz"
    np.savez(path, **{key: value for key, value in (jpeg_arrays() | change).items() if value is not None})
    with pytest.raises(DataError, match=rf"images\.npz.*{words}"):
        data.load(path)


def test_truncated_npz_and_broken_jpeg_are_named(tmp_path):
    path = tmp_path / "images.npz"
    arrays = jpeg_arrays()
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"images\.npz"):
        data.load(path)
    broken = arrays["train_bytes"].copy()
    broken[arrays["train_len"][0] :][: arrays["train_len"][1]] = 0
    np.savez(path, **(arrays | {"train_bytes": broken}))
    with pytest.raises(DataError, match=r"images\.npz: train image 1: cannot be decoded"):
        data.load(path)


def test_cifar10_npz_whole():
    path = os.environ.get("SEPCONV_CIFAR_NPZ")
    if path is None:
        pytest.skip("SEPCONV_CIFAR_NPZ does not name an .npz of CIFAR-10's JPEGs")
    loaded = data.load(path)
    assert torch.equal(loaded.train.labels.bincount(), torch.full((10,), 5000))
    assert torch.equal(loaded.test.labels.bincount(), torch.full((10,), 1000))
    assert loaded.train.images.shape == (50_000, 3, 32, 32)


# --- folders of images by class ----------------------------------------------------------------------------


@pytest.fixture
def image_folder(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for name, value in (("cat", 40), ("dog", 200)):
            for i in range(count):
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((20 + i, 30, 3), value, np.uint8)
                path.write_bytes(encoded(pixels, "PNG"))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_of_images_by_class(image_folder, workers):
    loaded = data.load(image_folder, image_size=16)
    assert loaded.classes == ("cat", "dog")
    assert (len(loaded.train), len(loaded.test), loaded.image_size) == (12, 6, 16)
    [(images, labels), (rest, _)] = batches(loaded.train, torch.tensor([0, 11, 5]), 2, workers)
    assert images.shape == (2, 3, 16, 16)
    assert rest.shape == (1, 3, 16, 16)
    assert labels.tolist() == [0, 1]
    assert images.float().mean((1, 2, 3)).tolist() == [40, 200]


def test_folder_of_images_is_decoded_at_299_pixels(image_folder):
    loaded = data.load(image_folder)
    assert loaded.image_size == 299
    assert loaded.test[0][0].shape == (3, 299, 299)


def test_folder_without_a_split_holds_out_every_tenth_file(image_folder):
    source = image_folder / "train"
    for i in range(6, 25):
        for name in ("cat", "dog"):
            (source / name / f"{i:02}.png").write_bytes((source / name / "0.png").read_bytes())
    loaded = data.load(source)
    assert (len(loaded.train), len(loaded.test)) == (44, 6)
    assert not set(loaded.train.paths) & set(loaded.test.paths)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_broken_image_in_a_folder_is_named(image_folder, workers, content):
    path = image_folder / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    loaded = data.load(image_folder, image_size=16)
    with pytest.raises(DataError, match=r"^/.*/train/dog/3\.png: cannot be decoded: [^\n]*$"):
        list(batches(loaded.train, torch.arange(12), 4, workers))


def test_folders_that_hold_no_data_set_are_named(tmp_path, image_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty: expected a folder of images"):
        data.load(empty)
    with pytest.raises(DataError, match=r"absent.*'fashion-mnist-subset'"):
        data.load(tmp_path / "absent")
    (image_folder / "val" / "dog").rename(image_folder / "val" / "wolf")
    with pytest.raises(DataError, match=r"differ in classes: \['dog', 'wolf'\]"):
        data.load(image_folder)


# --- images and batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P"])
def test_images_of_every_mode_become_rgb(mode):
    image = pytest.importorskip("PIL.Image", reason=PILLOW_REASON)
    buffer = io.BytesIO()
    image.new("RGB", (48, 32), (204, 204, 204)).convert(mode).save(buffer, "GIF" if mode == "P" else "JPEG")
    decoded = decode_image(buffer.getvalue(), "a grey area")
    assert decoded.shape == (3, 32, 48)
    assert int((decoded.int() - 204).abs().max()) <= 3


def test_pixels_lie_where_the_image_has_them():
    pixels = noise(9, 7, 3)
    assert torch.equal(decode_image(encoded(pixels, "PNG"), "x"), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (16, 16), (9, 31), (17, 16)])
def test_scaling_keeps_the_centre_and_the_proportions(shape):
    ramp = torch.arange(shape[1], dtype=torch.float32).expand(3, *shape) * 255 / shape[1]
    scaled = scale_and_crop(ramp.to(torch.uint8), 16)
    assert scaled.shape == (3, 16, 16)
    assert abs(float(scaled.float().mean()) - 127) < 8
    slope = float(scaled[0, 0].float().diff().mean())
    assert abs(slope - 255 / shape[1] * min(shape) / 16) < 2


def test_limits_keep_the_classes_of_a_sorted_set(cifar10):
    shipped = data.load("fashion-mnist-subset", train_limit=40, test_limit=10)
    assert (len(shipped.train), len(shipped.test)) == (40, 10)
    whole = data.load(cifar10).test
    order = whole.labels.argsort()
    assert evenly_spaced(whole.take(order), 10).labels.tolist() == list(range(10))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evenly_spaced(whole, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(image_folder, workers):
    loaded = data.load(image_folder, image_size=8)
    before = torch.get_rng_state()
    list(batches(loaded.train, torch.arange(12), 4, workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_download_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'cifar10'.*got 'imagenet'"):
        data.download("imagenet", tmp_path)


@pytest.mark.parametrize(("name", "dataset"), data.DOWNLOADS.items())
def test_download_asks_torchvision(tmp_path, monkeypatch, name, dataset):
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    asked = []
    monkeypatch.setattr(datasets, dataset, lambda root, download: asked.append((root, download)))
    data.download(name, tmp_path)
    assert asked == [(str(tmp_path), True)]
