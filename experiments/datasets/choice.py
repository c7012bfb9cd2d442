"""Which images of a pool are used: a seeded choice, even over the classes, or the positions listed in an index file."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from attribution.images import Images, philox
from experiments.datasets.errors import DataError


def shuffled(seed: int, role: str, ids: np.ndarray) -> np.ndarray:
    """The positions of ``ids [N]`` in random order ``[N]``.

    Which of two ids comes first is a function of (seed, role) and the two: the order of some ids is their order among more.
    """
    ids = np.asarray(ids, dtype=np.int64)
    tensor = torch.from_numpy(ids)
    zero = torch.zeros_like(tensor)
    high, low, *_ = philox.philox(*philox.key(seed, "choice", role), (tensor & 0xFFFFFFFF, tensor >> 32, zero, zero))
    return np.lexsort((ids, low.numpy(), high.numpy()))


def chosen(pool: Images, setting: str, n: int | None, classes: Sequence[int] | None = None, seed: int = 0) -> Images:
    """``n`` images of the ``classes`` (None: all), as many of each class as of the others, in the order of the pool.

    If the classes do not divide ``n``, the first ones give one more. ``n=None`` takes all that there are. ``setting`` is what
    messages call ``n``, and the choices for two settings are independent.

    Raises:
        DataError: fewer images than asked for, or none of a class.
    """
    if n is None and classes is None:
        return pool
    present = np.unique(pool.label)
    classes = sorted(set(present.tolist() if classes is None else classes))
    if absent := [c for c in classes if c not in present]:
        raise DataError(f"data.classes={absent}: the files hold no such images for {setting}; choose from {present.tolist()}")
    if n is None:
        return pool.take(np.flatnonzero(np.isin(pool.label, classes)))
    if n < 1:
        raise DataError(f"{setting}={n}: must be at least 1 (null takes all)")
    rows = []
    for position, c in enumerate(classes):
        of_class = np.flatnonzero(pool.label == c)
        share = n // len(classes) + (position < n % len(classes))
        if share > len(of_class):
            most = len(classes) * min(int((pool.label == c).sum()) for c in classes)
            raise DataError(
                f"{setting}={n} takes {share} images of class {c}, but there are {len(of_class)}: set {setting} <= {most}, "
                "or null for all"
            )
        rows.append(of_class[shuffled(seed, setting, pool.index[of_class])[:share]])
    return pool.take(np.sort(np.concatenate(rows)))


def listed(pool: Images, setting: str, n: int | None, path: str | Path, key: str, classes: Sequence[int] | None = None) -> Images:
    """The images at the positions that the array ``key`` of the npz file ``path`` lists, in its order; the first ``n`` if given.

    Raises:
        DataError: the file is missing or damaged, lacks the key, or lists what is no distinct position of an image of
            ``classes`` (the indices are then into another copy of the data).
    """
    rows = _positions(Path(path).expanduser(), key)
    if rows.min() < 0 or rows.max() >= len(pool) or len(np.unique(rows)) < len(rows):
        raise DataError(f"data.index_file: {key} in {path} must list distinct positions in 0..{len(pool) - 1}")
    if classes is not None and (others := sorted(set(pool.label[rows].tolist()) - set(classes))):
        raise DataError(
            f"data.index_file: {key} in {path} lists images of classes {others}, but data.classes={list(classes)}: "
            "set data.classes to these too, or use indices made for this order of the images (batches 1 to 5)"
        )
    if n is not None and not 1 <= n <= len(rows):
        raise DataError(f"{setting}={n}, but {key} in {path} lists {len(rows)} images: set {setting} <= {len(rows)}, or null")
    return pool.take(rows[:n])


def _positions(path: Path, key: str) -> np.ndarray:
    mend = "set data.index_file to an npz file of positions, or null for a seeded choice"
    try:
        with np.load(path, allow_pickle=False) as file:
            if key not in file:
                raise DataError(f"data.index_file: {path} has no array {key!r} but {sorted(file)}: name one of these as the key")
            rows = file[key]
    except FileNotFoundError:
        raise DataError(f"data.index_file: there is no {path}: {mend}") from None
    except DataError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"data.index_file: {path} is no readable npz file: {mend}") from error
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise DataError(f"data.index_file: {key} in {path} must be a list of integers: {mend}")
    return rows.astype(np.int64)
