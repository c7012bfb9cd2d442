"""Queries from the validation and the training images of the data source."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution.checks import FieldError
from attribution.images import ImageSet
from experiments.datasets import Split
from experiments.models.experiment import Experiment
from experiments.queries.base import Queries


@dataclass(frozen=True, kw_only=True)
class Validation(Queries):
    """``n`` held-out images, chosen at random by ``seed``."""

    n: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        available = len(experiment.data.load().validation)
        return Split(experiment.data, "validation", _random_rows(self, available, "validation"))


@dataclass(frozen=True, kw_only=True)
class Training(Queries):
    """Training images: those with the ids ``index``, or ``n`` chosen at random by ``seed`` if ``index`` is None."""

    n: int
    seed: int
    index: Sequence[int] | None = None

    def node(self, experiment: Experiment) -> ImageSet:
        ids = experiment.data.load().train.index
        if self.index is None:
            return Split(experiment.data, "train", _random_rows(self, len(ids), "training"))
        if absent := sorted(set(self.index) - set(ids.tolist())):
            raise FieldError(self, "index", f"no training images have the ids {absent}: choose from {ids.min()}..{ids.max()}")
        if not self.index:
            raise FieldError(self, "index", "give at least one id, or null for a random choice")
        rows = np.concatenate([np.flatnonzero(ids == wanted) for wanted in self.index])
        return Split(experiment.data, "train", tuple(rows.tolist()))


def _random_rows(queries: Validation | Training, available: int, kind: str) -> tuple[int, ...]:
    """Return ``n`` positions in 0..available-1, chosen at random by ``seed``, in ascending order."""
    if not 1 <= queries.n <= available:
        raise FieldError(queries, "n", f"there are {available} {kind} images: give 1 to {available}")
    return tuple(np.sort(np.random.default_rng(queries.seed).permutation(available)[: queries.n]).tolist())
