"""Metrics of the timestep-induced norm bias (ReTrac §4.2, app. A.4): pure functions.

Shapes: Q queries, N training examples, P examples whose scores are changed, at ``positions [P]``; n examples of a correlation; B
resamples. Ranks count from 1, the largest.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom, spearmanr

from experiments.metrics.bootstrap import CORRELATION_LIMITS, SHARE_LIMITS, Bootstrap, Statistic
from experiments.metrics.correlation import spearman
from experiments.metrics.estimate import Estimate


@dataclass(frozen=True, eq=False)
class Correlation:
    """``distance [n]`` against ``rank [n]``: Spearman's ρ with its p-value, and the least-squares line of the rank.

    ρ and the line are NaN if one side is constant.
    """

    distance: np.ndarray
    rank: np.ndarray
    rho: Estimate
    p: float
    slope: Estimate
    intercept: float


def algorithm_1(distance: np.ndarray, rank: np.ndarray, bootstrap: Bootstrap) -> Correlation:
    """Compute Algorithm 1 of ReTrac.

    Spearman's correlation between |t_max(x) − t_train(x)| and the rank of x's gradient norm in the training set, ``[n]`` each.
    Intervals are over examples, which are re-ranked in every resample; the p-value is two-sided (SciPy).
    """
    x, y = np.asarray(distance, np.float64), np.asarray(rank, np.float64)
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        unknown = Estimate(np.nan)
        return Correlation(distance, rank, unknown, np.nan, unknown, np.nan)
    drawn = _indices(bootstrap.counts("examples", len(x)))
    test: Any = spearmanr(x, y)
    rho = bootstrap.statistic(test.statistic, {"examples": (spearman(x[drawn], y[drawn]), len(x))}, CORRELATION_LIMITS).estimate()
    slope = bootstrap.statistic(_slopes(x[None], y[None])[0], {"examples": (_slopes(x[drawn], y[drawn]), len(x))}).estimate()
    return Correlation(distance, rank, rho, float(test.pvalue), slope, float(y.mean() - slope.value * x.mean()))


def _indices(counts: np.ndarray) -> np.ndarray:
    """The indices that are drawn ``counts [B, n]`` times: ascending, ``[B, n]``."""
    resamples, n = counts.shape
    return np.repeat(np.tile(np.arange(n), resamples), counts.ravel().astype(np.int64)).reshape(resamples, n)


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The slope of the least-squares line through each row, ``[B, n], [B, n] -> [B]``."""
    centered = x - x.mean(1, keepdims=True)
    scale = (centered**2).sum(1)
    return np.divide((centered * y).sum(1), scale, out=np.full(len(x), np.nan), where=scale > 0)


def explained(timestep: np.ndarray, norm: np.ndarray, T: int, stretches: int, bootstrap: Bootstrap) -> Statistic:
    """The share of the variance of log ‖∇‖ between ``stretches`` equal stretches of 1..T (correlation ratio η²), ``[n], [n]``.

    It is 1 where the timestep determines the norm, and about (stretches − 1)/(n − 1) where the norm does not depend on it. The
    spread is over examples.
    """
    logs = np.log(np.maximum(norm, np.finfo(np.float64).tiny))
    logs -= logs.mean()
    membership = np.eye(stretches)[(timestep - 1) * stretches // T]  # [n, stretches]
    blocks = [_explained(counts, logs, membership) for counts in bootstrap.blocks("examples", len(logs))]
    value = _explained(np.ones((1, len(logs))), logs, membership)[0]
    return bootstrap.statistic(value, {"examples": (np.concatenate(blocks), len(logs))}, SHARE_LIMITS)


def _explained(counts: np.ndarray, logs: np.ndarray, membership: np.ndarray) -> np.ndarray:
    """η² in every resample ``[B]``; NaN where all numbers are equal. ``logs`` have mean 0 for the sake of precision."""
    n = len(logs)
    mean = counts @ logs / n
    total = counts @ logs**2 - n * mean**2
    sizes, sums = counts @ membership, counts @ (membership * logs[:, None])
    between = (np.divide(sums**2, sizes, out=np.zeros_like(sums), where=sizes > 0)).sum(1) - n * mean**2
    return np.divide(between, total, out=np.full(len(counts), np.nan), where=total > 1e-12 * (logs**2).sum())


def neutral(scores: np.ndarray, count: int) -> np.ndarray:
    """Whether a score is among the ``count`` of its query that are nearest 0, ``[Q, P]`` bool: "uninfluential" (ReTrac §4.2)."""
    nearest = np.argsort(np.abs(scores), axis=1, kind="stable")[:, :count]
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, nearest, True, axis=1)
    return chosen


def rank_among(scores: np.ndarray, positions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ranks that |values| would have among the other examples' |scores|: ``[Q, N], [P], [Q, P] -> [Q, P]``.

    One example is changed at a time. An example's current score gives its current rank.
    """
    magnitudes = np.sort(np.abs(scores.astype(np.float64)), axis=1)
    result = np.empty(values.shape, np.int64)
    for row, (ascending, current, new) in enumerate(zip(magnitudes, scores[:, positions], values, strict=True)):
        new, current = np.abs(new.astype(np.float64)), np.abs(current.astype(np.float64))
        larger = len(ascending) - np.searchsorted(ascending, new, side="right")
        result[row] = 1 + larger - (current > new)
    return result


def most_frequent(top: np.ndarray) -> int:
    """The position of the example that is in the top k of the most queries, ``[Q, k]``; the first of several."""
    return int(np.bincount(top.ravel()).argmax())


def random_most_frequent(queries: int, examples: int, k: int) -> float:
    """The mean share of the queries that have ``most_frequent`` in their top k, for random scores.

    It is Σ_c P(max > c)/Q, where max is the largest number of queries of any example and examples are taken as independent.
    """
    within = binom.cdf(np.arange(queries), queries, k / examples)
    return float((1 - within**examples).sum() / queries)
