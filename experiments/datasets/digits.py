"""The default data, which needs no files: scikit-learn's 1,797 handwritten digits (UCI, 8 × 8 pixels, 17 gray levels)."""

from dataclasses import dataclass

import numpy as np

from attribution.images import Images
from experiments.datasets.errors import DataError
from experiments.datasets.selection import random_order
from experiments.datasets.source import Source, Splits


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """``n_train`` and ``n_validation`` digits, disjoint, from the two ends of one random order; ids are rows in scikit-learn.

    The training images do not depend on ``n_validation``, nor the validation images on ``n_train``.
    """

    NAME = "Digits"
    VERSION = 1

    channels: int = 1
    size: int = 8
    flips: bool = False
    levels: int = 16
    n_train: int = 256
    n_validation: int = 500
    seed: int = 0

    def read(self) -> Splits:
        from sklearn.datasets import load_digits

        pixels, label = load_digits(return_X_y=True)
        pixels, label = np.asarray(pixels).reshape(-1, 1, 8, 8).astype(np.uint8), np.asarray(label, dtype=np.int64)
        images = Images(pixels, np.arange(len(pixels)), label, levels=16)
        for setting, n in (("data.n_train", self.n_train), ("data.n_validation", self.n_validation)):
            if n < 1:
                raise DataError(f"{setting}={n}: must be at least 1")
        if self.n_train + self.n_validation > len(images):
            raise DataError(
                f"data.n_train={self.n_train} and data.n_validation={self.n_validation} add up to more than the {len(images)} "
                f"digits: set data.n_train <= {len(images)} - data.n_validation"
            )
        order = random_order(self.seed, "digits", images.index)
        return Splits(images.take(np.sort(order[: self.n_train])), images.take(np.sort(order[-self.n_validation :])))
