"""Ranks and top examples: pure functions of scores.

``scores[q, i]`` is τ, ``[Q, N]``: the larger, the more training example i is a proponent of query q. Positions are columns of the
score matrix, not ids of a data set.
"""

import numpy as np


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The positions of the k largest scores of each query, in descending order: ``[Q, N] -> [Q, k]`` int64.

    Equal scores are ordered by position.

    Raises:
        ValueError: k is outside 1..N, or a score is NaN.
    """
    scores = np.asarray(scores)
    queries, examples = scores.shape
    if not 1 <= k <= examples:
        raise ValueError(f"k={k}, but there are {examples} training examples: set k to 1..{examples}")
    refuse_nan(scores)
    threshold = np.partition(scores, examples - k, axis=1)[:, examples - k, None]
    above, level = scores > threshold, scores == threshold
    remaining = k - above.sum(1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= remaining))
    position = np.nonzero(chosen)[1].reshape(queries, k)
    order = np.argsort(-np.take_along_axis(scores, position, 1).astype(np.float64), axis=1, kind="stable")
    return np.take_along_axis(position, order, 1)


def both_ends(scores: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The positions of the k ``proponent`` s (largest scores first) and ``opponent`` s (smallest first) of each query, ``[Q, k]``.

    Raises:
        ValueError: as in :func:`top_k`.
    """
    return {"proponent": top_k(scores, k), "opponent": top_k(-np.asarray(scores), k)}


def generally_influential(top: np.ndarray, share: float) -> np.ndarray:
    """The positions in the top k of more than ``share`` of the queries, ascending: ``[Q, k] -> [..]`` (red boxes, ReTrac §6.2).

    Such an example is influential whatever the query, and says nothing about it.
    """
    return np.flatnonzero(np.bincount(top.ravel()) > share * len(top))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 for the largest, ``[N] -> [N]`` int64; ties keep their order."""
    result = np.empty(len(values), np.int64)
    result[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return result


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The ranks 0..N-1 in each row, ``[R, N]`` float64; equal values share their mean rank.

    It is several times faster than SciPy's ``rankdata``.
    """
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


def refuse_nan(values: np.ndarray, first_row: int = 0) -> None:
    """Check that ``values [R, N]``, the rows from ``first_row`` on, can be ranked.

    Raises:
        ValueError: a value is NaN.
    """
    if (bad := np.isnan(values)).any():
        row = first_row + int(np.flatnonzero(bad.any(1))[0])
        raise ValueError(
            f"{int(bad.sum())} of {bad.size} values to rank are NaN, first in row {row}: "
            "the model or the estimator diverged; lower the learning rate, raise the damping, or use a higher precision"
        )
