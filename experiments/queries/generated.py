"""Queries that the trained model generates."""

from dataclasses import dataclass

from attribution.checks import whole
from attribution.images import ImageSet
from experiments.models.experiment import Experiment
from experiments.queries.base import Queries


@dataclass(frozen=True, kw_only=True)
class Generated(Queries):
    """``n`` images that the trained model generates."""

    n: int
    seed: int

    def node(self, experiment: Experiment) -> ImageSet:
        whole(self, "n", least=1)
        return experiment.samples(self.n, self.seed)
