"""Metrics of image tracing and outlier detection (Diffusion-ReTrac §6.1, §6.3): pure functions.

Shapes: Q queries, N training examples, B resamples. ``own [N]`` marks the examples that should stand first: those of the query's
source, or the outliers. A resample is a weight for every example ``[B, N]``, how often it was drawn.
"""

import numpy as np

from experiments.metrics.common import Estimate, _mean_ranks, interval


def precision(top: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k proponents that are of the query's own source: ``top [Q, K]``, K >= k, ``own [N] -> [Q]``."""
    return own[top[:, :k]].mean(1)


def random_precision(own: np.ndarray) -> float:
    """What scores at random reach on average, for every k."""
    return float(own.mean())


def maximum_precision(own: np.ndarray, k: int) -> float:
    """1, or less where there are fewer than k such examples."""
    return min(1.0, float(own.sum()) / k)


def auroc(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Share of pairs (own, other) in which the own example has the larger score, equal ones half: ``[Q, N], [N] -> [Q]``."""
    inside, outside = int(own.sum()), int((~own).sum())
    ranks = _mean_ranks(np.asarray(scores))[:, own]
    return (ranks.sum(1) - inside * (inside - 1) / 2) / (inside * outside)


def resamples(own: np.ndarray, count: int = 1000, seed: int = 0) -> np.ndarray:
    """Weights ``[B, N]`` of examples drawn with replacement, as many own and as many other ones as there are.

    Both numbers are part of the experiment's design; so the levels (random, maximum) are the same in every resample.
    """
    random = np.random.default_rng([seed, 0x5E1F])
    weights = np.empty((count, len(own)), np.float32)
    for side in (own, ~own):
        weights[:, side] = random.multinomial(side.sum(), np.full(side.sum(), 1 / side.sum()), size=count)
    return weights


def weighted_share(scores: np.ndarray, own: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Share of own examples among the k largest scores of each resample: ``[N], [N], [B, N] -> [B]``; equal ones in order."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    drawn = weights[:, order].astype(np.float64)
    places = np.clip(k - (drawn.cumsum(1) - drawn), 0, drawn)
    return places @ own[order] / k


def weighted_auroc(scores: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``auroc`` of each resample: ``[N], [N], [B, N] -> [B]``."""
    inside, outside = _by_threshold(scores, own, weights)
    below = outside.sum(1, keepdims=True) - outside.cumsum(1)
    return (inside * (below + outside / 2)).sum(1) / (inside.sum(1) * outside.sum(1))


def weighted_average_precision(scores: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over own examples of the precision at their place, equal scores at one place: ``[N], [N], [B, N] -> [B]``."""
    inside, outside = _by_threshold(scores, own, weights)
    found = inside.cumsum(1)
    reached = found + outside.cumsum(1)
    at = np.divide(found, reached, out=np.zeros_like(found), where=reached > 0)
    return (inside * at).sum(1) / inside.sum(1)


def estimate(value: np.ndarray, resampled: np.ndarray) -> Estimate:
    """The value on the examples themselves with the 95 % percentile interval over resamples."""
    return Estimate(float(value), *interval(resampled))


def _by_threshold(scores: np.ndarray, own: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of own and of other examples at each distinct score, the largest score first: ``[B, D]`` twice."""
    values = -np.asarray(scores, np.float64)
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    inside, outside = (np.where(side, weights, 0)[:, order].astype(np.float64) for side in (own, ~own))
    return np.add.reduceat(inside, first, axis=1), np.add.reduceat(outside, first, axis=1)
