"""Scores with replicates: from groups of the draws of a query and, in estimators that are linear in it, of a training image.

An estimator that takes ``draws.replicates`` is linear in the gradients of a side, given its curvature or kernel, which comes from
all draws. Its score is therefore the mean of the cross scores ``τ_rs`` of group r of the query's draws and group s of the training
image's, and their scatter shows how far other draws would move it (``experiments.metrics.replicates``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from attribution.checks import FieldError
from attribution.estimators.base import Estimator
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores
from attribution.execution import FLOAT32_BYTES
from attribution.images.draws import DrawScheme
from attribution.images.replicates import CrossGroups, Group
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, class_identity

SHARED = ("attribution.estimators.sharded", "attribution.images.replicates")


@dataclass(frozen=True)
class ReplicatedScores(ShardedScores):
    """The scores of ``estimator``, whose draws have several ``replicates``, with all cross scores."""

    NAME = "ReplicatedScores"
    VERSION = 1
    TITLE = "scores by groups of draws"

    estimator: Any
    trained: Trained

    @cached_property
    def members(self) -> list[list[Node[Scores]]]:
        """The nodes of the cross scores, ``[R, R]``, or ``[R, 1]`` if only the draws of queries are in groups."""
        estimator, draws = self.estimator, self.estimator.draws
        whole, groups = replace(draws, replicates=1), range(draws.replicates)

        def scheme(query: int, train: int | None) -> DrawScheme:
            return Group(whole, query, len(groups)) if estimator.RECORDED_DRAWS else CrossGroups(whole, query, train, len(groups))

        sides: Sequence[int | None] = list(groups) if "train" in estimator.REPLICATED else [None]
        return [
            [replace(estimator, draws=scheme(r, s)).scores(self.trained, self.train, self.queries) for s in sides] for r in groups
        ]

    def description(self) -> dict[str, Any]:
        """With the version of the cross scores."""
        return {**super().description(), "member": class_identity(type(self.members[0][0]))}

    def parts(self, get: Get) -> list[Node]:
        return parts_of(self.members, get)

    def parents(self) -> list[Node]:
        return _distinct(parent for row in self.members for member in row for parent in member.parents())

    def cost(self) -> Cost:
        member, count = self.members[0][0].cost(), sum(map(len, self.members))
        memory, disk = member.memory + (2 + count) * member.disk, (1 + count) * member.disk
        return replace(member, passes=self._undivided.cost().passes, memory=memory, disk=disk)

    def passes(self, get: Get) -> float:
        return self._undivided.passes(get)

    @property
    def _undivided(self) -> Node[Scores]:
        """The scores from all draws in one group, which take the same passes: each draw is in one group."""
        estimator = replace(self.estimator, draws=replace(self.estimator.draws, replicates=1))
        return estimator.scores(self.trained, self.train, self.queries)

    def compute(self, get: Get) -> Scores:
        members = self.members
        first = members[0][0].compute(get)
        *axes_of, Q, N = first.values.shape
        cross = np.empty((*axes_of, len(members), len(members[0]), Q, N), np.float32)
        for r, row in enumerate(members):
            for s, member in enumerate(row):
                cross[..., r, s, :, :] = first.values if r == s == 0 else member.compute(get).values
        axes = {**first.axes, **({"draws": self.estimator.draws.prefixes} if "draws" in first.axes else {})}
        values = cross.mean((-4, -3), dtype=np.float64).astype(np.float32)
        return Scores(values, first.query_index, first.train_index, axes, cross=cross)


def parts_of(members: Sequence[Sequence[Node]], get: Get) -> list[Node]:
    """The parts of all cross scores together, so that those with the same group of draws on a side share its passes."""
    return _distinct(part for row in members for member in row for part in member.parts(get))


def _distinct(nodes: Iterable[Node]) -> list[Node]:
    return list({node.fingerprint: node for node in nodes}.values())


AUTOMATIC = (4, 5, 3, 2)
"""The numbers of groups of ``replicates="auto"``: the first that the estimator and its draws accept."""
LEAST_DRAWS = 4
"""The fewest draws of such a group."""
MOST_BYTES = 2e9
"""The largest size of the gradients of all queries, which are held for each group, for which ``replicates="auto"`` makes groups."""
MOST_PAIRS = 2_000_000
"""The largest number of scores for which ``replicates="auto"`` makes groups, whose cross scores are stored."""


def in_groups(estimator: Estimator, trained: Trained, queries: int, train: int) -> Estimator:
    """``estimator`` with its draws in groups, if their number was left open (``replicates="auto"``) and groups cost little.

    So are those of the estimators that it is made of. ``queries`` and ``train`` are the numbers of images on either side. The rule
    depends on nothing but what defines the scores.
    """
    estimator = estimator.of_parts(lambda part: in_groups(part, trained, queries, train))
    draws = getattr(estimator, "draws", None)
    if not isinstance(draws, DrawScheme) or not draws.automatic or not estimator.REPLICATED:
        return estimator
    if queries * trained.parameter_count * FLOAT32_BYTES > MOST_BYTES or queries * train > MOST_PAIRS:
        return estimator
    fewest = min(draws.side(side).count for side in ("query", "train"))
    for number in AUTOMATIC:
        if fewest >= LEAST_DRAWS * number:
            try:
                return replace(estimator, draws=replace(draws, replicates=number))  # pyright: ignore[reportCallIssue, reportArgumentType]
            except FieldError:  # a cosine, bins, several numbers of draws, or one that is not divisible
                continue
    return estimator


def with_replicates(estimator: Estimator, node: Node[Scores]) -> Node[Scores]:
    """``node``, the scores of ``estimator``, or the scores with replicates if its draws have several."""
    draws = getattr(estimator, "draws", None)
    if not isinstance(draws, DrawScheme) or draws.replicates == 1:
        return node
    assert isinstance(node, ShardedScores)
    return ReplicatedScores(node.estimator, node.train, node.queries, node.trained)  # pyright: ignore[reportAttributeAccessIssue]
