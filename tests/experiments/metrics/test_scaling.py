"""Fits of growth with a size."""

import math

import numpy as np
import pytest

from experiments.metrics.scaling import affine, exponent


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power(power):
    """Claim: a power of the size gives its exponent, with an interval of no width."""
    sizes = [8, 32, 64, 1000]
    found = exponent(sizes, [3.0 * size**power for size in sizes])
    assert found.value == pytest.approx(power, abs=1e-12)
    assert found.high - found.low < 1e-6


def test_exponent_covers_the_truth():
    """Claim: with noise on the logarithms, 95 % of the intervals contain the exponent."""
    rng, sizes = np.random.default_rng(0), np.array([8, 16, 32, 64])
    found = [exponent(sizes, sizes**1.5 * np.exp(0.1 * rng.standard_normal(4))) for _ in range(400)]
    assert 0.92 < np.mean([one.low < 1.5 < one.high for one in found]) < 0.98


def test_exponent_is_unknown():
    """Claim: one size, or a value of zero, has no exponent; two sizes have no interval."""
    assert math.isnan(exponent([8], [1.0]).value)
    assert math.isnan(exponent([8, 16], [0.0, 1.0]).value)
    two = exponent([8, 16], [1.0, 2.0])
    assert two.value == pytest.approx(1)
    assert not two.has_interval


def test_affine_fit():
    """Claim: it finds a and b exactly, minimizes the relative errors otherwise, and neither number is below 0."""
    sizes = [10, 100, 100_000]
    assert affine(sizes, [5 + 0.25 * size for size in sizes]) == pytest.approx((5, 0.25))
    assert affine(sizes, [size - 5 for size in sizes])[0] == 0
    assert affine([1, 2, 3], [6.0, 6.0, 6.0]) == pytest.approx((6, 0))
    values = [1.0, 2.5, 2.7]
    a, b = affine([1, 2, 3], values)

    def errors(a: float, b: float) -> float:
        return sum(((a + b * size) / value - 1) ** 2 for size, value in zip([1, 2, 3], values, strict=True))

    assert all(errors(a, b) <= errors(a + da, b + db) for da in (-0.01, 0, 0.01) for db in (-0.01, 0, 0.01))
    with pytest.raises(ValueError, match="above 0"):
        affine([1, 2], [0.0, 1.0])
