"""CIFAR-10 (Krizhevsky 2009) and subsets of it, such as CIFAR-2 (automobile and horse)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attribution.images import Images
from attribution.nodes import execution
from experiments.datasets.cifar_batches import cifar10
from experiments.datasets.image_reader import Resize
from experiments.datasets.resizing import resized
from experiments.datasets.selection import select_listed, select_random
from experiments.datasets.source import Source, Splits


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Source):
    """``n_train`` training and ``n_validation`` test images of CIFAR-10 (None: all), the same number from each of ``classes``.

    The images are selected at random by ``seed``, or by ``index_file``, an npz file with a published split: its arrays
    ``train_key`` and ``validation_key`` list positions, and their order is kept. With ``validation_key=None``, validation images
    are selected at random.

    ``resize`` brings the images from 32 × 32 to ``size``: "area" averages over the area of each new pixel; "bilinear", "bicubic"
    and "lanczos" are PIL's. With "none", ``size`` must be 32.

    Ids are positions among the 50,000 training images (batches 1 to 5 in order) and among the 10,000 test images. Ids of the two
    splits overlap; their draws differ because the role of the image is part of the random key.
    """

    NAME = "CIFAR10"
    VERSION = 1

    channels: int = 3
    size: int = 32
    resize: Resize = "none"
    flips: bool = True
    classes: Sequence[int] | None = None
    n_train: int | None = None
    n_validation: int | None = None
    seed: int = 0
    index_file: str | Path | None = execution(default=None)
    train_key: str = "train_idx"
    validation_key: str | None = None
    download: bool = execution(default=False)

    def read(self) -> Splits:
        train, test = cifar10(self.folder, self.download)
        return Splits(
            self._part(train, "data.n_train", self.n_train, self.train_key),
            self._part(test, "data.n_validation", self.n_validation, self.validation_key),
        )

    def _part(self, pool: Images, setting: str, n: int | None, key: str | None) -> Images:
        if self.index_file is None or key is None:
            selected = select_random(pool, setting, n, self.classes, self.seed)
        else:
            selected = select_listed(pool, setting, n, self.index_file, key, self.classes)
        return resized(selected, self.shape, self.resize)
