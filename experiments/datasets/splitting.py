"""Which of the images of one's own are training images, and which are validation images."""

from pathlib import Path

import numpy as np

from experiments.datasets.errors import DataError
from experiments.datasets.image_files import natural
from experiments.datasets.selection import random_order

SHARED = ("experiments.datasets.selection",)

VALIDATION_SHARE = 10
"""One in so many images is held out if nothing says how many."""
NO_LABEL = -1


def first(count: int, n: int | None, seed: int, setting: str) -> np.ndarray:
    """Positions of ``n`` random ones of ``count`` images (None: all), ascending. ``setting`` is the name of ``n`` in messages.

    Raises:
        DataError: there are fewer images.
    """
    if n is not None and not 1 <= n <= count:
        raise DataError(f"data.{setting}={n}: must be 1 to {count}, the number of images there are, or null for all")
    return np.sort(random_order(seed, "folder", np.arange(count))[:n])


def ends(count: int, n_train: int | None, n_validation: int | None, seed: int, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of training images, at the beginning of a random order of ``count`` images, and of validation images, at its end.

    By default a tenth of the images are for validation and the others for training. ``place`` is where the images are.

    Raises:
        DataError: there are fewer images than both need together.
    """
    held_out = max(1, count // VALIDATION_SHARE) if n_validation is None else n_validation
    n = count - held_out if n_train is None else n_train
    if min(n, held_out) < 1 or n + held_out > count:
        raise DataError(
            f"data.n_train={n} and data.n_validation={held_out} of the {count} images in {place}: both must be at least 1, and "
            f"together at most {count}"
        )
    order = random_order(seed, "folder", np.arange(count))
    return np.sort(order[:n]), np.sort(order[-held_out:])


def numbered(kinds: list[str | None]) -> np.ndarray:
    """The number of each class in the natural order of their names, from 0; NO_LABEL for None."""
    ordered = sorted(
        {kind for kind in kinds if kind is not None}, key=lambda kind: (natural(Path(kind if Path(kind).name else "x")), kind)
    )
    number = {None: NO_LABEL} | {kind: i for i, kind in enumerate(ordered)}
    return np.array([number[kind] for kind in kinds], np.int64)
