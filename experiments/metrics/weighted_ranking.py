"""Metrics of one ranking of examples in every resample of the examples (ReTrac §6.3).

N examples, P of which are positive (the outliers); B resamples, each with a weight for every example: how often it is drawn.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class WeightedRanking:
    """Examples by descending score. All metrics follow from cumulative weights at the positive examples.

    For each positive example, ``[B, P]`` each: ``weight``: its weight; ``before``: total weight of the examples ranked ahead of it;
    ``above``: total weight of the examples with a larger score; ``up_to``: total weight of those with a score at least as large.
    ``positives_above`` and ``positives_up_to`` count positive examples only. ``total [B, 1]`` is the weight of all examples.
    """

    weight: np.ndarray
    before: np.ndarray
    above: np.ndarray
    up_to: np.ndarray
    positives_above: np.ndarray
    positives_up_to: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> "WeightedRanking":
        """Rank by ``scores [N]``, ties in their order; ``positive [N]`` bool, ``weights [B, N]``."""
        descending = -np.asarray(scores, np.float64)
        order = np.argsort(descending, kind="stable")
        descending, places = descending[order], np.flatnonzero(positive[order])
        drawn = weights[:, order]
        cumulative = _from_zero(drawn)
        positives = _from_zero(drawn[:, places])
        # The places at which the group of equal scores begins and ends, for each positive example.
        begin, end = (np.searchsorted(descending, descending[places], side) for side in ("left", "right"))
        return cls(
            weight=drawn[:, places],
            before=cumulative[:, places],
            above=cumulative[:, begin],
            up_to=cumulative[:, end],
            positives_above=positives[:, np.searchsorted(places, begin)],
            positives_up_to=positives[:, np.searchsorted(places, end)],
            total=cumulative[:, -1:],
        )

    def share(self, k: int) -> np.ndarray:
        """The share of positive examples among the first k, ``[B]``. An example that is drawn w times takes w places."""
        return np.clip(k - self.before, 0, self.weight).sum(1) / k

    def auroc(self) -> np.ndarray:
        """The share of pairs (positive, other) in which the positive example has the larger score, equal ones half: ``[B]``."""
        positives = self.weight.sum(1, keepdims=True)
        others = self.total - positives
        below = others - (self.up_to - self.positives_up_to)
        equal = (self.up_to - self.above) - (self.positives_up_to - self.positives_above)
        return (self.weight * (below + equal / 2)).sum(1) / (positives * others)[:, 0]

    def average_precision(self) -> np.ndarray:
        """The mean over positive examples of the precision at their score: ``[B]``."""
        at = np.divide(self.positives_up_to, self.up_to, out=np.zeros_like(self.up_to), where=self.up_to > 0)
        return (self.weight * at).sum(1) / self.weight.sum(1)


def _from_zero(weights: np.ndarray) -> np.ndarray:
    """The cumulative sums of ``[B, n]`` with a 0 before: ``[B, n + 1]``."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums
