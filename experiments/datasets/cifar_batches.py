"""Reader of the Python batches of CIFAR-10. A pickle can run any code, so the reader allows only arrays and plain values."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attribution.images import Images
from experiments.datasets.downloads import CIFAR10_FOLDER, download_cifar10, remedy
from experiments.datasets.errors import DataError

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
        DataError: the file is not such a batch, is truncated, or contains objects other than arrays and plain values.
    """
    again = "delete it and download CIFAR-10 (python version) again"
    try:
        # The original files are pickles of Python 2; Python 3 reads their arrays with latin1.
        content = _Restricted(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise any error
        raise DataError(f"{path} cannot be read as a CIFAR batch ({type(error).__name__}: {error}): {again}") from error
    content = content if isinstance(content, dict) else {}
    # Files rewritten by Python 3 programs may have bytes as keys.
    data, labels = (content.get(key, content.get(key.encode())) for key in ("data", "labels"))
    columns = int(np.prod(_SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != columns:
        raise DataError(f"{path} is not a CIFAR batch: its 'data' must be bytes in {columns} columns; {again}")
    try:
        label = np.asarray(labels)
    except ValueError:
        label = np.empty(0, dtype=object)
    if label.dtype.kind not in "iu" or label.shape != (len(data),):
        raise DataError(f"{path} is not a CIFAR batch: its 'labels' must be {len(data)} integers, one for each image; {again}")
    return data.reshape(-1, *_SHAPE), label.astype(np.int64)


def _latin1(text: str, encoding: str) -> bytes:
    """Encode as ``_codecs.encode`` does, for latin1 only."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _constructors() -> dict[tuple[str, str], Callable[..., Any]]:
    """Map the names by which numpy 1 and 2 rebuild pickled arrays to the functions of the installed numpy."""
    array = np.empty(0)
    # In pickle protocols 0 to 2, Python 3 writes bytes with _codecs.encode.
    constructors: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        constructors[f"{core}.multiarray", "_reconstruct"] = array.__reduce__()[0]
        constructors[f"{core}.multiarray", "scalar"] = np.int64(0).__reduce__()[0]
        constructors[f"{core}.numeric", "_frombuffer"] = array.__reduce_ex__(5)[0]
    return constructors


class _Restricted(pickle.Unpickler):
    """An unpickler that refuses everything but the constructors of arrays."""

    _allowed = _constructors()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it uses {module}.{name}, which no CIFAR batch needs")
        return self._allowed[module, name]
