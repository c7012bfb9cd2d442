"""MNIST (LeCun et al. 1998), and whatever else comes as its four idx files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution.images import Images
from attribution.nodes import execution
from experiments.datasets.choice import chosen
from experiments.datasets.idx import mnist
from experiments.datasets.source import Source, Splits


@dataclass(frozen=True, kw_only=True)
class MNIST(Source):
    """``n_train`` of the training and ``n_validation`` of the test images (None: all), evenly over ``classes``, seeded.

    Black borders of ``pad`` pixels make 28 × 28 images 32 × 32. Ids are positions in the training file and in the test file.
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

    def read(self) -> Splits:
        train, test = mnist(self.folder, self.download)
        return Splits(
            padded(chosen(train, "data.n_train", self.n_train, self.classes, self.seed), self.pad),
            padded(chosen(test, "data.n_validation", self.n_validation, self.classes, self.seed), self.pad),
        )


def padded(images: Images, pad: int) -> Images:
    """Images with ``pad`` black pixels more on each of their four sides."""
    pixels = np.pad(images.pixels, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    return Images(pixels, images.index, images.label, images.levels)
