"""Every interval holds the truth in at least 90 % of simulated experiments."""

import pytest

from tests.experiments.metrics.coverage import WORLDS, coverage


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_cover(name):
    """Claim: at the default sizes of the benchmarks, over 5 queries, and for shares near 0 and 1."""
    result = coverage(name, 300)
    assert result.now >= 0.9
    if name.startswith("noise ceiling"):
        assert abs(result.bias) < 0.01


@pytest.mark.parametrize(
    "name", ["counterfactual, 1 seed", "auroc, 5 queries", "precision@5, 5 queries, 0.8", "precision@1, 48 queries, 0.97"]
)
def test_intervals_over_few_queries_cover(name):
    """Claim: they do where percentiles of a bootstrap do not."""
    result = coverage(name, 200)
    assert result.now >= 0.9
    assert result.before is not None
    assert result.before < 0.88
