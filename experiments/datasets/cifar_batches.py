"""Reader of the Python batches of CIFAR-10."""

from pathlib import Path
from typing import Any

import numpy as np

from attribution.images import Images
from experiments.datasets.downloads import CIFAR10_FOLDER, download_cifar10, remedy
from experiments.datasets.errors import DataError
from experiments.datasets.plain_pickle import PlainPickleError, load_dict

TRAINING = tuple(f"data_batch_{k}" for k in range(1, 6))
TEST = "test_batch"
_SHAPE = (3, 32, 32)


def cifar10(root: Path, download: bool = False) -> tuple[Images, Images]:
    """Read training and test images, ``[N, 3, 32, 32]`` uint8, from ``root/cifar-10-batches-py``.

    Training images are those of batches 1 to 5 in order. Ids are positions. Batches may hold any number of images.
    ``download=True`` downloads the files if there are none.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = root / CIFAR10_FOLDER
    if download and not any((folder / name).exists() for name in (*TRAINING, TEST)):
        download_cifar10(root)
    if missing := [name for name in (*TRAINING, TEST) if not (folder / name).is_file()]:
        raise DataError(f"there is no {', '.join(missing)} in {folder}: {remedy('cifar10', root)}")
    return _images([folder / name for name in TRAINING]), _images([folder / TEST])


def _images(paths: list[Path]) -> Images:
    batches = [read_batch(path) for path in paths]
    pixels, label = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Images(pixels, np.arange(len(pixels)), label)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the pixels ``[N, 3, 32, 32]`` uint8 and labels ``[N]`` int64 of one batch file.

    Raises:
        DataError: the file is not such a batch, is truncated, or contains objects other than arrays of numbers and plain values.
    """
    again = "delete it and download CIFAR-10 (python version) again"
    try:
        content = load_dict(path.read_bytes())
    except (OSError, PlainPickleError) as error:
        raise DataError(f"{path} cannot be read as a CIFAR batch ({error}): {again}") from error
    # Files rewritten by Python 3 programs may have bytes as keys.
    data, labels = (content.get(key, content.get(key.encode())) for key in ("data", "labels"))
    columns = int(np.prod(_SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != columns:
        raise DataError(f"{path} is not a CIFAR batch: its 'data' must be bytes in {columns} columns; {again}")
    label = _whole_numbers(labels)
    if label is None or label.shape != (len(data),):
        raise DataError(f"{path} is not a CIFAR batch: its 'labels' must be {len(data)} integers, one for each image; {again}")
    return data.reshape(-1, *_SHAPE), label


def _whole_numbers(values: Any) -> np.ndarray | None:
    """The values as int64, or None if they are no whole numbers of this range."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        values = values.ravel().tolist() if values.ndim == 1 else None
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 2**63 for value in values):
        return None
    return np.array(values, np.int64)
