"""The same number of queries from each source, where the labels of the training images are their sources (ReTrac §6.1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attribution.checks import FieldError, whole
from attribution.images import Images, ImageSet
from attribution.nodes import Get
from experiments.datasets import Split
from experiments.models.experiment import Experiment
from experiments.queries.base import Queries
from experiments.queries.pixel_classifier import PixelClassifier

SHARED = ("attribution.images.images", "experiments.queries.pixel_classifier")


@dataclass(frozen=True, kw_only=True)
class HeldOutOfEach(Queries):
    """``n`` random held-out images of each label in the training set: the same number for every label, however rare."""

    n: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        splits = experiment.data.load()
        rows = []
        for label in np.unique(splits.train.label).tolist():
            held_out = np.flatnonzero(splits.validation.label == label)
            if not 1 <= self.n <= len(held_out):
                message = (
                    f"label {label} has {len(held_out)} held-out images: give 1 to {len(held_out)} per source, or hold out more"
                )
                raise FieldError(self, "n", f"{message} images by the settings of data")
            rows += np.random.default_rng([self.seed, label]).permutation(held_out)[: self.n].tolist()
        return Split(experiment.data, "validation", tuple(sorted(rows)))


@dataclass(frozen=True, kw_only=True)
class GeneratedOfEach(Queries):
    """``n`` of ``pool`` images that the trained model generates, as evenly from all sources as the pool allows.

    If the model rarely generates images of a source, a large pool is needed. It is cheap compared with the scores of its images.
    """

    n: int
    pool: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        whole(self, "pool", least=1)
        if not 1 <= self.n <= self.pool:
            raise FieldError(self, "n", f"must be between 1 and pool={self.pool}, the number of generated images to choose from")
        return OfEachSource(experiment.samples(self.pool, self.seed), experiment.train, self.n)


@dataclass(frozen=True)
class OfEachSource(ImageSet):
    """``n`` images of ``pool``, taken in turn from every source according to ``PixelClassifier``, until there are ``n``."""

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
        return pool.take(round_robin(PixelClassifier(get(self.train)).labels(pool), self.n))


def round_robin(labels: np.ndarray, n: int) -> np.ndarray:
    """Return ``n`` positions in ``labels [N]``, ascending: the first of every label, then the second of every label, ..."""
    place = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        place[labels == label] = np.arange((labels == label).sum())
    return np.sort(np.lexsort((labels, place))[:n])


def check_sources(sources: Mapping[int, str], train: Images) -> None:
    """Check the names of the sources of a benchmark against the labels of the training images.

    Raises:
        ValueError: ``sources`` does not give each label its own name, or there are fewer than two labels.
    """
    labels = np.unique(train.label).tolist()
    if sorted(sources) != labels or len(set(sources.values())) < len(sources) or len(sources) < 2:
        raise ValueError(
            f"benchmark.sources={dict(sources)}: the training images have labels {labels}; give each label its own name, and use "
            "data with at least two labels (data=patches_digits and data=cifar_mnist have two)"
        )
