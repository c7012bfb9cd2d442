"""Precision by source (ReTrac §6.1), and of single training images that should be found: pure functions.

Q queries of one source, N training examples; ``in_source [N]`` marks the training examples of that source.
"""

import numpy as np

from experiments.metrics.ranking import mean_ranks, top_k
from experiments.metrics.weighted_ranking import WeightedRanking


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


def recall(scores: np.ndarray, chosen: np.ndarray, k: int) -> np.ndarray:
    """The share of the ``chosen`` training examples that are among the top k: ``[Q, N], bool [Q, N] -> [Q]``."""
    return np.take_along_axis(chosen, top_k(scores, k), 1).sum(1) / chosen.sum(1)


def average_precision(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The mean over the ``chosen`` examples of the precision at their score: ``[Q, N], bool [Q, N] -> [Q]``."""
    alike = np.ones((1, scores.shape[1]))
    pairs = zip(scores, chosen, strict=True)
    return np.array([WeightedRanking.of(of_query, found, alike).average_precision()[0] for of_query, found in pairs])


def random_average_precision(chosen: int, examples: int) -> float:
    """The mean of :func:`average_precision` for scores at random, with n ``chosen`` of N ``examples``.

    At rank i it is (1 + (i - 1)(n - 1)/(N - 1))/i; the mean over i is (H + (n - 1)/(N - 1) (N - H))/N with H = Σ 1/i.
    """
    harmonic = float((1 / np.arange(1, examples + 1)).sum())
    return (harmonic + (chosen - 1) / max(1, examples - 1) * (examples - harmonic)) / examples
