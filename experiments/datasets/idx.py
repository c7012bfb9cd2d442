"""Reader of the idx files of MNIST, compressed or not, in the folders where common loaders store them."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from attribution.images import Images
from experiments.datasets.downloads import download_mnist, remedy
from experiments.datasets.errors import DataError

_PARTS = {"train": "train", "test": "t10k"}


def mnist(root: Path, download: bool = False) -> tuple[Images, Images]:
    """Read training and test images, ``[N, 1, H, W]`` uint8, from ``root/MNIST/raw`` or ``root``; ids are positions.

    ``download=True`` downloads the files if there are none.

    Raises:
        DataError: a file is missing or damaged, or the numbers of images and labels differ.
    """
    if download and not any(_candidates(root, f"{part}-labels-idx1-ubyte") for part in _PARTS.values()):
        download_mnist(root)
    train, test = (_read(root, part) for part in _PARTS.values())
    return train, test


def _read(root: Path, part: str) -> Images:
    images_path, labels_path = _find(root, f"{part}-images-idx3-ubyte"), _find(root, f"{part}-labels-idx1-ubyte")
    pixels, label = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(pixels) != len(label):
        raise DataError(f"{images_path} holds {len(pixels)} images, {labels_path} {len(label)} labels: {remedy('mnist', root)}")
    return Images(pixels[:, None], np.arange(len(pixels)), label.astype(np.int64))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of bytes with this number of ``dimensions``, as uint8.

    The format: two zero bytes, the type (8 = unsigned byte), the number of dimensions, the size of each dimension as a big-endian
    32-bit integer, then the values.

    Raises:
        DataError: the file has another format or is truncated.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it and download it again") from error
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path} is not an idx file of bytes in {dimensions} dimensions: delete it and download it again")
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4).tolist()
    expected = math.prod(shape)
    if len(raw) - start != expected:
        raise DataError(
            f"{path} is damaged: it has {len(raw) - start} values instead of {expected}; delete it and download it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _candidates(root: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}{end}" for folder in (root / "MNIST" / "raw", root) for end in ("", ".gz")]
    return [path for path in paths if path.is_file()]


def _find(root: Path, name: str) -> Path:
    if paths := _candidates(root, name):
        return paths[0]
    raise DataError(f"there is no {name} or {name}.gz in {root / 'MNIST' / 'raw'} or {root}: {remedy('mnist', root)}")
