"""Precision by source (ReTrac §6.1): pure functions.

Q queries of one source, N training examples; ``in_source [N]`` marks the training examples of that source.
"""

import numpy as np

from experiments.metrics.ranking import mean_ranks


def source_precision(top: np.ndarray, in_source: np.ndarray, k: int) -> np.ndarray:
    """The share of the first k proponents that are from the query's source: ``top [Q, K], [N] -> [Q]``, K >= k."""
    return in_source[top[:, :k]].mean(1)


def random_precision(in_source: np.ndarray) -> float:
    """The precision that scores at random reach on average, for every k."""
    return float(in_source.mean())


def maximum_precision(in_source: np.ndarray, k: int) -> float:
    """The largest possible precision: 1, or less where the source has fewer than k examples."""
    return min(1.0, float(in_source.sum()) / k)


def auroc(scores: np.ndarray, in_source: np.ndarray) -> np.ndarray:
    """The share of pairs (inside, outside) in which the example inside the source has the larger score: ``[Q, N], [N] -> [Q]``.

    Equal scores count one half.
    """
    inside, outside = int(in_source.sum()), int((~in_source).sum())
    ranks = mean_ranks(np.asarray(scores))[:, in_source]
    return (ranks.sum(1) - inside * (inside - 1) / 2) / (inside * outside)


def first_rank(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The rank, from 1, of the best of the ``chosen`` training examples: ``[Q, N], bool [N] -> [Q]``.

    It ranks behind other examples that have the same score.
    """
    best = np.asarray(scores)[:, chosen].max(1, keepdims=True)
    return 1 + (np.asarray(scores)[:, ~chosen] >= best).sum(1)


def random_first_rank(chosen: np.ndarray) -> float:
    """The mean of :func:`first_rank` for scores at random: (N + 1)/(n + 1) for n of N chosen examples."""
    return (len(chosen) + 1) / (int(chosen.sum()) + 1)
