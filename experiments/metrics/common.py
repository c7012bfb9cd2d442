"""Metrics of benchmarks: pure functions of scores, with their chance levels and uncertainties.

Shapes: Q queries, N training examples, k top places, S sets of n queries each. ``scores[q, i]`` is τ of METHODS.md §1, the larger
the more of a proponent. Positions are columns of the score matrix, not dataset ids.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_BLOCK = 1 << 20
"""Elements ranked at once: bounds memory and stays in the cache."""


class Estimate(NamedTuple):
    """A number with the ends of its interval; the ends are NaN where nothing is known about its spread."""

    value: float
    low: float
    high: float


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest scores of each query, largest first: ``[Q, N] -> [Q, k]`` int64; of equal scores the first wins.

    Raises:
        ValueError: k outside 1..N, or NaN among the scores.
    """
    scores = np.asarray(scores)
    queries, examples = scores.shape
    if not 1 <= k <= examples:
        raise ValueError(f"benchmark.k={k}, but there are {examples} training examples: set benchmark.k to 1..{examples}")
    _refuse_nan(scores)
    threshold = np.partition(scores, examples - k, axis=1)[:, examples - k, None]
    above, level = scores > threshold, scores == threshold
    places_left = k - above.sum(1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= places_left))
    position = np.nonzero(chosen)[1].reshape(queries, k)
    order = np.argsort(-np.take_along_axis(scores, position, 1).astype(np.float64), axis=1, kind="stable")
    return np.take_along_axis(position, order, 1)


def distinct_share(top: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """|∪ top-k over the queries of a set| / (n k) for each set: ``top [Q, k], sets [S, n] -> [S]`` (ReTrac §6.2, table 1).

    1/n where all queries of a set have the same proponents, 1 where no two share one.
    """
    found = np.sort(top[sets].reshape(len(sets), -1), axis=1)
    return (1 + (found[:, 1:] != found[:, :-1]).sum(1)) / found.shape[1]


def random_distinct_share(examples: int, n: int, k: int) -> float:
    """What scores at random reach on average: N (1 - (1 - k/N)ⁿ) / (n k) (METHODS.md §3)."""
    return examples * (1 - (1 - k / examples) ** n) / (n * k)


def maximum_distinct_share(examples: int, n: int, k: int) -> float:
    """The largest possible distinct share, min(1, N/(n k)) (METHODS.md §3)."""
    return min(1.0, examples / (n * k))


def random_sets(pool: int, n: int, sets: int, seed: int) -> np.ndarray:
    """``sets`` random sets of n *distinct* queries out of ``pool``: int64 ``[S, n]``, rows ascending. n = pool has one set.

    No bootstrap: a query drawn twice shares all its proponents with itself and would lower the distinct share.

    Raises:
        ValueError: n outside 1..pool, or no sets.
    """
    if not 1 <= n <= pool:
        raise ValueError(
            f"benchmark.n={n} distinct queries, but the pool has {pool}: set benchmark.n to 1..{pool} or enlarge the pool"
        )
    if sets < 1:
        raise ValueError(f"benchmark.sets={sets}: must be at least 1")
    if n == pool:
        return np.arange(n)[None]
    order = np.random.default_rng(seed).random((sets, pool)).argsort(1)
    return np.sort(order[:, :n], axis=1)


def generally_influential(top: np.ndarray, share: float) -> np.ndarray:
    """Positions in the top k of more than ``share`` of the queries, ascending: ``[Q, k] -> [..]`` (the red boxes of ReTrac §6.2).

    Such an example is influential whatever is asked; it says nothing about the query.
    """
    return np.flatnonzero(np.bincount(top.ravel()) > share * len(top))


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a sample: between the (1 ± level)/2 quantiles. Of fewer than two values: (NaN, NaN)."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return np.nan, np.nan
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def over_sets(values: ArrayLike) -> Estimate:
    """Mean over sets of queries and where 95 % of the sets lie: what one experiment with n queries would show.

    It is not the standard error of the mean, which shrinks with the number of sets, though sets of one pool are not independent.
    """
    return Estimate(float(np.asarray(values, dtype=np.float64).mean()), *interval(values))


def paired_difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """``first - second`` on the same sets, ``[S]`` each: free of the spread that the choice of queries gives to both."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same sets on both sides, not {a.shape} and {b.shape}")
    return over_sets(a - b)


def bootstrap_mean(values: ArrayLike, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean over queries ``[Q]`` with its 95 % bootstrap percentile interval (Efron 1979); queries at NaN are left out."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return Estimate(float(known[0]) if len(known) else np.nan, np.nan, np.nan)
    times_drawn = np.random.default_rng(seed).multinomial(len(known), np.full(len(known), 1 / len(known)), size=resamples)
    return Estimate(float(known.mean()), *interval(times_drawn @ known / len(known)))


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis, equal values sharing their mean rank: ``[.., N], [.., N] -> [..]`` float64.

    NaN where either side is constant: it then orders nothing. Memory beyond the input does not grow with it.

    Raises:
        ValueError: unequal shapes, or NaN among the values.
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
            _refuse_nan(side[start : start + rows], start)
        x, y = (_mean_ranks(side[start : start + rows]) - (N - 1) / 2 for side in (a, b))
        covariance = np.einsum("rn,rn->r", x, y)
        scale = np.sqrt(np.einsum("rn,rn->r", x, x) * np.einsum("rn,rn->r", y, y))
        result[start : start + rows] = np.divide(covariance, scale, out=np.full(len(x), np.nan), where=scale > 0)
    return np.clip(result, -1, 1).reshape(first.shape[:-1])


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis: ``[.., N], [.., N] -> [..]`` float64; NaN where either side is constant."""
    x, y = (side - side.mean(-1, keepdims=True) for side in (np.asarray(first, np.float64), np.asarray(second, np.float64)))
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.clip(np.divide((x * y).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0), -1, 1)


def split_half_spearman(halves: np.ndarray) -> np.ndarray:
    """Reliability of scores: Spearman between those from either half of the query draws, per query: ``[2, .., Q, N] -> [.., Q]``.

    It is the reliability of *half* the draws and so understates that of all. NaN for a query whose scores are all equal.
    """
    return spearman(halves[0], halves[1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 0..N-1 in each row, equal values sharing their mean: ``[R, N]`` float64; several times faster than SciPy's rankdata."""
    order = np.argsort(values, axis=1)
    ascending = np.take_along_axis(values, order, 1)
    place = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    new = np.ones(values.shape, dtype=bool)
    new[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    last = np.ones(values.shape, dtype=bool)
    last[:, :-1] = new[:, 1:]
    start = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    end = np.minimum.accumulate(np.where(last, place, values.shape[1])[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (start + end) / 2, axis=1)
    return ranks


def _refuse_nan(values: np.ndarray, first_row: int = 0) -> None:
    if (bad := np.isnan(values)).any():
        row = first_row + int(np.flatnonzero(bad.any(1))[0])
        raise ValueError(
            f"{int(bad.sum())} of {bad.size} values to rank are NaN, first in row {row}: "
            "the model or the estimator diverged; lower optimizer.lr, raise estimator.damping, or use a higher precision"
        )
