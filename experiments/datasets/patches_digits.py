"""Patches of photographs mixed with a few handwritten zeros: CIFAR-MNIST (ReTrac §6.1) at 8 × 8 pixels, without files."""

import functools
from dataclasses import dataclass

import numpy as np

from attribution.images import Images
from experiments.datasets.errors import DataError
from experiments.datasets.selection import random_order, select_random
from experiments.datasets.source import Source, Splits

SIZE, LEVELS = 8, 16
"""Size in pixels and largest gray level of scikit-learn's digits, and therefore of the patches."""
FACTORS = (4, 6, 8)
"""Factors by which the photographs are reduced before cutting: a patch is 32, 48 or 64 pixels of the original wide."""
STRIDE = 2
"""Distance between patches, in pixels of the reduced photograph."""
CONTRAST = 4
"""The smallest range of gray levels in a patch: patches of sky and blurred background show nothing."""
HELD_OUT = (0.4, 0.6)
"""The columns of a photograph, as fractions of its width, that are reserved for validation patches."""


@dataclass(frozen=True, kw_only=True)
class PatchesDigits(Source):
    """``patches`` patches of scikit-learn's two photographs (None: all 3,910) and ``zeros`` of its digits, with 17 gray levels.

    ``validation_patches`` patches come from another part of the photographs, with no pixel in common. ``validation_zeros``
    zeros are different ones of the 178. The images are selected at random by ``seed``. Labels: 0 patch, 1 zero. Patches come first;
    the id of a patch is the number of its window, and the id of a zero is its row in the digits plus the number of windows. Needs
    no files.
    """

    NAME = "PatchesDigits"
    VERSION = 1

    channels: int = 1
    size: int = SIZE
    flips: bool = True
    levels: int = LEVELS
    patches: int | None = 1000
    zeros: int = 40
    validation_patches: int | None = 100
    validation_zeros: int = 100
    seed: int = 0

    def read(self) -> Splits:
        train, validation, first_zero = _patches()
        zeros, validation_zeros = self._zeros(first_zero)
        return Splits(
            _mixed(select_random(train, "data.patches", self.patches, seed=self.seed), zeros),
            _mixed(select_random(validation, "data.validation_patches", self.validation_patches, seed=self.seed), validation_zeros),
        )

    def _zeros(self, first_zero: int) -> tuple[Images, Images]:
        """Select zeros from the two ends of one random order: neither end depends on the number taken from the other."""
        from sklearn.datasets import load_digits

        pixels, digit = load_digits(return_X_y=True)
        rows = np.flatnonzero(np.asarray(digit) == 0)
        for setting, n in (("data.zeros", self.zeros), ("data.validation_zeros", self.validation_zeros)):
            if n < 1:
                raise DataError(f"{setting}={n}: must be at least 1")
        if self.zeros + self.validation_zeros > len(rows):
            raise DataError(
                f"data.zeros={self.zeros} and data.validation_zeros={self.validation_zeros} exceed the {len(rows)} zeros of the "
                f"digits: set data.zeros <= {len(rows)} - data.validation_zeros"
            )
        order = rows[random_order(self.seed, "zeros", rows)]
        halves = (np.sort(order[: self.zeros]), np.sort(order[-self.validation_zeros :]))
        gray = np.asarray(pixels).reshape(-1, 1, SIZE, SIZE).astype(np.uint8)
        train, validation = (Images(gray[half], first_zero + half, np.ones(len(half), np.int64), LEVELS) for half in halves)
        return train, validation


def _mixed(patches: Images, zeros: Images) -> Images:
    """Concatenate patches and zeros."""
    parts = ([getattr(images, name) for images in (patches, zeros)] for name in ("pixels", "index", "label"))
    return Images(*map(np.concatenate, parts), levels=LEVELS)


@functools.cache
def _patches() -> tuple[Images, Images, int]:
    """Return the training and validation patches, without duplicates, and the number of windows."""
    from sklearn.datasets import load_sample_images

    windows, columns = [], []
    for photograph in load_sample_images().images:
        gray = photograph @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
        for factor in FACTORS:
            pixels, left = _windows(_reduced(gray, factor))
            windows.append(np.rint(pixels * (LEVELS / 255)).astype(np.uint8))
            columns.append(np.stack([left, left + SIZE], 1) * factor / gray.shape[1])
    pixels, (left, right) = np.concatenate(windows), np.concatenate(columns).T
    spread = pixels.max((1, 2)).astype(int) - pixels.min((1, 2))
    first = np.zeros(len(pixels), bool)
    first[np.unique(pixels.reshape(len(pixels), -1), axis=0, return_index=True)[1]] = True
    usable = first & (spread >= CONTRAST)
    outside, inside = (right <= HELD_OUT[0]) | (left >= HELD_OUT[1]), (left >= HELD_OUT[0]) & (right <= HELD_OUT[1])
    splits = (np.flatnonzero(usable & part) for part in (outside, inside))
    train, validation = (Images(pixels[rows, None], rows, np.zeros(len(rows), np.int64), LEVELS) for rows in splits)
    return train, validation, len(pixels)


def _reduced(gray: np.ndarray, factor: int) -> np.ndarray:
    """Average squares of ``factor`` × ``factor`` pixels; incomplete squares at the right and at the bottom are dropped."""
    height, width = (side // factor for side in gray.shape)
    return gray[: height * factor, : width * factor].reshape(height, factor, width, factor).mean((1, 3))


def _windows(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every ``STRIDE``-th square of ``SIZE`` pixels, ``[P, SIZE, SIZE]``, and its first column, ``[P]``."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, (SIZE, SIZE))[::STRIDE, ::STRIDE]
    left = np.broadcast_to(STRIDE * np.arange(windows.shape[1]), windows.shape[:2])
    return windows.reshape(-1, SIZE, SIZE), left.reshape(-1)
