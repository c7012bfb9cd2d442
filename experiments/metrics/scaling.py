"""How a measured quantity grows with a size: pure functions."""

import math
from collections.abc import Sequence

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


def affine(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The numbers a, b >= 0 for which ``a + b · size`` has the smallest sum of squared relative errors.

    Raises:
        ValueError: a value is not above 0.
    """
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if not (y > 0).all():
        raise ValueError("relative errors need values above 0")
    scale = x.max()  # both columns of similar size
    (a, b), _ = optimize.nnls(np.stack([1 / y, x / scale / y], axis=1), np.ones_like(y))
    return float(a), float(b / scale)
