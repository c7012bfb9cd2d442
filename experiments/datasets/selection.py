"""Selection of images: a random selection with the same number from each class, or the positions listed in an index file."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from attribution.images import Images, philox
from experiments.datasets.errors import DataError

SHARED = ("attribution.images.philox",)


def random_order(seed: int, role: str, ids: np.ndarray) -> np.ndarray:
    """Return the positions of ``ids [N]`` in a random order, ``[N]``.

    The relative order of two ids is a function of (seed, role) and these ids only, so a subset of the ids keeps its order.
    """
    ids = np.asarray(ids, dtype=np.int64)
    tensor = torch.from_numpy(ids)
    zero = torch.zeros_like(tensor)
    high, low, *_ = philox.philox(*philox.key(seed, "choice", role), (tensor & 0xFFFFFFFF, tensor >> 32, zero, zero))
    return np.lexsort((ids, low.numpy(), high.numpy()))


def select_random(pool: Images, setting: str, n: int | None, classes: Sequence[int] | None = None, seed: int = 0) -> Images:
    """Select ``n`` images of the ``classes`` (None: all) at random, the same number from each class, in the order of the pool.

    If the number of classes does not divide ``n``, the first classes get one image more. ``n=None`` selects all images of the
    classes. ``setting`` is the name of ``n`` in messages; selections for different settings are independent.

    Raises:
        DataError: there are fewer images than requested, or none of a class.
    """
    if n is None and classes is None:
        return pool
    present = np.unique(pool.label)
    classes = sorted(set(present.tolist() if classes is None else classes))
    if absent := [c for c in classes if c not in present]:
        raise DataError(
            f"data.classes={absent}: the files have no images of these classes for {setting}; choose from {present.tolist()}"
        )
    if n is None:
        return pool.take(np.flatnonzero(np.isin(pool.label, classes)))
    if n < 1:
        raise DataError(f"{setting}={n}: must be at least 1 (null takes all)")
    rows = []
    for position, c in enumerate(classes):
        members = np.flatnonzero(pool.label == c)
        share = n // len(classes) + (position < n % len(classes))
        if share > len(members):
            most = len(classes) * min(int((pool.label == c).sum()) for c in classes)
            raise DataError(
                f"{setting}={n} takes {share} images of class {c}, but there are {len(members)}: set {setting} <= {most}, "
                "or null for all"
            )
        rows.append(members[random_order(seed, setting, pool.index[members])[:share]])
    return pool.take(np.sort(np.concatenate(rows)))


def select_listed(
    pool: Images, setting: str, n: int | None, path: str | Path, key: str, classes: Sequence[int] | None = None
) -> Images:
    """Select the images at the positions in the array ``key`` of the npz file ``path``, in this order; the first ``n`` if given.

    Raises:
        DataError: the file is missing or damaged or lacks the key, positions are out of range or repeated, or an image is
            not of ``classes`` (the positions then belong to another order of the data).
    """
    rows = _positions(Path(path).expanduser(), key)
    if rows.min() < 0 or rows.max() >= len(pool) or len(np.unique(rows)) < len(rows):
        raise DataError(f"data.index_file: {key} in {path} must list distinct positions in 0..{len(pool) - 1}")
    if classes is not None and (others := sorted(set(pool.label[rows].tolist()) - set(classes))):
        raise DataError(
            f"data.index_file: {key} in {path} lists images of classes {others}, but data.classes={list(classes)}: "
            "add these to data.classes, or use positions for this order of the images (batches 1 to 5)"
        )
    if n is not None and not 1 <= n <= len(rows):
        raise DataError(f"{setting}={n}, but {key} in {path} lists {len(rows)} images: set {setting} <= {len(rows)}, or null")
    return pool.take(rows[:n])


def _positions(path: Path, key: str) -> np.ndarray:
    remedy = "set data.index_file to an npz file of positions, or to null for a random selection"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if key not in file:
                raise DataError(f"data.index_file: {path} has no array {key!r}; use one of its keys {sorted(file)}")
            rows = file[key]
    except FileNotFoundError:
        raise DataError(f"data.index_file: there is no {path}: {remedy}") from None
    except DataError:
        raise
    except Exception as error:  # a damaged archive can raise any error
        raise DataError(f"data.index_file: {path} is not a readable npz file: {remedy}") from error
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise DataError(f"data.index_file: {key} in {path} must be a list of integers: {remedy}")
    return rows.astype(np.int64)
