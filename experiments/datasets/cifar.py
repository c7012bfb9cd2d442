"""CIFAR-10 (Krizhevsky 2009) and parts of it, such as CIFAR-2 (automobile and horse)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attribution.images import Images
from attribution.nodes import execution
from experiments.datasets.batches import cifar10
from experiments.datasets.choice import chosen, listed
from experiments.datasets.source import Source, Splits


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Source):
    """``n_train`` of the training and ``n_validation`` of the test images (None: all), evenly over ``classes``, seeded.

    Or, with ``index_file``, a published split: an npz file whose arrays ``train_key`` and ``validation_key`` list positions,
    kept in their order; ``validation_key=None`` leaves the validation images to the seed.

    Ids are positions: of training images among the 50,000 (batches 1 to 5 in order), of validation images among the 10,000
    test images. The two overlap as numbers; draws tell them apart by their role.
    """

    NAME = "CIFAR10"
    VERSION = 1

    channels: int = 3
    size: int = 32
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
            return chosen(pool, setting, n, self.classes, self.seed)
        return listed(pool, setting, n, self.index_file, key, self.classes)
