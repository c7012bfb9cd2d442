"""The linear datamodeling score and its uncertainty (Park et al. 2023): pure functions.

LDS of a query: Spearman's correlation over M subsets between what scores predict and what retrained models measure. Bootstrap
intervals resample subsets (and queries) as weights of the *given* ranks, which turns all resamples into matrix products.
"""

from dataclasses import dataclass

import numpy as np

from experiments.metrics.common import Estimate, _mean_ranks, interval, spearman


def predicted(scores: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Σ_{i∉S} τ[q, i]: ``scores [.., Q, N]`` and weights taken away ``removed [M, N]`` give ``[.., Q, M]`` float64.

    Removing what lowered the query's cost raises it: predictions and measured costs correlate positively.
    """
    return scores.astype(np.float64) @ removed.T


@dataclass(frozen=True)
class Resamples:
    """How often a bootstrap draws each subset ``[B, M]`` and each query ``[B, Q]``: one for all estimators, so that they pair."""

    subsets: np.ndarray
    queries: np.ndarray

    @classmethod
    def draw(cls, subsets: int, queries: int, count: int = 1000, seed: int = 0) -> "Resamples":
        """Uniform with replacement, over both."""
        random = np.random.default_rng([seed, 0x1D5])
        sides = (random.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64) for n in (subsets, queries))
        return cls(*sides)


def per_query(predictions: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """LDS of every query: ``[.., Q, M], [Q, M] -> [.., Q]``; 0 where all predictions of a query are equal: they order nothing."""
    return np.nan_to_num(spearman(predictions, np.broadcast_to(measured, predictions.shape)), nan=0.0)


def resampled(predictions: np.ndarray, measured: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Mean LDS over queries in every resample: ``[Q, M], [Q, M] -> [B]``."""
    x, y = (_centred_ranks(side) for side in (predictions, measured))
    w = resamples.subsets / resamples.subsets.sum(1, keepdims=True)
    mx, my = x @ w.T, y @ w.T  # [Q, B]
    covariance = (x * y) @ w.T - mx * my
    scale = np.sqrt(np.maximum((x * x) @ w.T - mx**2, 0) * np.maximum((y * y) @ w.T - my**2, 0))
    rho = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)
    return (rho * resamples.queries.T).sum(0) / resamples.queries.sum(1)


def lds(predictions: np.ndarray, measured: np.ndarray, resamples: Resamples) -> Estimate:
    """Mean over queries with its 95 % interval, of ``[Q, M], [Q, M]``."""
    return Estimate(float(per_query(predictions, measured).mean()), *interval(resampled(predictions, measured, resamples)))


def difference(first: np.ndarray, second: np.ndarray, measured: np.ndarray, resamples: Resamples) -> Estimate:
    """LDS of the first minus that of the second, on the same resamples."""
    value = per_query(first, measured).mean() - per_query(second, measured).mean()
    return Estimate(float(value), *interval(resampled(first, measured, resamples) - resampled(second, measured, resamples)))


def folds(subsets: int) -> list[np.ndarray]:
    """The subsets in two interleaved halves."""
    return [np.arange(start, subsets, 2) for start in (0, 1)]


def cross_validated(sweep: np.ndarray, measured: np.ndarray, count: int = 1000, seed: int = 0) -> tuple[Estimate, list[int]]:
    """Mean LDS of the best of a sweep ``[V, Q, M]``, as chosen on the other half of the subsets, and the two choices.

    Nothing is reported on subsets that it was chosen on. The interval takes the choices as given: each half's subsets are resampled
    by themselves, the queries for both.
    """
    halves, (Q, M) = folds(measured.shape[1]), measured.shape
    queries = Resamples.draw(M, Q, count, seed).queries
    values, spread, chosen = [], [], []
    for number, (fold, other) in enumerate((halves, halves[::-1])):
        best = int(per_query(sweep[..., other], measured[:, other]).mean(1).argmax())
        chosen.append(best)
        values.append(per_query(sweep[best][:, fold], measured[:, fold]).mean())
        resamples = Resamples(Resamples.draw(len(fold), Q, count, seed + 1 + number).subsets, queries)
        spread.append(resampled(sweep[best][:, fold], measured[:, fold], resamples))
    return Estimate(float(np.mean(values)), *interval(np.mean(spread, 0))), chosen


def retraining(seeds: np.ndarray, resamples: Resamples) -> Estimate:
    """Exact retraining as a predictor: LDS between each seed's measurements and the mean of the others'; ``[K, Q, M]``, K >= 2.

    Averaged over seeds. No upper bound.
    """
    K = len(seeds)
    others = [np.delete(seeds, k, 0).mean(0) for k in range(K)]
    value = np.mean([per_query(other, own).mean() for other, own in zip(others, seeds, strict=True)])
    spread = np.mean([resampled(other, own, resamples) for other, own in zip(others, seeds, strict=True)], 0)
    return Estimate(float(value), *interval(spread))


def noise_ceiling(replicates: np.ndarray, seeds: int | None = None) -> float:
    """About what a perfect predictor of the mean over K seeds reaches: mean over queries of √(K r / (1 + (K-1) r)).

    r: Spearman's correlation between the measurements of two trainings of the same subsets, ``replicates [K', Q, M']``, mean over
    pairs; K' >= 2, and K unless ``seeds`` says otherwise.
    """
    count, seeds = len(replicates), seeds or len(replicates)
    pairs = [per_query(replicates[a], replicates[b]) for a in range(count) for b in range(a)]
    r = np.clip(np.mean(pairs, 0), 0, 1)
    return float(np.sqrt(seeds * r / (1 + (seeds - 1) * r)).mean())


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    return _mean_ranks(np.ascontiguousarray(values)) - (values.shape[1] - 1) / 2
