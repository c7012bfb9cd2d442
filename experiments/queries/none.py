"""A kind of queries that a benchmark leaves out."""

from dataclasses import dataclass

from attribution.images import ImageSet
from experiments.models.experiment import Experiment
from experiments.queries.base import Queries


@dataclass(frozen=True, kw_only=True)
class NoQueries(Queries):
    """No queries. Benchmarks leave the kind out; ``n`` and ``seed``, which they set for every kind, are ignored."""

    n: int = 0
    seed: int = 0

    def node(self, experiment: Experiment) -> ImageSet:
        raise ValueError("queries=none only leaves a kind of queries out of a benchmark: choose other queries")
