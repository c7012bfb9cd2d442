"""Self-influence τ[z, z] under estimators of the final model: the score of each training example for itself.

The example is taken as a query at draws of its own, which are independent of those that it has as a training example. With the same
draws on both sides the noise of the gradient would be squared, and self-influence too large.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from attribution.checks import FieldError
from attribution.estimators.base import Estimator
from attribution.estimators.held_queries import refuse_unstable
from attribution.estimators.influence import InfluenceTrainingBlock, KFACInfluence
from attribution.estimators.kernel import KernelScores
from attribution.estimators.layers import refuse_layers
from attribution.estimators.leverage import Leverages
from attribution.estimators.rescaled_kfac import RescaledKFAC, factors
from attribution.estimators.scores import Scores
from attribution.estimators.self_influence import Influence, SelfInfluence
from attribution.estimators.sharded import with_query_blocks
from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES, ranges
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, class_identity
from attribution.training import require_record

SHARED = ("attribution.estimators.influence", "attribution.estimators.rescaled_kfac", "attribution.estimators.self_influence")


@dataclass(frozen=True)
class InfluenceOnItself(Node[Influence]):
    """τ[z, z] under an eigendecomposed curvature, at the estimator's only damping and number of draws.

    Blocks of training examples are multiplied with themselves alone, so that the cost is linear in their number.
    """

    NAME = "InfluenceOnItself"
    VERSION = 1
    TITLE = "self-influence"
    ARTIFACT = Influence

    estimator: KFACInfluence
    trained: Trained
    train: ImageSet

    def parts(self, get: Get) -> list[Node]:
        return [part for block in self.training_blocks for part in with_query_blocks([block])]

    @property
    def training_blocks(self) -> list[InfluenceTrainingBlock]:
        """The products of each block of training examples with itself."""
        return [
            InfluenceTrainingBlock(self.estimator, self.trained, self.train, self.train, rows, rows)
            for rows in ranges(0, self.train.count, self.estimator.execution.shard)
        ]

    def parents(self) -> list[Node]:
        return [*super().parents(), self.estimator.basis(self.trained, self.train)]

    def cost(self) -> Cost:
        draws = self.estimator.draws
        passes = self.train.count * (draws.side("query").count + draws.side("train").count)
        return Cost(passes=passes, disk=3 * FLOAT32_BYTES * self.train.count)

    def compute(self, get: Get) -> Influence:
        refuse_unstable(get(self.estimator.basis(self.trained, self.train)), self.estimator.dampings)
        blocks = get.many(self.training_blocks)
        values = [np.diagonal(block.values[0, 0, 0, 0]) for block in blocks]
        return Influence(np.concatenate(values).astype(np.float32), np.array(get(self.train).index))


@dataclass(frozen=True)
class RescaledOnItself(Node[Influence]):
    """τ[z, z] under rescaled influence, at a cost that is linear in the number of training examples."""

    NAME = "RescaledOnItself"
    VERSION = 1
    TITLE = "self-influence"
    ARTIFACT = Influence

    influence: InfluenceOnItself
    leverages: Leverages

    def cost(self) -> Cost:
        return Cost(disk=self.influence.cost().disk)

    def compute(self, get: Get) -> Influence:
        plain, [factor] = get(self.influence), factors(self.leverages, self.influence.estimator.dampings, get)
        return Influence((plain.values * factor).astype(np.float32), plain.train_index)


@dataclass(frozen=True)
class DiagonalOfScores(Node[Influence]):
    """The diagonal of the scores of all training examples for all training examples, at the estimator's only variant."""

    NAME = "DiagonalOfScores"
    VERSION = 1
    TITLE = "self-influence"
    ARTIFACT = Influence

    estimator: Estimator
    trained: Trained
    train: ImageSet

    @cached_property
    def scores(self) -> Node[Scores]:
        """The scores, which are not stored."""
        return self.estimator.scores(self.trained, self.train, self.train)

    def description(self) -> dict[str, Any]:
        """With the version of the scores."""
        return {**super().description(), "scores": class_identity(type(self.scores))}

    def parts(self, get: Get) -> list[Node]:
        return list(self.scores.parts(get))

    def parents(self) -> list[Node]:
        return self.scores.parents()

    def cost(self) -> Cost:
        pairs = FLOAT64_BYTES * self.train.count**2 if isinstance(self.scores, KernelScores) else self.scores.cost().memory
        return Cost(memory=4 * pairs, disk=3 * FLOAT32_BYTES * self.train.count)

    def compute(self, get: Get) -> Influence:
        if isinstance(self.scores, KernelScores):
            [damping] = self.estimator.requested()["damping"]
            return Influence(self.scores.diagonal(damping, get).astype(np.float32), np.array(get(self.train).index))
        [(_, scores)] = self.estimator.variants(self.scores.compute(get))
        return Influence(np.diagonal(scores.values).astype(np.float32), np.array(scores.train_index))


def self_influence(estimator: Estimator, trained: Trained, train: ImageSet) -> Node[Influence]:
    """The self-influence of each training example, ``[N]``.

    TracIn and its relatives take the training side at the draw that training recorded. Groups of draws make no difference.

    Raises:
        FieldError: the estimator has several values of a setting.
        ValueError: it has no draws, so that an example has no two independent sides.
    """
    if estimator.models > 1:
        raise FieldError(estimator, "models", "self-influence is of one model: set 1")
    draws = getattr(estimator, "draws", None)
    refuse_layers(estimator, "self-influence")
    if not isinstance(draws, DrawScheme):
        name = type(estimator).__name__
        raise ValueError(f"{name} has no self-influence: choose an estimator with draws, such as kfac, trak or retrac")
    if draws.replicates > 1:
        return self_influence(replace(estimator, draws=replace(draws, replicates=1)), trained, train)  # pyright: ignore
    if isinstance(estimator, TrajectoryEstimator):
        return SelfInfluence(estimator, require_record(trained, "self-influence"), train)
    several: Mapping[str, Any] = {name: values for name, values in estimator.requested().items() if len(values) > 1}
    for name, values in several.items():
        raise FieldError(estimator, name, "self-influence takes one value", list(values))
    draws.refuse_lists("self-influence")
    if not estimator.explains(train):
        raise ValueError(
            f"{type(estimator).__name__} explains generated images only, so that training images have no self-influence"
        )
    estimator.scores(trained, train, train)  # raises what scores raise
    if isinstance(estimator, KFACInfluence):
        return InfluenceOnItself(estimator, trained, train)
    if isinstance(estimator, RescaledKFAC):
        on_itself = InfluenceOnItself(estimator.influence, trained, train)
        return RescaledOnItself(on_itself, estimator.leverages(trained, train))
    return DiagonalOfScores(estimator, trained, train)
