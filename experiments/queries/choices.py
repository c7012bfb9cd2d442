"""Which images to explain (``queries=``): validation, generated or training images, or a folder of the user's own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.images import ImageSet
from experiments.datasets import ImageFolder, Split
from experiments.models.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Queries(ABC):
    """A choice of images, made when the experiment is known."""

    @abstractmethod
    def node(self, experiment: Experiment) -> ImageSet: ...


@dataclass(frozen=True, kw_only=True)
class Validation(Queries):
    """``n`` held-out images, a seeded choice."""

    n: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        available = len(experiment.data.load().validation)
        return Split(experiment.data, "validation", _choice(self.n, available, self.seed, "validation"))


@dataclass(frozen=True, kw_only=True)
class Generated(Queries):
    """``n`` images that the trained model generates."""

    n: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        if self.n < 1:
            raise ValueError(f"queries.n={self.n}: must be at least 1")
        return experiment.samples(self.n, self.seed)


@dataclass(frozen=True, kw_only=True)
class Training(Queries):
    """Training images: those with the ids ``index``, or ``n`` by a seeded choice."""

    n: int
    seed: int
    index: Sequence[int] | None = None

    def node(self, experiment: Experiment) -> ImageSet:
        ids = experiment.data.load().train.index
        if self.index is None:
            return Split(experiment.data, "train", _choice(self.n, len(ids), self.seed, "training"))
        if absent := sorted(set(self.index) - set(ids.tolist())):
            raise ValueError(f"queries.index has {absent}, which are no ids of training images (smallest {ids.min()})")
        if not self.index:
            raise ValueError("queries.index=[]: name at least one id, or null for a seeded choice")
        rows = np.concatenate([np.flatnonzero(ids == wanted) for wanted in self.index])
        return Split(experiment.data, "train", tuple(rows.tolist()))


@dataclass(frozen=True, kw_only=True)
class Folder(Queries):
    """The PNG and JPEG files of ``path``."""

    path: str | Path

    def node(self, experiment: Experiment) -> ImageSet:
        return ImageFolder(path=self.path, shape=experiment.shape)


def _choice(n: int, available: int, seed: int, kind: str) -> tuple[int, ...]:
    if not 1 <= n <= available:
        raise ValueError(f"n={n} {kind} queries (queries.n or benchmark.queries.*.n): there are {available}")
    return tuple(np.sort(np.random.default_rng(seed).permutation(available)[:n]).tolist())
