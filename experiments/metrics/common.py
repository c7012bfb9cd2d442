"""What benchmarks that are not ported yet share."""

# ruff: noqa: F401
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.metrics.correlation import pearson, spearman, split_half_spearman
from experiments.metrics.distinct import distinct_share, maximum_distinct_share, random_distinct_share, random_sets
from experiments.metrics.ranking import generally_influential, top_k
from experiments.metrics.ranking import mean_ranks as _mean_ranks


class Estimate(NamedTuple):
    """A number with the ends of its interval; the ends are NaN where nothing is known about its spread."""

    value: float
    low: float
    high: float


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
