"""Where an image is from: queries of every source, and a classifier for images that nobody labelled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from attribution.images import Images, ImageSet
from attribution.node import Get
from experiments.benchmarks.metrics import Estimate
from experiments.datasets import Split
from experiments.experiment import Experiment
from experiments.queries import Queries

UNKNOWN = -1
"""The label of an image whose source nobody says."""


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


class PixelClassifier:
    """Logistic regression from pixels to the labels of ``train``, every label of the same total weight."""

    def __init__(self, train: Images):
        self._model = LogisticRegression(max_iter=5000, class_weight="balanced").fit(_pixels(train), train.label)

    def labels(self, images: Images) -> np.ndarray:
        """``[N]``: the label where the image has one, else what its pixels say."""
        return np.where(images.label == UNKNOWN, self._model.predict(_pixels(images)), images.label)

    def recall(self, held_out: Images) -> dict[int, dict[str, Any]]:
        """For each label in ``held_out``, the share of its images that are told right, as ``share`` gives it."""
        told = self._model.predict(_pixels(held_out))
        labels = np.unique(held_out.label).tolist()
        return {label: share(told[held_out.label == label] == label) for label in labels}


def share(hits: np.ndarray) -> dict[str, Any]:
    """How many of some independent images are hits, with the exact 95 % interval (Clopper & Pearson 1934).

    Its ends differ where all of few images are hits too, where a bootstrap knows no doubt.
    """
    count = binomtest(int(hits.sum()), len(hits))
    low, high = count.proportion_ci(0.95, "exact")
    return {**Estimate(float(count.statistic), float(low), float(high))._asdict(), "n": len(hits)}


def check(sources: Mapping[int, str], train: Images) -> None:
    """Raises ValueError: ``sources`` are not two or more different names, one for each label of the training images."""
    labels = np.unique(train.label).tolist()
    if sorted(sources) != labels or len(set(sources.values())) < len(sources) or len(sources) < 2:
        raise ValueError(
            f"benchmark.sources={dict(sources)}: the training images have labels {labels}; give each its own name, of two "
            "sources at least (data=patches_digits and data=cifar_mnist have two)"
        )


def _pixels(images: Images) -> np.ndarray:
    return images.x0().flatten(1).numpy()
