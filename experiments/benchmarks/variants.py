"""The variants that a benchmark compares: each estimator at each of its swept values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attribution.checks import FieldError
from attribution.estimators import Estimator
from attribution.estimators.ensemble import EnsembleScores
from attribution.estimators.influence import InfluenceScores
from attribution.estimators.layer_weights import LayerWeightScores
from attribution.estimators.layers import refuse_layers
from attribution.estimators.scores import Scores
from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Get, Node
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.report.row import Effort, Subject


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
    experiment: Experiment, estimators: Mapping[str, Estimator], queries: Mapping[str, Queries], member: int = 0
) -> dict[tuple[str, str], Node[Scores]]:
    """The scores that a benchmark needs, by (kind of queries, estimator).

    Kinds that an estimator does not explain are left out, if it explains another one. ``member``: those of the explained model
    trained with the seed ``seed + member``, for the same queries.
    """
    return scores_under(experiment.attributed.member(member), experiment.train, experiment, estimators, queries)


def scores_under(
    trained: Trained, train: ImageSet, experiment: Experiment, estimators: Mapping[str, Estimator], queries: Mapping[str, Queries]
) -> dict[tuple[str, str], Node[Scores]]:
    """The same scores under another model ``trained`` on the images ``train``."""
    nodes = {kind: choice.node(experiment) for kind, choice in queries.items()}
    explained = {
        name: [kind for kind in nodes if estimator.explains(nodes[kind])] or list(nodes) for name, estimator in estimators.items()
    }
    return {
        (kind, name): estimator.scores(trained, train, node)
        for kind, node in nodes.items()
        for name, estimator in estimators.items()
        if kind in explained[name]
    }


def computed(nodes: Mapping[tuple[str, str], Node[Scores]], get: Get) -> dict[tuple[str, str], Scores]:
    """Compute the scores of all ``nodes`` together; return them by the same keys."""
    return dict(zip(nodes, get.many(list(nodes.values())), strict=True))


def variants_for(
    kind: str,
    estimators: Mapping[str, Estimator],
    nodes: Mapping[tuple[str, str], Node[Scores]],
    scores: Mapping[tuple[str, str], Scores],
    get: Get,
) -> list[Variant]:
    """The variants of all estimators for one kind of queries. ``nodes`` are those of ``scores_of``, and ``scores`` their scores."""
    return [
        variant
        for name, estimator in estimators.items()
        if (kind, name) in nodes
        for variant in variants_of(name, estimator, nodes[kind, name], scores[kind, name], get)
    ]


def variants_of(name: str, estimator: Estimator, node: Node[Scores], scores: Scores, get: Get) -> list[Variant]:
    """The variants in the scores of one estimator. ``get`` gives the model that decides how many checkpoints there are."""
    return [
        Variant(Subject(name, settings, node.fingerprint, effort_of(estimator, settings, node, get)), values)
        for settings, values in estimator.variants(scores)
    ]


def subject_of(name: str, estimator: Estimator, node: Node[Scores], get: Get) -> Subject:
    """The subject of all scores in ``node`` together."""
    return Subject(name, scores=node.fingerprint, effort=effort_of(estimator, {}, node, get))


def effort_of(estimator: Estimator, settings: Mapping[str, Any], node: Node[Any], get: Get) -> Effort:
    """The draws and passes behind a variant; of several numbers of draws, as many as it would take alone."""
    draws, members = estimator.draws_of(settings), node.members if isinstance(node, EnsembleScores) else [node]
    members = [member.unweighted if isinstance(member, LayerWeightScores) else member for member in members]
    if draws is not None:
        members = [member.at_draws(*draws) if isinstance(member, InfluenceScores) else member for member in members]
    passes = sum(member.passes(get) for member in members)
    return Effort(*(draws or (None, None)), passes)


def require_replay(estimators: Mapping[str, Estimator], benchmark: str) -> dict[str, TrajectoryEstimator]:
    """Check that every estimator replays training, and return them.

    Raises:
        ValueError: an estimator does not replay training, or replays several, or has scores for several numbers of draws or bins
            of timesteps.
    """
    replaying = {}
    for name, estimator in estimators.items():
        if not isinstance(estimator, TrajectoryEstimator):
            raise ValueError(f"benchmark={benchmark}: estimator={name} does not replay training; choose tracin or retrac")
        if estimator.models > 1:
            raise FieldError(estimator, "models", f"benchmark={benchmark} looks at the checkpoints of one training: set 1")
        estimator.draws.refuse_lists(f"benchmark={benchmark}")
        refuse_layers(estimator, f"benchmark={benchmark}")
        replaying[name] = estimator
    return replaying
