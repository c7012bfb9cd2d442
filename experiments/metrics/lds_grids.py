"""LDS of every pair of prediction and target, with its uncertainty: pure functions.

Shapes: P predictions and T targets of Q queries under M subsets, K training seeds, B bootstrap resamples.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from experiments.metrics.common import Estimate, interval
from experiments.metrics.lds import Resamples, per_query, resampled


@dataclass(frozen=True)
class Grid:
    """``values [P, T]``: mean LDS over queries; ``spread [B, P, T]``: the same in every resample.

    Grids on the same resamples are paired: ``a - b`` has the spread of the difference.
    """

    values: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, predictions: np.ndarray, measured: np.ndarray, resamples: Resamples) -> Self:
        """Of ``predictions [P, Q, M]`` and ``measured [T, Q, M]``."""
        values = [[per_query(prediction, target).mean() for target in measured] for prediction in predictions]
        spread = [[resampled(prediction, target, resamples) for target in measured] for prediction in predictions]
        return cls(np.array(values), np.moveaxis(np.array(spread), 2, 0))

    @classmethod
    def retraining(cls, measured: np.ndarray, resamples: Resamples) -> Self:
        """Exact retraining: what each seed measures predicts the mean of the others; ``[K, T, Q, M]``, K >= 2, mean over seeds."""
        grids = [cls.of(own, np.delete(measured, k, 0).mean(0), resamples) for k, own in enumerate(measured)]
        return cls(_mean(grid.values for grid in grids), _mean(grid.spread for grid in grids))

    def __sub__(self, other: "Grid") -> "Grid":
        return Grid(self.values - other.values, self.spread - other.spread)

    def at(self, prediction: int, target: int) -> Estimate:
        """One pair."""
        return Estimate(float(self.values[prediction, target]), *interval(self.spread[:, prediction, target]))

    def combined(self, weights: np.ndarray) -> Estimate:
        """``Σ weights · values`` over the first pairs, as many as ``weights [p, t]`` has."""
        p, t = weights.shape
        value = (weights * self.values[:p, :t]).sum()
        return Estimate(float(value), *interval((weights * self.spread[:, :p, :t]).sum((1, 2))))


def diagonal(n: int) -> np.ndarray:
    """Weights of the mean over targets, each predicted by its own: ``[n, n]``."""
    return np.eye(n) / n


def neighbours(n: int) -> np.ndarray:
    """Weights of the mean over targets of the mean over the predictions beside their own, n >= 2."""
    return _mean_over_targets(_distance(n) == 1)


def farther(n: int) -> np.ndarray:
    """Weights of the mean over targets of the mean over the predictions that are neither their own nor beside it, n >= 4."""
    return _mean_over_targets(_distance(n) >= 2)


def later(n: int) -> np.ndarray:
    """Weights of the diagonal's second half minus its first, n >= 2; the middle of an odd number is left out."""
    half = n // 2
    return np.diag([-1 / half] * half + [0.0] * (n % 2) + [1 / half] * half)


def _distance(n: int) -> np.ndarray:
    return np.abs(np.arange(n)[:, None] - np.arange(n))


def _mean_over_targets(pairs: np.ndarray) -> np.ndarray:
    return pairs / pairs.sum(0) / len(pairs)


def _mean(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.mean(list(arrays), 0)
