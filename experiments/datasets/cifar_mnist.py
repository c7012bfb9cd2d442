"""CIFAR-MNIST: airplanes with a few handwritten zeros among them, whose influence is known beforehand (Diffusion-ReTrac §6.1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from attribution.images import Images
from attribution.nodes import execution
from experiments.datasets.batches import cifar10
from experiments.datasets.choice import chosen, listed
from experiments.datasets.errors import DataError
from experiments.datasets.idx import mnist
from experiments.datasets.mnist import padded
from experiments.datasets.source import Source, Splits


@dataclass(frozen=True, kw_only=True)
class CIFARMNIST(Source):
    """CIFAR-10's ``planes`` (None: all 5,000) and ``zeros`` of MNIST, padded to 32 × 32 in three equal channels.

    ``validation_planes`` and ``validation_zeros`` are the same of the test images. Chosen by the seed, or by ``index_file``, an
    npz file with the four arrays in ``KEYS``. Labels: 0 plane, 1 zero. Planes, which come first, keep their CIFAR-10 positions
    as ids; a zero's id is its MNIST position beyond those of CIFAR-10 (50,000 + position; in validation, 10,000 + position).
    """

    NAME = "CIFARMNIST"
    VERSION = 1

    KEYS: ClassVar = ("cifar_train_airplane_idx", "mnist_train_zero_idx", "cifar_test_airplane_idx", "mnist_test_zero_idx")

    channels: int = 3
    size: int = 32
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
        return Splits(
            _mixed(planes, zeros, first_zero=len(plane_train)),
            _mixed(validation_planes, validation_zeros, first_zero=len(plane_test)),
        )

    def _part(self, pool: Images, setting: str, n: int | None, key: str) -> Images:
        class_ = (0,)  # airplane in CIFAR-10, zero in MNIST
        if self.index_file is None:
            return chosen(pool, setting, n, class_, self.seed)
        return listed(pool, setting, n, self.index_file, key, class_)


def _mixed(planes: Images, zeros: Images, first_zero: int) -> Images:
    pad, odd = divmod(planes.shape[-1] - zeros.shape[-1], 2)
    if pad < 0 or odd or zeros.shape[-1] != zeros.shape[-2]:
        raise DataError(f"MNIST images of {zeros.shape[1]}×{zeros.shape[2]} cannot be padded to {planes.shape[-1]}: use 28×28")
    return Images(
        np.concatenate([planes.pixels, np.repeat(padded(zeros, pad).pixels, 3, axis=1)]),
        np.concatenate([planes.index, first_zero + zeros.index]),
        np.repeat(np.array([0, 1]), [len(planes), len(zeros)]),
    )
