"""The variants that a benchmark compares: each estimator at each of its swept values."""

from collections.abc import Mapping
from dataclasses import dataclass

from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.nodes import Node
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.report.row import Subject


@dataclass(frozen=True)
class Variant:
    """An estimator at one value of each of its swept settings, and its scores ``[Q, N]``."""

    subject: Subject
    scores: Scores

    @property
    def label(self) -> str:
        """The estimator's name with its swept settings."""
        return self.subject.label

    @property
    def all_timesteps(self) -> bool:
        """Whether the scores cover all timesteps rather than a bin."""
        return self.subject.all_timesteps


def scores_of(
    experiment: Experiment, estimators: Mapping[str, Estimator], queries: Mapping[str, Queries]
) -> dict[tuple[str, str], Node[Scores]]:
    """The scores that a benchmark needs, by (kind of queries, estimator)."""
    return {
        (kind, name): estimator.scores(experiment.trained, experiment.train, choice.node(experiment))
        for kind, choice in queries.items()
        for name, estimator in estimators.items()
    }


def variants_of(name: str, estimator: Estimator, node: Node[Scores], scores: Scores) -> list[Variant]:
    """The variants in the scores of one estimator."""
    return [Variant(Subject(name, settings, node.fingerprint), values) for settings, values in estimator.variants(scores)]
