"""A measured number with its interval."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

PERCENT = 100
"""Multiply a share by it to express the share in per cent."""


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of an interval of probability ``level``; see the metric for its meaning.

    Unknown numbers are NaN. The interval is unknown if nothing random was repeated.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    level: float = 0.95


def interval(sample: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a sample, its (1 ± level)/2 quantiles; (NaN, NaN) for fewer than two numbers."""
    numbers = np.asarray(sample, dtype=np.float64)
    if numbers.size < 2:
        return math.nan, math.nan
    low, high = np.quantile(numbers, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact_share(hits: np.ndarray) -> Estimate:
    """The share of hits among independent images, bool ``[n]``, with the exact 95 % interval (Clopper & Pearson 1934).

    The interval has a positive width even if all images are hits; a bootstrap interval would have none.
    """
    from scipy.stats import binomtest

    test = binomtest(int(hits.sum()), len(hits))
    low, high = test.proportion_ci(0.95, "exact")
    return Estimate(float(test.statistic), float(low), float(high))
