"""Agreement of models about queries, against loops."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from experiments.metrics.agreement import pearson_agreement, spearman_agreement
from experiments.metrics.bootstrap import Bootstrap

RANDOM = np.random.default_rng(0)
FIRST = RANDOM.normal(size=(3, 8))
SECOND = FIRST + RANDOM.normal(size=(3, 8))
BOOTSTRAP = Bootstrap(30, seed=2)


@pytest.mark.parametrize(("agreement", "slow"), [(pearson_agreement, pearsonr), (spearman_agreement, spearmanr)])
def test_the_value_is_the_mean_over_pairs(agreement, slow):
    """Claim: the mean over pairs of models of SciPy's correlation over queries."""
    expected = np.mean([slow(x, y).statistic for x, y in zip(FIRST, SECOND, strict=True)])
    assert agreement(FIRST, SECOND, BOOTSTRAP).value == pytest.approx(expected)


def test_resamples_are_correlations_of_the_drawn_queries():
    """Claim: each deviation is that of the mean correlation over the drawn queries, repeated as often as drawn."""
    found = pearson_agreement(FIRST, SECOND, BOOTSTRAP)
    expected = []
    for times in BOOTSTRAP.counts("queries", 8):
        drawn = np.repeat(np.arange(8), times.astype(int))
        expected.append(np.mean([pearsonr(x[drawn], y[drawn]).statistic for x, y in zip(FIRST, SECOND, strict=True)]))
    np.testing.assert_allclose(found.spread["queries"], (np.array(expected) - found.value) * np.sqrt(8 / 7))


def test_models_that_agree_and_resamples_without_variation():
    """Claim: equal models have 1, reversed ones -1; where all drawn queries are the same one, the resample counts as 0."""
    assert spearman_agreement(FIRST, np.exp(FIRST), BOOTSTRAP).value == pytest.approx(1)
    assert pearson_agreement(FIRST, -FIRST, BOOTSTRAP).value == pytest.approx(-1)
    two = pearson_agreement(FIRST[:, :2], FIRST[:, :2], BOOTSTRAP)
    same = (BOOTSTRAP.counts("queries", 2) == 2).any(1)
    assert same.any()
    np.testing.assert_allclose(two.spread["queries"], np.where(same, -1.0, 0.0) * np.sqrt(2), atol=1e-9)
