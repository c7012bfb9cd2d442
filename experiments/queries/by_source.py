"""Queries of every source alike, where the labels of the training images say the source (ReTrac 6.1)."""

from dataclasses import dataclass

import numpy as np

from attribution.images import Images, ImageSet
from attribution.nodes import Get
from experiments.datasets import Split
from experiments.models.experiment import Experiment
from experiments.queries.choices import Queries
from experiments.queries.sources import PixelClassifier

SHARED = ("experiments.queries.sources",)


@dataclass(frozen=True, kw_only=True)
class HeldOutOfEach(Queries):
    """``n`` held-out images of every label of the training set, a seeded choice: a rare source gets as many as a common one."""

    n: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        splits = experiment.data.load()
        rows = []
        for label in np.unique(splits.train.label).tolist():
            there = np.flatnonzero(splits.validation.label == label)
            if not 1 <= self.n <= len(there):
                raise ValueError(
                    f"benchmark.queries.*.n={self.n} held-out images of each source: of label {label} there are {len(there)}; "
                    "lower it, or have data.* hold out more"
                )
            rows += np.random.default_rng([self.seed, label]).permutation(there)[: self.n].tolist()
        return Split(experiment.data, "validation", tuple(sorted(rows)))


@dataclass(frozen=True, kw_only=True)
class GeneratedOfEach(Queries):
    """``n`` of ``pool`` images that the trained model generates, as evenly from all sources as the pool allows.

    A model that makes a rare source rarely needs a large pool, which costs little beside the scores of its images.
    """

    n: int
    pool: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        if not 1 <= self.n <= self.pool:
            raise ValueError(
                f"benchmark.queries.*.n={self.n} of benchmark.queries.*.pool={self.pool} generated images: set n to 1..pool"
            )
        return OfEachSource(experiment.samples(self.pool, self.seed), experiment.train, self.n)


@dataclass(frozen=True)
class OfEachSource(ImageSet):
    """``n`` images of ``pool``: the first of every source, told by ``PixelClassifier``, then the second of every, ..."""

    NAME = "OfEachSource"
    VERSION = 1
    TITLE = "generated images of each source"

    pool: ImageSet
    train: ImageSet
    n: int

    @property
    def count(self) -> int:
        return self.n

    def compute(self, get: Get) -> Images:
        pool = get(self.pool)
        return pool.take(even(PixelClassifier(get(self.train)).labels(pool), self.n))


def even(labels: np.ndarray, n: int) -> np.ndarray:
    """``n`` of the positions of ``labels [N]``, ascending, dealt evenly: the first of every label, the second of every, ..."""
    place = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        place[labels == label] = np.arange((labels == label).sum())
    return np.sort(np.lexsort((labels, place))[:n])
