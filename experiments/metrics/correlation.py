"""Correlations between rows of numbers: pure functions."""

import numpy as np

from experiments.metrics.ranking import mean_ranks, refuse_nan

_BLOCK = 1 << 20
"""Elements that are ranked at once: bounds memory and fits the cache."""


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis: ``[.., N], [.., N] -> [..]`` float64.

    Equal values share their mean rank. The correlation is NaN if all values on one side are equal. Temporary memory is bounded.

    Raises:
        ValueError: the shapes differ, or a value is NaN.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise ValueError(f"rank correlation of {first.shape} with {second.shape}: the shapes must be equal")
    N = first.shape[-1]
    a, b = first.reshape(-1, N), second.reshape(-1, N)
    result = np.empty(len(a))
    rows = max(1, _BLOCK // max(1, N))
    for start in range(0, len(a), rows):
        for side in (a, b):
            refuse_nan(side[start : start + rows], start)
        x, y = (mean_ranks(side[start : start + rows]) - (N - 1) / 2 for side in (a, b))
        covariance = np.einsum("rn,rn->r", x, y)
        scale = np.sqrt(np.einsum("rn,rn->r", x, x) * np.einsum("rn,rn->r", y, y))
        result[start : start + rows] = np.divide(covariance, scale, out=np.full(len(x), np.nan), where=scale > 0)
    return np.clip(result, -1, 1).reshape(first.shape[:-1])


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis: ``[.., N], [.., N] -> [..]`` float64; NaN if one side is constant."""
    x, y = (side - side.mean(-1, keepdims=True) for side in (np.asarray(first, np.float64), np.asarray(second, np.float64)))
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.clip(np.divide((x * y).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0), -1, 1)


def split_half_spearman(halves: np.ndarray) -> np.ndarray:
    """The reliability of scores.

    It is Spearman's correlation between the scores from the two halves of the query draws, ``[2, .., Q, N] -> [.., Q]``: the
    reliability of *half* the draws, which understates that of all. It is NaN for a query whose scores are all equal.
    """
    return spearman(halves[0], halves[1])
