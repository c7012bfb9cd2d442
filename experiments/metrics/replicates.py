"""What groups of draws say about scores: standard errors, reliability, and what more draws would buy. Pure functions.

``cross [.., R, S, ..]`` has one value for each of R groups of a query's draws and S groups of a training image's. Both groups are
random and crossed, so every value is

    x_rs = x + a_r + b_s + e_rs

with independent deviations of variances σ_a², σ_b², σ_e²; the estimate is the mean over r and s. S is 1 if training images have
no groups; b and e are then unknown and taken as 0. The noise of curvatures and kernels, which come from all draws, is not in it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from experiments.metrics import lds
from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.metrics.estimate import LEVEL

QUERY_DRAWS, TRAINING_DRAWS = "query draws", "training draws"
"""The axes that are resampled."""


def standard_errors(cross: np.ndarray) -> np.ndarray:
    """The standard error of the mean of ``cross [R, S, ..]``: ``[..]`` float64.

    It is the two-way jackknife over groups (delete one r, delete one s), less what both count: ``Var = J_r + J_s - J_rs`` with

        J_r = Σ_r (x̄_r - x̄)² / (R (R - 1)),   J_s alike,   J_rs = Σ_rs (x_rs - x̄_r - x̄_s + x̄)² / (RS (R - 1)(S - 1)),

    whose expectation is ``σ_a²/R + σ_b²/S + σ_e²/(RS)``. Where the difference is below ``J_rs``, that is taken, so that errors are
    somewhat too large where σ_e dominates.
    """
    cross = cross.astype(np.float64)
    R, S = cross.shape[:2]
    mean, by_query, by_train = cross.mean((0, 1)), cross.mean(1), cross.mean(0)
    of_query = ((by_query - mean) ** 2).sum(0) / (R * (R - 1))
    if S == 1:
        return np.sqrt(of_query)
    of_train = ((by_train - mean) ** 2).sum(0) / (S * (S - 1))
    rest = cross - by_query[:, None] - by_train[None] + mean
    of_both = (rest**2).sum((0, 1)) / (R * S * (R - 1) * (S - 1))
    return np.sqrt(np.maximum(of_query + of_train - of_both, of_both))


def errors_and_band(cross: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The standard error of each score ``[Q, N]``, and half the width of its 95 % interval, from ``cross [R, S, Q, N]``.

    Student's t has the degrees of freedom of the side with fewer groups. A score within the band around 0 may be noise.
    """
    (R, S), errors = cross.shape[:2], standard_errors(cross)
    return errors, stats.t.ppf((1 + LEVEL) / 2, (R if S == 1 else min(R, S)) - 1) * errors


def membership(cross: np.ndarray, k: int, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray]:
    """How often each training image is among the ``k`` largest scores of its query, and the ``k`` smallest: ``[Q, N]`` each.

    It is a share of resamples of the groups, which draw those of either side with replacement. ``cross [R, S, Q, N]``. Deviations
    from the mean are enlarged by √(R/(R - 1)) and √(S/(S - 1)), because resamples of few groups scatter too little.
    """
    R, S, Q, N = cross.shape
    mean = cross.mean((0, 1), dtype=np.float64)
    deviations = [(cross.mean(1 - side, dtype=np.float64) - mean) * np.sqrt(n / max(1, n - 1)) for side, n in enumerate((R, S))]
    shares = [_shares(bootstrap, axis, n) for axis, n in ((QUERY_DRAWS, R), (TRAINING_DRAWS, S))]
    largest, smallest, k = np.zeros((Q, N)), np.zeros((Q, N)), min(k, N)
    for r, s in zip(*shares, strict=True):
        drawn = mean + np.tensordot(r, deviations[0], 1) + np.tensordot(s, deviations[1], 1)
        for inside, ranked in ((largest, -drawn), (smallest, drawn)):
            np.add.at(inside, (np.arange(Q)[:, None], np.argpartition(ranked, k - 1, axis=1)[:, :k]), 1)
    return largest / len(shares[0]), smallest / len(shares[0])


@dataclass(frozen=True)
class Noise:
    """The shares of the variance of predictions over subsets, which add up to 1, with the numbers of draws that were taken.

    The variance is that of ranks, as the LDS is a correlation of ranks. The variance of the predictions themselves is
    dominated by few draws with large gradients, and makes them look noisier than their LDS is.

    ``signal``: what endless draws would leave, which is the reliability (Spearman-Brown). ``query``, ``train`` and ``both``: the
    noise of the draws of queries, of those of training images, and of their combination. All are NaN if predictions are equal.
    """

    signal: float
    query: float
    train: float
    both: float

    @classmethod
    def of(cls, predictions: np.ndarray) -> "Noise":
        """From cross predictions ``[R, S, Q, M]`` over M subsets; a mean over queries.

        The signal of a query is the covariance over subsets of predictions that share no group, which no noise enters.
        """
        R, S, _, M = predictions.shape
        x = lds.centered_ranks(predictions)
        # Sums over all pairs, over those with the same r, the same s and both, from sums of predictions: [Q] each.
        all_, same_r, same_s, same = (
            (sums**2).sum((0, 1, 3)) / (M - 1)
            for sums in (x.sum((0, 1), keepdims=True), x.sum(1, keepdims=True), x.sum(0, keepdims=True), x)
        )
        total = same / (R * S)
        if S == 1:
            apart = (all_ - same) / (R * (R - 1))
            query, train, both = total - apart, np.zeros_like(total), np.zeros_like(total)
        else:
            apart = (all_ - same_r - same_s + same) / (R * (R - 1) * S * (S - 1))
            query = (same_r - same) / (R * S * (S - 1)) - apart
            train = (same_s - same) / (S * R * (R - 1)) - apart
            both = total - apart - query - train
        parts = np.broadcast_arrays(apart, query / R, train / S, both / (R * S))
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.stack(parts) / np.sum(parts, 0)
        known = np.isfinite(shares).all(0)
        return cls(*(shares[:, known].mean(1) if known.any() else np.full(4, np.nan)).tolist())

    def clipped(self) -> "Noise":
        """The shares without estimates below 0, which add up to 1."""
        parts = np.maximum([self.signal, self.query, self.train, self.both], 0.0)
        return Noise(*(parts / parts.sum()).tolist())

    def reliability(self, query: float, train: float) -> float:
        """The reliability with ``query`` and ``train`` times the draws of either side (``inf``: endless)."""
        share = self.clipped()
        noise = share.query / query + share.train / train + share.both / (query * train)
        return share.signal / (share.signal + noise) if share.signal > 0 else 0.0

    def expected(self, value: float, query: float, train: float) -> float:
        """The LDS with other numbers of draws, if it is ``value`` with those taken: it goes with the root of the reliability."""
        now = self.reliability(1, 1)
        return value * np.sqrt(self.reliability(query, train) / now) if now > 0 else np.nan


def with_draws(
    statistic: Statistic, predictions: np.ndarray, target: np.ndarray, bootstrap: Bootstrap, ranked: bool = True
) -> Statistic:
    """The mean LDS over queries, one number, with its deviations for other draws of either side too.

    ``predictions [R, S, Q, M]``, ``target [Q, M]``; without ``ranked`` the correlation is Pearson's.
    """
    for side, (axis, n) in enumerate(((QUERY_DRAWS, predictions.shape[0]), (TRAINING_DRAWS, predictions.shape[1]))):
        if n == 1:
            continue
        of_groups = predictions.mean(1 - side)  # [n, Q, M]
        without = [lds.per_query(np.delete(of_groups, group, 0).mean(0), target, ranked).mean() for group in range(n)]
        statistic = jackknifed(statistic, axis, np.array(without), bootstrap)
    return statistic


def jackknifed(statistic: Statistic, axis: str, without: np.ndarray, bootstrap: Bootstrap) -> Statistic:
    """``statistic``, one number, with its deviations over a further axis too, from its values ``without [n]`` one index of it each.

    The variance is that of the jackknife, ``(n - 1)/n Σ_i (L_(i) - L̄)²``. Resamples with replacement would repeat indices, and
    fewer different ones lower an LDS. They draw from the jackknife's linear approximation instead, so that differences are paired.
    """
    n = len(without)
    influence = (n - 1) * (without.mean() - without)
    resampled = statistic.value + _shares(bootstrap, axis, n) @ influence
    return statistic.also_over(bootstrap.statistic(statistic.value, {axis: (resampled, n)}))


def _shares(bootstrap: Bootstrap, axis: str, n: int) -> np.ndarray:
    """The share of each of ``n`` groups in each resample, ``[B, n]``."""
    return bootstrap.counts(axis, n) / n
