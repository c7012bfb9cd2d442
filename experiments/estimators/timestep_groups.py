"""Predictions by groups of draws and bins of timesteps, from which a window of timesteps is chosen (``metrics.windows``)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from attribution.estimators.held_queries import refuse_unstable
from attribution.estimators.influence import InfluenceScores, KFACInfluence
from attribution.estimators.replicated import parts_of
from attribution.images import ImageSet
from attribution.images.replicates import CrossGroups
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, Node, class_identity
from experiments.models.subsets import RandomSubsets

SHARED = (
    "attribution.estimators.influence",
    "attribution.estimators.replicated",
    "attribution.images.replicates",
    "experiments.models.subsets",
)


@dataclass(frozen=True, eq=False)
class Predictions(Arrays):
    """``values [R, R, B, B, Q, M]`` float32: see :class:`TimestepGroups`."""

    values: np.ndarray


@dataclass(frozen=True)
class TimestepGroups(Node[Predictions]):
    """What R × R groups of draws predict for M random halves of the training images, by pair of B × B bins of timesteps.

    ``estimator``: influence at one damping, with its draws in B bins. The sum over bins and the mean over ``groups`` is the sum of
    its scores over the images outside a half. No model is retrained.
    """

    NAME = "TimestepGroups"
    VERSION = 1
    TITLE = "scores by groups and timesteps"
    ARTIFACT = Predictions

    estimator: KFACInfluence
    trained: Trained
    train: ImageSet
    queries: ImageSet
    groups: int
    halves: RandomSubsets

    @cached_property
    def members(self) -> list[list[InfluenceScores]]:
        """The scores of each pair of groups, ``[R, R]``."""
        estimator, of = self.estimator, range(self.groups)
        return [[self._member(replace(estimator, draws=CrossGroups(estimator.draws, r, s, len(of)))) for s in of] for r in of]

    def _member(self, estimator: KFACInfluence) -> InfluenceScores:
        return InfluenceScores(estimator, self.train, self.queries, self.trained)

    def description(self) -> dict[str, Any]:
        """With the version of the scores of a pair of groups."""
        return {**super().description(), "member": class_identity(InfluenceScores)}

    def parts(self, get: Get) -> list[Node]:
        return parts_of(self.members, get)

    def parents(self) -> list[Node]:
        parents: Sequence[Node] = [self.train, *self.members[0][0].parents()]
        return list({parent.fingerprint: parent for parent in parents}.values())

    def passes(self, get: Get) -> float:
        return self.groups * self.members[0][0].cost().passes  # each side is drawn once

    def cost(self) -> Cost:
        member = self.members[0][0].cost()
        size = 4 * (self.groups * self.estimator.draws.bins) ** 2 * self.queries.count * self.halves.count
        return Cost(passes=self.groups * member.passes, memory=member.memory + 2 * size, disk=size)

    def compute(self, get: Get) -> Predictions:
        refuse_unstable(get(self.estimator.basis(self.trained, self.train)), self.estimator.dampings)
        removed = self.halves.removed(get(self.train)).astype(np.float32).T  # [N, M]
        values = [[member.compute(get).values[0, 0, 1:, 1:] @ removed for member in row] for row in self.members]
        return Predictions(np.array(values, np.float32))
