"""Agreement of models about queries: correlations over queries between the measurements of two models; pure functions."""

import numpy as np

from experiments.metrics.bootstrap import CORRELATION_LIMITS, Bootstrap, Statistic
from experiments.metrics.correlation import pearson
from experiments.metrics.ranking import mean_ranks

_CONSTANT = 1e-12
"""Variances up to this share of that of all queries are 0 except for rounding errors."""


def pearson_agreement(first: np.ndarray, second: np.ndarray, bootstrap: Bootstrap) -> Statistic:
    """Pearson's correlation over queries of ``first [P, Q]`` with ``second [P, Q]``, averaged over the P pairs of models.

    The correlation is 0 in a resample of equal queries.
    """
    Q = first.shape[1]
    x, y = (side - side.mean(1, keepdims=True) for side in (first, second))
    shares = bootstrap.counts("queries", Q) / Q  # [B, Q]
    mean_x, mean_y = shares @ x.T, shares @ y.T  # [B, P]
    covariance = shares @ (x * y).T - mean_x * mean_y
    variance_x, variance_y = shares @ (x * x).T - mean_x**2, shares @ (y * y).T - mean_y**2
    known = (variance_x > _CONSTANT * (x * x).mean(1)) & (variance_y > _CONSTANT * (y * y).mean(1))
    scale = np.sqrt(np.where(known, variance_x * variance_y, 1.0))
    resampled = np.where(known, covariance / scale, 0.0).mean(1)
    return bootstrap.statistic(pearson(first, second).mean(), {"queries": (resampled, Q)}, CORRELATION_LIMITS)


def spearman_agreement(first: np.ndarray, second: np.ndarray, bootstrap: Bootstrap) -> Statistic:
    """Spearman's correlation over queries, averaged over pairs. Ranks are those among all queries, also in resamples."""
    return pearson_agreement(mean_ranks(first), mean_ranks(second), bootstrap)
