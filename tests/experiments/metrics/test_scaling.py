"""Fits of growth with a size."""

import math

import numpy as np
import pytest

from experiments.metrics.scaling import Growth, exponent


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


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_growth_is_found(power):
    """Claim: a, b and the power of exact values are found, and values at other sizes follow from them."""
    sizes = [10, 100, 1000, 20_000]
    found = Growth.of(sizes, [5 + 0.25 * size**power for size in sizes])
    assert (found.a, found.b, found.power) == pytest.approx((5, 0.25, power))
    assert found.error < 1e-9
    assert found.at(1e5) == pytest.approx(5 + 0.25 * 1e5**power)


def test_growth_minimizes_relative_errors():
    """Claim: no other a, b >= 0 has a smaller sum of squared relative errors; neither number is below 0."""
    sizes, values = [1, 2, 3], [1.0, 2.5, 2.7]
    found = Growth.of(sizes, values, [1.0])

    def errors(a: float, b: float) -> float:
        return sum(((a + b * size) / value - 1) ** 2 for size, value in zip(sizes, values, strict=True))

    nearby = [(found.a + da, found.b + db) for da in (-0.01, 0, 0.01) for db in (-0.01, 0, 0.01)]
    assert all(errors(found.a, found.b) <= errors(a, b) for a, b in nearby)
    assert found.error == pytest.approx(max(abs(found.at(s) / v - 1) for s, v in zip(sizes, values, strict=True)))
    assert Growth.of([10, 100, 1000], [5, 95, 995], [1.0]).a == 0
    assert Growth.of(sizes, [6.0, 6.0, 6.0], [1.0]).b == pytest.approx(0)
    with pytest.raises(ValueError, match="above 0"):
        Growth.of([1, 2], [0.0, 1.0])
