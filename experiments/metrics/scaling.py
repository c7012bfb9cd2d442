"""How a measured quantity grows with a size: pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import optimize, stats

from experiments.metrics.estimate import LEVEL, Estimate, t_interval


def exponent(sizes: Sequence[float], values: Sequence[float]) -> Estimate:
    """The exponent p of ``value ∝ size^p`` by least squares on logarithms, with Student's interval over three sizes or more.

    NaN if fewer than two sizes differ, or a value is not above 0.
    """
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(set(sizes)) < 2 or not (y > 0).all():
        return Estimate(math.nan)
    line = stats.linregress(np.log(x), np.log(y))
    slope, degrees = float(line.slope), len(x) - 2  # pyright: ignore[reportAttributeAccessIssue]
    if degrees < 1:
        return Estimate(slope)
    error = float(line.stderr) if np.ptp(y) > 0 else 0.0  # pyright: ignore[reportAttributeAccessIssue]  # NaN for equal values
    low, high = t_interval(slope, error, degrees)
    return Estimate(slope, low, high, LEVEL, "confidence, over sizes")


GOOD = 0.15
"""The largest error of a law that is extrapolated."""


@dataclass(frozen=True)
class Growth:
    """The law ``a + b · size^power``. ``error`` is its largest relative error at the sizes that it was fitted to."""

    a: float
    b: float
    power: float
    error: float

    @classmethod
    def of(cls, sizes: Sequence[float], values: Sequence[float], powers: Sequence[float] = (1.0, 1.5, 2.0)) -> Self:
        """The law with the a, b >= 0 that have the smallest sum of squared relative errors.

        Its power is the first of ``powers`` with an error of at most ``GOOD``, or else that with the smallest error.

        Raises:
            ValueError: a value is not above 0.
        """
        x, y = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if not (y > 0).all():
            raise ValueError("relative errors need values above 0")
        found: list[Self] = []
        for power in powers:
            terms = (x / x.max()) ** power  # both columns of similar size
            (a, b), _ = optimize.nnls(np.stack([1 / y, terms / y], axis=1), np.ones_like(y))
            error = np.abs((a + b * terms) / y - 1).max()
            found.append(cls(float(a), float(b / x.max() ** power), power, float(error)))
        return next((law for law in found if law.good), min(found, key=lambda law: law.error))

    @property
    def good(self) -> bool:
        """Whether the error allows going beyond the sizes that the law was fitted to."""
        return self.error <= GOOD

    def at(self, size: float) -> float:
        """The value at a size."""
        return self.a + self.b * size**self.power
