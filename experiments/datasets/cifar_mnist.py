"""CIFAR-MNIST: airplanes mixed with a few handwritten zeros, a set with known sources (ReTrac §6.1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from attribution.images import Images
from attribution.nodes import execution
from experiments.datasets.cifar_batches import cifar10
from experiments.datasets.errors import DataError
from experiments.datasets.idx import mnist
from experiments.datasets.image_reader import Resize
from experiments.datasets.mnist import padded
from experiments.datasets.resizing import resized
from experiments.datasets.selection import select_listed, select_random
from experiments.datasets.source import Source, Splits


@dataclass(frozen=True, kw_only=True)
class CIFARMNIST(Source):
    """``planes`` airplanes of CIFAR-10 (None: all 5,000) and ``zeros`` zeros of MNIST, padded to 32 × 32 in three equal channels.

    ``validation_planes`` and ``validation_zeros`` are numbers of test images. The images are selected at random by ``seed``, or by
    ``index_file``, an npz file with the four arrays in ``KEYS``. Labels: 0 airplane, 1 zero. Airplanes come first, and their ids
    are positions in CIFAR-10. The id of a zero is its position in MNIST plus the number of CIFAR-10 images (50,000 for training,
    10,000 for validation). ``resize`` brings the images from 32 × 32 to ``size``, as in :class:`CIFAR10`.
    """

    NAME = "CIFARMNIST"
    VERSION = 1

    KEYS: ClassVar = ("cifar_train_airplane_idx", "mnist_train_zero_idx", "cifar_test_airplane_idx", "mnist_test_zero_idx")

    channels: int = 3
    size: int = 32
    resize: Resize = "none"
    flips: bool = True
    planes: int | None = None
    zeros: int | None = 200
    validation_planes: int | None = None
    validation_zeros: int | None = None
    seed: int = 0
    index_file: str | Path | None = execution(default=None)
    download: bool = execution(default=False)

    def read(self) -> Splits:
        plane_train, plane_test = cifar10(self.folder, self.download)
        zero_train, zero_test = mnist(self.folder, self.download)
        parts = zip(
            (plane_train, zero_train, plane_test, zero_test),
            ("data.planes", "data.zeros", "data.validation_planes", "data.validation_zeros"),
            (self.planes, self.zeros, self.validation_planes, self.validation_zeros),
            self.KEYS,
            strict=True,
        )
        planes, zeros, validation_planes, validation_zeros = (self._part(*part) for part in parts)
        train = _mixed(planes, zeros, first_zero=len(plane_train))
        validation = _mixed(validation_planes, validation_zeros, first_zero=len(plane_test))
        return Splits(*(resized(images, self.shape, self.resize) for images in (train, validation)))

    def _part(self, pool: Images, setting: str, n: int | None, key: str) -> Images:
        class_ = (0,)  # airplane in CIFAR-10, zero in MNIST
        if self.index_file is None:
            return select_random(pool, setting, n, class_, self.seed)
        return select_listed(pool, setting, n, self.index_file, key, class_)


def _mixed(planes: Images, zeros: Images, first_zero: int) -> Images:
    """Concatenate airplanes and padded zeros; ids of zeros start at ``first_zero``."""
    pad, odd = divmod(planes.shape[-1] - zeros.shape[-1], 2)
    if pad < 0 or odd or zeros.shape[-1] != zeros.shape[-2]:
        raise DataError(f"MNIST images of {zeros.shape[1]}×{zeros.shape[2]} cannot be padded to {planes.shape[-1]}: use 28×28")
    return Images(
        np.concatenate([planes.pixels, np.repeat(padded(zeros, pad).pixels, 3, axis=1)]),
        np.concatenate([planes.index, first_zero + zeros.index]),
        np.repeat(np.array([0, 1]), [len(planes), len(zeros)]),
    )
