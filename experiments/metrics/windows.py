"""Which window of timesteps to draw from, without retraining: pure functions (introduced here).

All timesteps explain the loss over all timesteps, but the lowest have so noisy gradients that few draws tell little. A window has
less noise and leaves out a part of the signal. What counts is how well scores from few draws in a window predict the scores that
endless draws of all timesteps would give. Groups of draws by bins of timesteps show both parts: groups share no noise.
"""

import numpy as np

from experiments.metrics import lds
from experiments.metrics.replicates import Noise

LEAST_RELIABILITY = 0.2
"""The reliability of a window's predictions, with all draws of a pass, below which more draws cannot be extrapolated from them."""


def agreement(predictions: np.ndarray, query: float, train: float) -> np.ndarray:
    """The expected correlation of a window's predictions with those that endless draws of all timesteps would give: ``[B, B]``.

    Entry (a, b) is for the window of bins a..b; it is NaN for b < a, and where the draws say too little. ``predictions
    [R, S, B, B, Q, M]``: for each of R groups of a query's draws and S of a training image's, the part of the prediction over M
    subsets that pairs of (query, training) timesteps in two of B equal bins contribute. ``query`` and ``train``: the draws of
    either side for which to choose, all of them in the window, over those that the groups have together in all bins.

    Let ρ be the correlation of ranks over subsets, averaged over queries and over pairs of groups that share none. For a window w
    it is ρ(x_w, y), with y from all bins, at the noise of one group each. ρ(x_w, x_w) and ρ(y, y) are the reliabilities of one
    group. With r_w the reliability of the window with the given draws, the agreement is

        ρ(x_w, y) · √(r_w / ρ(x_w, x_w)) / √ρ(y, y)

    Raises:
        ValueError: a side has fewer than two groups.
    """
    R, S, B = predictions.shape[:3]
    if min(R, S) < 2:
        raise ValueError(f"{R} and {S} groups of draws: give at least 2 of either side")
    whole = _normalized(predictions.sum((2, 3)))
    of_whole = _apart(whole, whole)
    result = np.full((B, B), np.nan)
    if not of_whole > 0:
        return result
    for first in range(B):
        for last in range(first, B):
            window, more = slice(first, last + 1), B / (last + 1 - first)
            part = predictions[:, :, window, window].sum((2, 3))
            ranks = _normalized(part)
            noise = _noise(part, of_one := _apart(ranks, ranks))
            if noise is not None and noise.reliability(R, S) >= LEAST_RELIABILITY:
                root = np.sqrt(noise.reliability(query * more * R, train * more * S) / (of_one * of_whole))
                result[first, last] = min(1.0, _apart(ranks, whole) * root)
    return result


def best(agreements: np.ndarray) -> tuple[int, int]:
    """The first and the last bin of the window with the largest agreement.

    Raises:
        ValueError: none is known.
    """
    if np.isnan(agreements).all():
        raise ValueError("the draws say nothing about any window")
    first, last = np.unravel_index(np.nanargmax(agreements), agreements.shape)
    return int(first), int(last)


def _noise(predictions: np.ndarray, reliability: float) -> Noise | None:
    """The shares of signal and noise in predictions of one group of either side, which have this reliability; None: unknown.

    The noise is divided between the sides as over all groups (``Noise.of``).
    """
    R, S = predictions.shape[:2]
    shares = Noise.of(predictions)
    if not (np.isfinite(shares.signal) and reliability > 0):
        return None
    parts = np.maximum([shares.query * R, shares.train * S, shares.both * R * S], 0.0)
    total = parts.sum()
    query, train, both = (1 - reliability) * (parts / total if total > 0 else np.zeros(3))
    return Noise(reliability, query, train, both)


def _normalized(predictions: np.ndarray) -> np.ndarray:
    """Centered ranks over subsets of length 1, or 0 where all are equal."""
    ranks = lds.centered_ranks(predictions)
    length = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)


def _apart(x: np.ndarray, y: np.ndarray) -> float:
    """The mean of ``x_rs · y_uv`` over queries and all r ≠ u and s ≠ v, for ``[R, S, Q, M]``."""
    R, S, Q, _ = x.shape
    same = (x * y).sum((0, 1, 3))
    same_r, same_s = ((x.sum(side) * y.sum(side)).sum((0, 2)) for side in (1, 0))
    every = (x.sum((0, 1)) * y.sum((0, 1))).sum(1)
    return float((every - same_r - same_s + same).sum() / (Q * R * (R - 1) * S * (S - 1)))
