"""A measured number with its interval, and the intervals: pure functions."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

PERCENT = 100
"""Multiply a share by it to express the share in per cent."""
LEVEL = 0.95
"""The probability of an interval unless stated otherwise."""


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of an interval of probability ``level``.

    ``kind`` says what the interval is and what was resampled, such as "confidence, over queries and subsets". Unknown numbers are
    NaN. The interval is unknown if nothing random was repeated.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    level: float = LEVEL
    kind: str | None = None

    def scaled(self, factor: float) -> "Estimate":
        """The estimate in another unit; ``factor`` is above 0."""
        return replace(self, value=factor * self.value, low=factor * self.low, high=factor * self.high)

    @property
    def interval(self) -> str:
        """What the interval is, such as "95 % confidence, over queries and subsets"."""
        return f"{PERCENT * self.level:g} % {self.kind or 'interval'}"

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    """``numerator / denominator`` with an interval that has the uncertainty of both; unknown unless the denominator is above 0.

    The distances to the ends are the roots of the sums of squares of those that each interval alone would give (Zou & Donner 2008).
    """
    n, d = numerator.value, denominator.value
    if not d > 0:
        return Estimate(math.nan, level=numerator.level)
    value = n / d
    if not (numerator.has_interval and denominator.has_interval):
        return Estimate(value, level=numerator.level)
    rises, falls = (abs(n) * (end - d) / d**2 for end in (denominator.high, denominator.low))
    if n < 0:
        rises, falls = falls, rises  # the larger the denominator, the larger the ratio
    low = value - math.hypot((n - numerator.low) / d, rises)
    high = value + math.hypot((numerator.high - n) / d, falls)
    return Estimate(value, low, high, numerator.level, numerator.kind)


def quantiles(sample: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return the (1 ± level)/2 quantiles of a sample; (NaN, NaN) for fewer than two numbers."""
    numbers = np.asarray(sample, dtype=np.float64)
    if numbers.size < 2:
        return math.nan, math.nan
    low, high = np.quantile(numbers, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(value: float, error: float, degrees: float, level: float = LEVEL) -> tuple[float, float]:
    """Return ``value ± t · error`` with Student's t for the ``degrees`` of freedom of the standard error."""
    width = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    return value - width, value + width


def bounded_interval(
    value: float, error: float, degrees: float, limits: tuple[float, float], level: float = LEVEL
) -> tuple[float, float]:
    """Return the interval of a mean within ``limits`` (Korn & Graubard 1998): as skewed as the distance to the limits asks for.

    It is the exact binomial interval for the number n of trials whose standard error is ``error`` at the proportion ``value`` has
    of the range, times (z/t)² for an error that is estimated with ``degrees`` of freedom. It lies within the limits.
    """
    low, width = limits[0], limits[1] - limits[0]
    p = min(max((value - low) / width, 0.0), 1.0)
    if error == 0:
        return value, value
    if p * (1 - p) == 0:
        first, last = t_interval(value, error, degrees, level)
        return max(first, limits[0]), min(last, limits[1])
    z, t = stats.norm.ppf((1 + level) / 2), stats.t.ppf((1 + level) / 2, degrees)
    n = p * (1 - p) / (error / width) ** 2 * (z / t) ** 2
    bottom, top = (1 - level) / 2, (1 + level) / 2
    ends = stats.beta.ppf(bottom, n * p, n * (1 - p) + 1), stats.beta.ppf(top, n * p + 1, n * (1 - p))
    return low + width * float(ends[0]), low + width * float(ends[1])


def constant_interval(value: float, count: int, limits: tuple[float, float], level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of a mean of ``count`` independent numbers within ``limits`` that all equal ``value``.

    A share of up to ``1 - ((1 - level)/2)^(1/count)`` of the population may differ and lie anywhere within the limits. For shares
    of 0 or 1 this is the exact binomial interval (Clopper & Pearson 1934).
    """
    others = 1 - ((1 - level) / 2) ** (1 / count)
    return value - others * (value - limits[0]), value + others * (limits[1] - value)


def exact_share(hits: np.ndarray, among: int = 1, over: str = "images") -> Estimate:
    """The share of hits, bool ``[n]``, with the exact 95 % interval (Clopper & Pearson 1934).

    The interval has a positive width even if all are hits; a bootstrap interval would have none. If the share was chosen as the
    largest ``among`` several, the lower end holds for all of them at once (Bonferroni).
    """
    test = stats.binomtest(int(hits.sum()), len(hits))
    low, high = test.proportion_ci(1 - (1 - LEVEL) / among, "exact").low, test.proportion_ci(LEVEL, "exact").high
    return Estimate(float(test.statistic), float(low), float(high), kind=f"confidence, over {over} (exact)")
