"""What each checkpoint contributes to the scores of an estimator that replays training (ReTrac, appendices B and F.2)."""

from dataclasses import dataclass, replace

import numpy as np

from attribution.estimators.scores import Scores
from attribution.estimators.sharded import with_all_queries
from attribution.estimators.training_trajectory import TrajectoryScores, half_shares
from attribution.nodes import Cost, Get, Node

SHARED = ("attribution.estimators.training_trajectory",)

AXIS = "checkpoint"
"""The axis of the scores; its values are steps."""


@dataclass(frozen=True)
class CheckpointScores(Node[Scores]):
    """``η_k ⟨Q_k(q), G_k(z)⟩`` at each of the S checkpoints of ``scores``, of which these are the sum: ``[S, Q, N]``."""

    NAME = "CheckpointScores"
    VERSION = 1
    TITLE = "scores by checkpoint"
    ARTIFACT = Scores

    scores: TrajectoryScores

    def parts(self, get: Get) -> list[Node]:
        return self.scores.parts(get)

    def cost(self) -> Cost:
        return self.scores.cost()

    def compute(self, get: Get) -> Scores:
        record, shares, steps = get(self.scores.trained), half_shares(self.scores.estimator), self.scores.steps(get)
        contributions = []
        for step in steps:
            products = with_all_queries(get.many(self.scores.batches(step))).astype(np.float64)  # [bin, half, Q, N]
            contributions.append(record.learning_rate(step) * np.tensordot(shares, products.sum(0), 1))
        whole = self.scores.assembled(np.stack(contributions), get)
        return replace(whole, axes={AXIS: steps})
