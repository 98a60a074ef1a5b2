"""Makes the files beside this script: the first images of every class of Fashion-MNIST, in their order.

    python make_subset.py SOURCE [DESTINATION]

SOURCE is a folder with the four IDX files of Fashion-MNIST, such as /usr/share/datasets/fashion-mnist of
Debian's package dataset-fashion-mnist. The same source gives the same bytes (up to the zlib that packs them).
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np

# 400 training images a class keep the largest file below 2 MB.
IMAGES_A_CLASS = {"train": 400, "t10k": 100}


def read_idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))


def main() -> None:
    source = Path(sys.argv[1])
    destination = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    for split, count in IMAGES_A_CLASS.items():
        labels = read_idx(source / f"{split}-labels-idx1-ubyte.gz")
        images = read_idx(source / f"{split}-images-idx3-ubyte.gz")
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))
        write_idx(destination / f"{split}-labels-idx1-ubyte.gz", labels[chosen])
        write_idx(destination / f"{split}-images-idx3-ubyte.gz", images[chosen])


if __name__ == "__main__":
    main()
