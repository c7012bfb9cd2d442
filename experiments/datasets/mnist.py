"""MNIST (LeCun et al. 1998), and other data sets in the same four idx files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution.checks import whole
from attribution.images import Images
from attribution.nodes import execution
from experiments.datasets.idx import mnist
from experiments.datasets.selection import select_random
from experiments.datasets.source import Source, Splits


@dataclass(frozen=True, kw_only=True)
class MNIST(Source):
    """``n_train`` training and ``n_validation`` test images of MNIST (None: all), the same number from each of ``classes``.

    The images are selected at random by ``seed``. A black border of ``pad`` pixels turns 28 × 28 images into 32 × 32. Ids are
    positions in the training file and in the test file.
    """

    NAME = "MNIST"
    VERSION = 1

    channels: int = 1
    size: int = 32
    flips: bool = False
    pad: int = 2
    classes: Sequence[int] | None = None
    n_train: int | None = None
    n_validation: int | None = None
    seed: int = 0
    download: bool = execution(default=False)

    def __post_init__(self):
        super().__post_init__()
        whole(self, "pad", least=0)

    def read(self) -> Splits:
        train, test = mnist(self.folder, self.download)
        return Splits(
            padded(select_random(train, "data.n_train", self.n_train, self.classes, self.seed), self.pad),
            padded(select_random(test, "data.n_validation", self.n_validation, self.classes, self.seed), self.pad),
        )


def padded(images: Images, pad: int) -> Images:
    """Return the images with a border of ``pad`` black pixels on all four sides."""
    pixels = np.pad(images.pixels, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    return Images(pixels, images.index, images.label, images.levels)
