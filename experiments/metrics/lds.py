"""The linear datamodeling score (LDS; Park et al. 2023, TRAK) and its bootstrap: pure functions.

The LDS of a query is Spearman's correlation over M subsets between what scores predict and what retrained models measure. There are
P predictions of T targets for Q queries, K training seeds, and B resamples of the subsets, or of the queries. Ranks are computed
once over all subsets and reused, so resampling reduces to matrix products.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from experiments.metrics.bootstrap import CORRELATION_LIMITS, Bootstrap, Statistic
from experiments.metrics.correlation import pearson, spearman
from experiments.metrics.ranking import mean_ranks

SUBSETS = "subsets"
"""The axis of subsets in a bootstrap."""
_BLOCK = 1 << 20
"""Numbers of an array over queries and a block of resamples."""
_CONSTANT = 1e-9
"""Variances of ranks up to this are 0 except for rounding errors."""


def predicted(scores: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Return Σ_{i∉S} τ[q, i]: float64 ``[.., Q, M]`` from ``scores [.., Q, N]`` and the weights that subsets remove, ``[M, N]``.

    Removing an example that lowered the query's cost raises it: predictions and measured costs correlate positively.
    """
    return scores.astype(np.float64) @ removed.T


def per_query(predictions: np.ndarray, measured: np.ndarray, ranked: bool = True) -> np.ndarray:
    """The LDS of every query, ``[.., Q, M], [Q, M] -> [.., Q]``; without ``ranked`` Pearson's correlation.

    It is 0 where all predictions of a query are equal, and NaN where one is not finite.
    """
    correlation = spearman if ranked else pearson
    correlations = correlation(_finite(predictions), np.broadcast_to(measured, predictions.shape))
    return np.where(np.isfinite(predictions).all(-1), np.nan_to_num(correlations, nan=0.0), np.nan)


def lds(predictions: np.ndarray, targets: np.ndarray, bootstrap: Bootstrap, axis: str = SUBSETS, ranked: bool = True) -> Statistic:
    """The mean LDS over queries of every prediction of every target, ``[P, T]``: ``[P, Q, M], [T, Q, M]``.

    Subsets and queries are crossed: each is resampled on its own. Predictions that are not finite have NaN. ``axis`` names what the
    M numbers belong to, if not subsets. Without ``ranked`` correlations are Pearson's.
    """
    M = targets.shape[2]
    return _lds(predictions, targets, bootstrap, bootstrap.counts(axis, M), M, axis, ranked)


def over_trainings(statistics: Sequence[Statistic], bootstrap: Bootstrap) -> Statistic:
    """The mean of the LDS of several trainings of the explained model, which are resampled too; one is returned as it is."""
    if len(statistics) == 1:
        return statistics[0]
    mean, values = Statistic.mean(statistics), np.array([float(statistic.value) for statistic in statistics])
    resampled = bootstrap.counts("trainings", len(values)) @ values / len(values)
    over_both = mean.also_over(bootstrap.statistic(mean.value, {"trainings": (resampled, len(values))}))
    return replace(over_both, limits=CORRELATION_LIMITS)


def retraining(measured: np.ndarray, bootstrap: Bootstrap, axis: str = SUBSETS) -> Statistic:
    """The LDS of exact retraining ``[T, T]`` from ``measured [K, T, Q, M]``. Requires K >= 2.

    The measurements of each training seed are used to predict the mean of the other seeds. The result, a mean over seeds, is not an
    upper bound on the LDS.
    """
    return Statistic.mean([lds(seed, np.delete(measured, k, 0).mean(0), bootstrap, axis) for k, seed in enumerate(measured)])


def best(sweep: np.ndarray, measured: np.ndarray, bootstrap: Bootstrap) -> tuple[Statistic, int]:
    """The LDS of the best of a sweep ``[V, Q, M]``, chosen on the same subsets, and the choice.

    It is too high, by the more the more values there are; ``cross_validated`` is not.
    """
    chosen = choose(sweep, measured)
    return lds(sweep[None, chosen], measured[None], bootstrap)[0, 0], chosen


def without(control: np.ndarray, predictions: np.ndarray, measured: np.ndarray, bootstrap: Bootstrap) -> Statistic:
    """The mean LDS over queries that is left when the effect of ``control [M]`` is removed, ``[P]``: ``[P, Q, M], [Q, M]``.

    It is the partial rank correlation (r_xy - r_xz r_yz)/√((1 - r_xz²)(1 - r_yz²)) of each query, and 0 if predictions or
    measurements follow from the control.
    """
    x, y, z = centered_ranks(_finite(predictions)), centered_ranks(measured), centered_ranks(control[None])
    Q, M = measured.shape

    def partial(shares: np.ndarray) -> np.ndarray:  # [M, b] -> [P, Q, b]
        r_yz = _correlations(y, z, shares)
        return np.stack([_partial(_correlations(side, y, shares), _correlations(side, z, shares), r_yz) for side in x])

    of_queries = np.where(np.isfinite(predictions).all(-1), partial(np.full((M, 1), 1 / M))[..., 0], np.nan)
    by_query = np.tensordot(bootstrap.counts("queries", Q) / Q, of_queries, (1, 1))
    w = bootstrap.counts("subsets", M) / M
    size = max(1, _BLOCK // (Q * len(x)))
    by_subset = np.concatenate([partial(w[start : start + size].T).mean(1).T for start in range(0, len(w), size)])
    return bootstrap.statistic(of_queries.mean(1), {"queries": (by_query, Q), "subsets": (by_subset, M)}, CORRELATION_LIMITS)


def folds(subsets: int) -> np.ndarray:
    """Which of two interleaved halves each subset is in, ``[M]``: the strata of a bootstrap for ``cross_validated``."""
    return np.arange(subsets) % 2


def cross_validated(sweep: np.ndarray, measured: np.ndarray, bootstrap: Bootstrap) -> tuple[Statistic, list[int]]:
    """The LDS of the best of a sweep ``[V, Q, M]``, chosen on the other half of the subsets, and the two choices.

    Each half is scored with the value chosen on the other. The interval does not include the choice's uncertainty: the subsets of
    each half are resampled separately, the queries jointly.
    """
    M = measured.shape[1]
    halves, by_half = folds(M), Bootstrap(bootstrap.count, bootstrap.seed, {"subsets": folds(M)})
    subsets = by_half.counts("subsets", M)
    statistics, chosen = [], []
    for half in (halves == 0, halves == 1):
        chosen.append(choose(sweep[..., ~half], measured[:, ~half]))
        statistics.append(_lds(sweep[None, chosen[-1]][..., half], measured[None][..., half], by_half, subsets[:, half], M)[0, 0])
    return Statistic.mean(statistics), chosen


def choose(sweep: np.ndarray, measured: np.ndarray) -> int:
    """The position in ``sweep [V, Q, M]`` with the largest mean LDS; one that is not finite is never the best."""
    return int(np.nan_to_num(per_query(sweep, measured).mean(1), nan=-np.inf).argmax())


def _finite(predictions: np.ndarray) -> np.ndarray:
    """``predictions [.., Q, M]`` with 0 for queries with one that is not finite."""
    return np.where(np.isfinite(predictions).all(-1, keepdims=True), predictions, 0.0)


def _lds(
    predictions: np.ndarray,
    targets: np.ndarray,
    bootstrap: Bootstrap,
    subsets: np.ndarray,
    drawn_of: int,
    axis: str = SUBSETS,
    ranked: bool = True,
) -> Statistic:
    """``lds``, given how often each resample draws each subset, ``[B, M]``; the subsets are drawn out of ``drawn_of``."""
    of_queries = np.stack([per_query(predictions, target, ranked) for target in targets], 1)  # [P, T, Q]
    Q = targets.shape[1]
    by_query = np.tensordot(bootstrap.counts("queries", Q) / Q, of_queries, (1, 2))
    resampled = {"queries": (by_query, Q), axis: (_over_subsets(predictions, targets, subsets, ranked), drawn_of)}
    return bootstrap.statistic(of_queries.mean(2), resampled, CORRELATION_LIMITS)


def _over_subsets(predictions: np.ndarray, targets: np.ndarray, subsets: np.ndarray, ranked: bool) -> np.ndarray:
    """The mean LDS over queries in each resample of the subsets, ``[B, P, T]``."""
    x, y = map(centered_ranks if ranked else _standardized, (_finite(predictions), targets))
    w = subsets / subsets.sum(1, keepdims=True)
    resampled = np.empty((len(w), len(x), len(y)))
    Q = targets.shape[1]
    size = max(1, _BLOCK // Q)
    for start in range(0, len(w), size):
        block = slice(start, start + size)
        shares = np.ascontiguousarray(w[block].T)
        # What depends on a target alone is computed once for all predictions.
        means, scales = zip(*(_moments(side, shares) for side in y), strict=True)
        for p, side in enumerate(x):
            mean, scale = _moments(side, shares)
            for t, target in enumerate(y):
                covariance = (side * target) @ shares - mean * means[t]
                resampled[block, p, t] = np.einsum("qb,qb,qb->b", covariance, scale, scales[t]) / Q
    return resampled


def _correlations(x: np.ndarray, y: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The correlation of ranks ``[Q, M]`` with others in resamples with ``shares [M, b]``: ``[Q, b]``, 0 where one is constant."""
    (mean_x, scale_x), (mean_y, scale_y) = _moments(x, shares), _moments(y, shares)
    return ((x * y) @ shares - mean_x * mean_y) * scale_x * scale_y


def _partial(r_xy: np.ndarray, r_xz: np.ndarray, r_yz: np.ndarray) -> np.ndarray:
    rest = (1 - r_xz**2) * (1 - r_yz**2)
    return np.where(rest > _CONSTANT, np.clip((r_xy - r_xz * r_yz) / np.sqrt(np.maximum(rest, _CONSTANT)), -1, 1), 0.0)


def _moments(ranks: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of ranks ``[Q, M]`` and the inverse of their deviation, in resamples with ``shares [M, b]``: ``[Q, b]``.

    The inverse is 0 where the ranks drawn are all equal.
    """
    mean = ranks @ shares
    variance = (ranks * ranks) @ shares - mean**2
    return mean, np.where(variance > _CONSTANT, 1 / np.sqrt(np.maximum(variance, _CONSTANT)), 0.0)


def _standardized(values: np.ndarray) -> np.ndarray:
    """``values [.., M]`` with mean 0 and variance 1; 0 where all are equal."""
    centered = values - values.mean(-1, keepdims=True)
    scale = np.sqrt((centered**2).mean(-1, keepdims=True))
    return np.divide(centered, scale, out=np.zeros_like(centered), where=scale > 0)


def centered_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis of ``[.., Q, M]``, minus their mean."""
    M = values.shape[-1]
    return mean_ranks(np.ascontiguousarray(values).reshape(-1, M)).reshape(values.shape) - (M - 1) / 2
