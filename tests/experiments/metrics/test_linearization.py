"""Relative errors of predicted changes against their definition."""

import numpy as np
import pytest

from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.linearization import mean_error, relative_errors


@pytest.mark.parametrize("scaled", [False, True])
def test_errors_are_those_of_the_sets_that_a_resample_has(scaled):
    """Claim: a resample's error is that of its list of sets, with the best scale of at least 0 found by trying, or without one."""
    random = np.random.default_rng(0)
    true, weights = random.standard_normal((3, 6)), random.integers(0, 3, (4, 6)).astype(float)
    predicted = 0.3 * true + 0.1 * random.standard_normal((3, 6))
    predicted[2] = -true[2]
    found = relative_errors(predicted, true, weights, scaled)
    for b, counts in enumerate(weights):
        chosen = np.repeat(np.arange(6), counts.astype(int))
        for q in range(3):
            p, t = predicted[q, chosen], true[q, chosen]
            scales = np.linspace(0, 8, 8001) if scaled else np.ones(1)
            expected = np.linalg.norm(scales[:, None] * p - t, axis=1).min() / np.linalg.norm(t)
            assert found[b, q] == pytest.approx(expected, rel=1e-4)


def test_a_prediction_without_error_and_one_without_information():
    """Claim: 0 for the truth and, after scaling, for its multiples; 1 for zeros and for the opposite; NaN without a true change."""
    true = np.random.default_rng(1).standard_normal((2, 5))
    once = np.ones((1, 5))
    assert relative_errors(true, true, once, False).max() == 0
    np.testing.assert_allclose(relative_errors(7 * true, true, once, True), 0, atol=1e-7)
    assert (relative_errors(0 * true, true, once, True) == 1).all()
    assert (relative_errors(-true, true, once, True) == 1).all()
    assert np.isnan(relative_errors(true, 0 * true, once, True)).all()


def test_the_mean_has_deviations_over_queries_and_sets():
    """Claim: the value is the mean over queries, the interval is over both axes."""
    random = np.random.default_rng(2)
    true = random.standard_normal((4, 9))
    predicted = true + 0.5 * random.standard_normal((4, 9))
    statistic = mean_error(predicted, true, Bootstrap(200), scaled=True)
    assert float(statistic.value) == pytest.approx(relative_errors(predicted, true, np.ones((1, 9)), True).mean())
    assert set(statistic.spread) == {"queries", "subsets"}
