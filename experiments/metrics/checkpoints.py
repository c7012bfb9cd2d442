"""Metrics of what single checkpoints contribute to scores (ReTrac §6.1, app. B, F.2): pure functions.

``contributions [S, Q, N]``: the part of each score that comes from each of S checkpoints; the scores are their sum.
"""

import numpy as np

from experiments.metrics.ranking import top_k


def largest_share(contributions: np.ndarray) -> np.ndarray:
    """The share of Σ_s |c_s| that comes from the checkpoint with the largest |c_s|: ``[S, Q, N] -> [Q, N]``, 1/S to 1.

    A score of which every contribution is 0 has equal shares.
    """
    sizes = np.abs(np.asarray(contributions, np.float64))
    total = sizes.sum(0)
    return np.divide(sizes.max(0), total, out=np.full(total.shape, 1 / len(sizes)), where=total > 0)


def largest_checkpoint(contributions: np.ndarray) -> np.ndarray:
    """The position of the checkpoint that adds most to each score: ``[S, Q, N] -> [Q, N]``; the first of equal ones."""
    return np.asarray(contributions).argmax(0)


def overlap_with_one(contributions: np.ndarray, k: int) -> np.ndarray:
    """The share of the top k of the scores that is also in the top k of one checkpoint alone: ``[S, Q, N] -> [Q]``.

    The checkpoint is the one with the largest such share for the query.
    """
    values = np.asarray(contributions, np.float64)
    tops = [members(top_k(of_checkpoint, k), values.shape[2]) for of_checkpoint in values]
    whole = members(top_k(values.sum(0), k), values.shape[2])
    return np.max([(top & whole).sum(1) for top in tops], axis=0) / k


def members(top: np.ndarray, examples: int) -> np.ndarray:
    """Which of N examples are in each row of ``top``: ``[Q, k] -> [Q, N]`` bool."""
    inside = np.zeros((len(top), examples), dtype=bool)
    np.put_along_axis(inside, top, True, axis=1)
    return inside


def at_checkpoint(values: np.ndarray, checkpoint: np.ndarray) -> np.ndarray:
    """The value of each example at a checkpoint that depends on the query: ``[S, N], [Q, N] -> [Q, N]``."""
    return np.take_along_axis(values, checkpoint, axis=0)


def mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of each column over the queries that ``where`` marks, or over all if it marks none: ``[Q, N], [Q, N] -> [N]``."""
    chosen = np.where(where.any(0), where, True)
    return (values * chosen).sum(0) / chosen.sum(0)
