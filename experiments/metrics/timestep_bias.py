"""Metrics of the timestep-induced norm bias (ReTrac §4.2, app. A.4): pure functions.

Shapes: Q queries, N training examples, P of them looked at (``positions [P]``, their columns), n pairs of a correlation. Ranks
count from 1, the largest.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom, spearmanr

from experiments.metrics.common import Estimate, interval, spearman


class Correlation(NamedTuple):
    """Spearman's ρ with its p value, and the slope and intercept of the least-squares line; NaN where a side is constant."""

    rho: Estimate
    p: float
    slope: Estimate
    intercept: float


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the largest, ``[N] -> [N]`` int64; of equal values the first is the larger."""
    result = np.empty(len(values), np.int64)
    result[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return result


def algorithm_1(distance: np.ndarray, rank: np.ndarray, resamples: int = 1000, seed: int = 0) -> Correlation:
    """Algorithm 1: Spearman between |t_max(x) - t_train(x)| and the rank of x's gradient norm in the training set, ``[n]`` each.

    The line is of the rank against the distance. Intervals: 95 % bootstrap percentiles over the examples; p: two-sided (SciPy).
    """
    x, y = np.asarray(distance, np.float64), np.asarray(rank, np.float64)
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        unknown = Estimate(np.nan, np.nan, np.nan)
        return Correlation(unknown, np.nan, unknown, np.nan)
    drawn = np.random.default_rng([seed, 0xA1]).integers(len(x), size=(resamples, len(x)))
    rho, slopes = spearman(x[drawn], y[drawn]), _slopes(x[drawn], y[drawn])
    test: Any = spearmanr(x, y)
    slope = float(_slopes(x[None], y[None])[0])
    return Correlation(
        Estimate(float(test.statistic), *interval(rho[~np.isnan(rho)])),
        float(test.pvalue),
        Estimate(slope, *interval(slopes[~np.isnan(slopes)])),
        float(y.mean() - slope * x.mean()),
    )


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the least-squares line through each row, ``[B, n], [B, n] -> [B]``."""
    centred = x - x.mean(1, keepdims=True)
    scale = (centred**2).sum(1)
    return np.divide((centred * y).sum(1), scale, out=np.full(len(x), np.nan), where=scale > 0)


def explained(timestep: np.ndarray, norm: np.ndarray, T: int, stretches: int) -> float:
    """Share of the variance of log ‖∇‖ between ``stretches`` equal stretches of 1..T (correlation ratio η²), ``[n], [n]``.

    1: the timestep says all; norms that do not depend on it reach about (stretches - 1)/(n - 1).
    """
    logs = np.log(np.maximum(norm, np.finfo(np.float64).tiny))
    stretch = (timestep - 1) * stretches // T
    count = np.bincount(stretch, minlength=stretches)
    means = np.bincount(stretch, logs, stretches) / np.maximum(count, 1)
    total = ((logs - logs.mean()) ** 2).sum()
    return float((count * (means - logs.mean()) ** 2).sum() / total) if total > 0 else np.nan


def resampled_explained(
    timestep: np.ndarray, norm: np.ndarray, T: int, stretches: int, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """``explained`` with its bootstrap interval over examples."""
    drawn = np.random.default_rng([seed, 0xA2]).integers(len(norm), size=(resamples, len(norm)))
    spread = [explained(timestep[some], norm[some], T, stretches) for some in drawn]
    return Estimate(explained(timestep, norm, T, stretches), *interval(spread))


def neutral(scores: np.ndarray, count: int) -> np.ndarray:
    """Which ``count`` scores of each query are nearest 0, ``[Q, P] -> [Q, P]`` bool: "uninfluential" (ReTrac §4.2)."""
    nearest = np.argsort(np.abs(scores), axis=1, kind="stable")[:, :count]
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, nearest, True, axis=1)
    return chosen


def rank_among(scores: np.ndarray, positions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ranks that |values| would have among the other examples' |scores|: ``[Q, N], [P], [Q, P] -> [Q, P]``.

    One example is changed at a time. An example's own score gives its true rank.
    """
    magnitudes = np.sort(np.abs(scores.astype(np.float64)), axis=1)
    found = np.empty(values.shape, np.int64)
    for row, (ascending, own, new) in enumerate(zip(magnitudes, scores[:, positions], values, strict=True)):
        new, own = np.abs(new.astype(np.float64)), np.abs(own.astype(np.float64))
        larger = len(ascending) - np.searchsorted(ascending, new, side="right")
        found[row] = 1 + larger - (own > new)
    return found


class PairResamples(NamedTuple):
    """How often a bootstrap draws each query ``[B, Q]`` and each example ``[B, P]``: one for all that is compared."""

    queries: np.ndarray
    examples: np.ndarray

    @classmethod
    def draw(cls, queries: int, examples: int, count: int = 1000, seed: int = 0) -> "PairResamples":
        random = np.random.default_rng([seed, 0xA3])
        return cls(*(random.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64) for n in (queries, examples)))

    def mean(self, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Mean of ``values [Q, P]`` where ``chosen`` in every resample: ``[B]``; NaN where it drew none of them."""
        sides = (np.where(chosen, values, 0.0), chosen.astype(np.float64))
        total, count = (((self.queries @ side) * self.examples).sum(1) for side in sides)
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def mean_where(values: np.ndarray, chosen: np.ndarray, resamples: PairResamples) -> Estimate:
    """Mean of ``values [Q, P]`` where ``chosen``, with a 95 % bootstrap interval over queries and over examples."""
    spread = resamples.mean(values, chosen)
    return Estimate(float(values[chosen].mean()), *interval(spread[~np.isnan(spread)]))


def difference_where(
    first: np.ndarray, chosen_first: np.ndarray, second: np.ndarray, chosen_second: np.ndarray, resamples: PairResamples
) -> Estimate:
    """``mean_where`` of the first minus that of the second, on the same resamples."""
    spread = resamples.mean(first, chosen_first) - resamples.mean(second, chosen_second)
    value = first[chosen_first].mean() - second[chosen_second].mean()
    return Estimate(float(value), *interval(spread[~np.isnan(spread)]))


def most_frequent(top: np.ndarray) -> int:
    """The position of the example that is in the top k of the most queries, ``[Q, k]``; of several the first."""
    return int(np.bincount(top.ravel()).argmax())


def random_most_frequent(queries: int, examples: int, k: int) -> float:
    """Its share of the queries where scores are random, on average: Σ_c P(max > c)/Q, examples taken as independent."""
    within = binom.cdf(np.arange(queries), queries, k / examples)
    return float((1 - within**examples).sum() / queries)
