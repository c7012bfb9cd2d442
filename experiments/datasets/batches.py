"""Reads CIFAR-10's Python batches. They are pickles, which can run anything: this reader builds arrays and plain values only."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attribution.images import Images
from experiments.datasets.downloads import CIFAR10_FOLDER, download_cifar10, mend
from experiments.datasets.errors import DataError

TRAINING = tuple(f"data_batch_{k}" for k in range(1, 6))
TEST = "test_batch"
_SHAPE = (3, 32, 32)


def cifar10(root: Path, download: bool = False) -> tuple[Images, Images]:
    """Training (batches 1 to 5 in order) and test images, ``[N, 3, 32, 32]`` uint8, from ``root/cifar-10-batches-py``.

    Ids are positions. Batches may hold any number of images. A batch file is trusted with nothing but its numbers.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = root / CIFAR10_FOLDER
    if download and not any((folder / name).exists() for name in (*TRAINING, TEST)):
        download_cifar10(root)
    if missing := [name for name in (*TRAINING, TEST) if not (folder / name).is_file()]:
        raise DataError(f"there is no {', '.join(missing)} in {folder}: {mend('cifar10', root)}")
    return _images([folder / name for name in TRAINING]), _images([folder / TEST])


def _images(paths: list[Path]) -> Images:
    batches = [read_batch(path) for path in paths]
    pixels, label = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Images(pixels, np.arange(len(pixels)), label)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``[N, 3, 32, 32]`` uint8 and labels ``[N]`` int64 of one batch file.

    Raises:
        DataError: the file is no such batch, is cut short, or wants to run code.
    """
    again = "delete it and get CIFAR-10 (python version) again"
    try:
        # latin1 is how Python 3 reads the arrays in Python 2's pickles, which the original files are.
        content = _Restricted(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise DataError(f"{path} cannot be read as a CIFAR batch ({type(error).__name__}: {error}): {again}") from error
    content = content if isinstance(content, dict) else {}
    # Files rewritten by Python 3 programs may have bytes for keys.
    data, labels = (content.get(key, content.get(key.encode())) for key in ("data", "labels"))
    columns = int(np.prod(_SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != columns:
        raise DataError(f"{path} is no CIFAR batch: its 'data' must be bytes in {columns} columns; {again}")
    try:
        label = np.asarray(labels)
    except ValueError:
        label = np.empty(0, dtype=object)
    if label.dtype.kind not in "iu" or label.shape != (len(data),):
        raise DataError(f"{path} is no CIFAR batch: its 'labels' must be {len(data)} integers, one for each image; {again}")
    return data.reshape(-1, *_SHAPE), label.astype(np.int64)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _constructors() -> dict[tuple[str, str], Callable[..., Any]]:
    """What pickled arrays are rebuilt with, by its names in numpy 1 and 2; asked of numpy, where the functions move."""
    array = np.empty(0)
    # Python 3 writes bytes by _codecs.encode in the protocols before it.
    named: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        named[f"{core}.multiarray", "_reconstruct"] = array.__reduce__()[0]
        named[f"{core}.multiarray", "scalar"] = np.int64(0).__reduce__()[0]
        named[f"{core}.numeric", "_frombuffer"] = array.__reduce_ex__(5)[0]
    return named


class _Restricted(pickle.Unpickler):
    _allowed = _constructors()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return self._allowed[module, name]
