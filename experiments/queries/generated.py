"""Queries that the trained model generates."""

from dataclasses import dataclass

from attribution.images import ImageSet
from experiments.models.experiment import Experiment
from experiments.queries.base import Queries


@dataclass(frozen=True, kw_only=True)
class Generated(Queries):
    """``n`` images that the trained model generates."""

    n: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        if self.n < 1:
            raise ValueError(f"queries.n={self.n}: must be at least 1")
        return experiment.samples(self.n, self.seed)
