"""The noise ceiling of the LDS: what a perfect predictor reaches, given that training runs differ. Pure functions.

Measurements of a query under two training runs on the same subsets have Pearson's correlation ρ. The mean over K runs then
correlates with its expectation by √(Kρ/(1 + (K-1)ρ)) (Spearman-Brown). For normal numbers, Spearman's correlation over n subsets
has the mean

    g_n(ρ) = 6/(π(n+1)) (arcsin ρ + (n-2) arcsin(ρ/2))                                   (Moran 1948)

so a perfect predictor's LDS over M subsets is g_M(√(Kρ/(1 + (K-1)ρ))), averaged over queries. ρ is estimated from few subsets, so
that this concave function of the estimate of each query, clipped at 0, is several points too low. Here the estimates are first
averaged over queries, without clipping, and the mean is corrected for how much ρ varies between queries and for its own error.
"""

from dataclasses import replace

import numpy as np
from scipy import stats

from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.metrics.estimate import Estimate
from experiments.metrics.lds import SUBSETS, lds, per_query

_GRID = np.linspace(-1, 1, 4001)
_QUANTILES = (np.arange(200) + 0.5) / 200
_SPLITS = 20
"""Random halvings of the subsets from which the variance between queries is estimated."""
_MOST = 0.95
"""The largest variance between queries, as a share of the one that correlations of 0 and 1 would have."""


def noise_ceiling(
    replicates: np.ndarray, bootstrap: Bootstrap, seeds: int | None = None, subsets: int | None = None, axis: str = SUBSETS
) -> Estimate:
    """The LDS of a perfect predictor of the mean over ``seeds`` training runs K, over ``subsets`` subsets M, with its interval.

    ``replicates [K', Q, M']`` are the measurements under K' >= 2 training runs on M' >= 3 subsets. ``seeds`` and ``subsets`` are K'
    and M' unless they are given; ``axis`` names what the M' numbers belong to, if not subsets. The interval is that of the mean
    correlation, over queries and subsets, carried over.
    """
    count, _, repeated = replicates.shape
    K, M = seeds or count, subsets or repeated
    pairs = [(replicates[a], replicates[b]) for a in range(count) for b in range(a)]
    correlation = Statistic.mean([lds(first[None], second[None], bootstrap, axis)[0, 0] for first, second in pairs])
    variance = between_queries(pairs, float(correlation.value))

    def ceiling(r: float) -> float:
        return mean_ceiling(float(pearson_of(r, repeated)), variance, K, M)

    (error, _), estimate = correlation.error(), correlation.estimate()
    r = estimate.value
    # The mean of a curved function of an estimate is off by half the curvature times the variance of the estimate.
    value = 2 * ceiling(r) - (ceiling(r + error) + ceiling(r - error)) / 2 if error > 0 else ceiling(r)
    if not estimate.has_interval:
        return replace(estimate, value=value)
    low, high = ceiling(estimate.low), ceiling(estimate.high)
    return replace(estimate, value=min(max(value, low), high), low=low, high=high)


def spearman_of(correlation: np.ndarray, subsets: int) -> np.ndarray:
    """g_n: the mean Spearman correlation over ``subsets`` pairs of normal numbers with Pearson's ``correlation``."""
    return 6 / (np.pi * (subsets + 1)) * (np.arcsin(correlation) + (subsets - 2) * np.arcsin(correlation / 2))


def pearson_of(mean: float, subsets: int) -> float:
    """The inverse of ``spearman_of``."""
    return float(np.interp(mean, spearman_of(_GRID, subsets), _GRID))


def mean_ceiling(correlation: float, variance: float, seeds: int, subsets: int) -> float:
    """The mean over queries with correlations ρ of a given mean and variance; ρ is taken as beta distributed.

    An estimated variance below 0 raises the mean by as much as its opposite lowers it: then errors of the variance cancel.
    """

    def ceiling(rho: np.ndarray) -> np.ndarray:
        return spearman_of(np.sqrt(seeds * rho / (1 + (seeds - 1) * rho)), subsets)

    if not 0 < correlation < 1:
        return float(np.clip(correlation, 0, 1))
    alike = float(ceiling(np.asarray(correlation)))
    size = min(abs(variance), _MOST * correlation * (1 - correlation))
    if size < 1e-9:
        return alike
    total = correlation * (1 - correlation) / size - 1
    different = float(ceiling(stats.beta.ppf(_QUANTILES, correlation * total, (1 - correlation) * total)).mean())
    return alike - float(np.sign(variance)) * (alike - different)


def between_queries(pairs: list[tuple[np.ndarray, np.ndarray]], correlation: float) -> float:
    """The variance of ρ between queries: the covariance of estimates from two halves of the subsets, whose errors are independent.

    0 for a single query, or if there are fewer than six subsets, whose halves have no correlation to speak of.
    """
    Q, M = pairs[0][0].shape
    half = M // 2
    if Q < 2 or half < 3:
        return 0.0
    random, covariances = np.random.default_rng(0), []
    for _ in range(_SPLITS):
        order = random.permutation(M)
        halves = (order[:half], order[half:])
        first, second = (np.mean([per_query(a[:, rows], b[:, rows]) for a, b in pairs], 0) for rows in halves)
        covariances.append(np.cov(first, second)[0, 1])
    near = np.clip(pearson_of(correlation, M) + np.array([-0.05, 0.05]), -1, 1)
    slopes = [float(np.diff(spearman_of(near, size))[0] / np.diff(near)[0]) for size in (half, M - half)]
    return float(np.mean(covariances)) / (slopes[0] * slopes[1])
