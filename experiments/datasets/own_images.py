"""What sources of images of one's own have in common: how many images are taken, and where their pixels are kept."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.checks import FieldError
from attribution.nodes import execution
from experiments.datasets.image_reader import Crop, Resize
from experiments.datasets.source import Source
from experiments.datasets.splitting import ends, first

SHARED = ("experiments.datasets.image_reader", "experiments.datasets.splitting")

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, kw_only=True)
class OwnImages(Source, ABC):
    """Images in files of the user's.

    ``n_train`` and ``n_validation`` are numbers of images (None: all; in a random split, a tenth of the images for validation and
    the others for training), chosen by ``seed``. The pixels are kept in the store in the folder ``store`` (None: in memory only).
    """

    size: int | Sequence[int]
    flips: bool = False
    n_train: int | None = None
    n_validation: int | None = None
    seed: int = 0
    store: str | Path | None = execution(default=None)

    def taken(self, counts: Sequence[int], place: str) -> Sequence[np.ndarray]:
        """Positions of the training images and of the validation images that are taken, each ascending.

        ``counts``: how many there are of either, or one number of images in ``place`` that a random split divides.

        Raises:
            DataError: there are fewer images.
        """
        if len(counts) == 1:
            return ends(counts[0], self.n_train, self.n_validation, self.seed, place)
        numbers = {"n_train": self.n_train, "n_validation": self.n_validation}
        return [first(count, n, self.seed, name) for count, (name, n) in zip(counts, numbers.items(), strict=True)]


@dataclass(frozen=True, kw_only=True)
class EncodedImages(OwnImages, ABC):
    """Encoded images (PNG, JPEG, ...): :func:`decode` says what becomes of rotated, transparent, gray and other images, and
    :class:`Framing` what ``resize`` and ``crop`` do.
    """

    channels: int = 3
    resize: Resize = "none"
    crop: Crop = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.channels not in (1, 3):
            raise FieldError(self, "channels", "must be 1 (gray) or 3 (RGB)")
