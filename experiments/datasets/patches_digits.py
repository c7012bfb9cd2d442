"""Patches of photographs with a few handwritten zeros among them: CIFAR-MNIST (Diffusion-ReTrac §6.1) at 8 × 8 pixels, embedded."""

import functools
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from attribution.images import Images
from experiments.datasets.choice import chosen, shuffled
from experiments.datasets.errors import DataError
from experiments.datasets.source import Source, Splits

SIZE, LEVELS = 8, 16
"""Of scikit-learn's digits, and so of the patches."""
FACTORS = (4, 6, 8)
"""How much smaller the photographs are before they are cut: a patch shows 32, 48 or 64 pixels of the original across."""
STRIDE = 2
"""Pixels of the smaller photograph between two patches."""
CONTRAST = 4
"""Least difference of grey levels within a patch: sky and blurred background are no images of something."""
HELD_OUT = (0.4, 0.6)
"""The columns of a photograph, as fractions of its width, from which validation patches are cut, and no training patches."""


@dataclass(frozen=True, kw_only=True)
class PatchesDigits(Source):
    """``patches`` of scikit-learn's two photographs (None: all 3,910) and ``zeros`` of its digits, both 17 grey levels.

    ``validation_patches`` show another part of the photographs, so that no pixel is seen in both; ``validation_zeros`` are other
    zeros of the 178. Chosen by the seed. Labels: 0 patch, 1 zero. Patches come first; their ids number the places where they are
    cut, a zero's id is its row in the digits beyond those. Needs no files.
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
            _mixed(chosen(train, "data.patches", self.patches, seed=self.seed), zeros),
            _mixed(chosen(validation, "data.validation_patches", self.validation_patches, seed=self.seed), validation_zeros),
        )

    def _zeros(self, first_zero: int) -> tuple[Images, Images]:
        """From the two ends of one seeded order: how many are taken from one moves nothing at the other."""
        pixels, digit = load_digits(return_X_y=True)
        rows = np.flatnonzero(np.asarray(digit) == 0)
        for setting, n in (("data.zeros", self.zeros), ("data.validation_zeros", self.validation_zeros)):
            if n < 1:
                raise DataError(f"{setting}={n}: must be at least 1")
        if self.zeros + self.validation_zeros > len(rows):
            raise DataError(
                f"data.zeros={self.zeros} and data.validation_zeros={self.validation_zeros} are more than the {len(rows)} zeros "
                f"there are: set data.zeros <= {len(rows)} - data.validation_zeros"
            )
        order = rows[shuffled(self.seed, "zeros", rows)]
        halves = (np.sort(order[: self.zeros]), np.sort(order[-self.validation_zeros :]))
        grey = np.asarray(pixels).reshape(-1, 1, SIZE, SIZE).astype(np.uint8)
        train, validation = (Images(grey[half], first_zero + half, np.ones(len(half), np.int64), LEVELS) for half in halves)
        return train, validation


def _mixed(patches: Images, zeros: Images) -> Images:
    parts = ([getattr(images, name) for images in (patches, zeros)] for name in ("pixels", "index", "label"))
    return Images(*map(np.concatenate, parts), levels=LEVELS)


@functools.cache
def _patches() -> tuple[Images, Images, int]:
    """All patches for training and all for validation, each once, and how many windows they come from."""
    windows, columns = [], []
    for photograph in load_sample_images().images:
        grey = photograph @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
        for factor in FACTORS:
            pixels, left = _windows(_smaller(grey, factor))
            windows.append(np.rint(pixels * (LEVELS / 255)).astype(np.uint8))
            columns.append(np.stack([left, left + SIZE], 1) * factor / grey.shape[1])
    pixels, (left, right) = np.concatenate(windows), np.concatenate(columns).T
    spread = pixels.max((1, 2)).astype(int) - pixels.min((1, 2))
    first = np.zeros(len(pixels), bool)
    first[np.unique(pixels.reshape(len(pixels), -1), axis=0, return_index=True)[1]] = True
    usable = first & (spread >= CONTRAST)
    outside, inside = (right <= HELD_OUT[0]) | (left >= HELD_OUT[1]), (left >= HELD_OUT[0]) & (right <= HELD_OUT[1])
    splits = (np.flatnonzero(usable & part) for part in (outside, inside))
    train, validation = (Images(pixels[rows, None], rows, np.zeros(len(rows), np.int64), LEVELS) for rows in splits)
    return train, validation, len(pixels)


def _smaller(grey: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of ``factor`` × ``factor`` pixels; what is left over at the right and below is cut off."""
    height, width = (side // factor for side in grey.shape)
    return grey[: height * factor, : width * factor].reshape(height, factor, width, factor).mean((1, 3))


def _windows(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every ``STRIDE``-th square of ``SIZE`` pixels ``[P, SIZE, SIZE]``, and the column where each begins ``[P]``."""
    found = np.lib.stride_tricks.sliding_window_view(picture, (SIZE, SIZE))[::STRIDE, ::STRIDE]
    left = np.broadcast_to(STRIDE * np.arange(found.shape[1]), found.shape[:2])
    return found.reshape(-1, SIZE, SIZE), left.reshape(-1)
