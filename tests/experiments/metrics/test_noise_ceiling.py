"""The noise ceiling against what perfect predictors reach."""

import numpy as np
import pytest
from scipy import stats

from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.lds import per_query, retraining
from experiments.metrics.noise_ceiling import between_queries, mean_ceiling, noise_ceiling, pearson_of, spearman_of
from tests.experiments.metrics.coverage import replicates


def test_the_noise_ceiling_is_what_a_perfect_predictor_reaches():
    """Claim: truth plus noise of K seeds: the ceiling is near the LDS of the truth itself; exact retraining lies below it."""
    random = np.random.default_rng(5)
    truth = random.normal(size=(40, 200))
    for K in (2, 5):
        seeds = truth + random.normal(size=(K, 40, 200))
        reached = per_query(truth, seeds.mean(0)).mean()
        ceiling = noise_ceiling(seeds, Bootstrap(50)).value
        assert ceiling == pytest.approx(reached, abs=0.03)
        assert retraining(seeds[:, None], Bootstrap(50))[0, 0].value < ceiling
    same = np.repeat(truth[None], 2, 0)
    assert noise_ceiling(same, Bootstrap(50)).value == pytest.approx(1)
    assert retraining(same[:, None], Bootstrap(50))[0, 0].value == pytest.approx(1)


def test_spearman_over_few_subsets_is_smaller():
    """Claim: the mean of Spearman's correlation over n normal pairs, and its inverse."""
    random = np.random.default_rng(0)
    for rho, n in ((0.5, 12), (0.8, 6)):
        x = random.normal(size=(40_000, n))
        y = rho * x + (1 - rho**2) ** 0.5 * random.normal(size=x.shape)
        assert spearman_of(np.asarray(rho), n) == pytest.approx(per_query(x, y).mean(), abs=4 / 200 / n**0.5)
        assert pearson_of(float(spearman_of(np.asarray(rho), n)), n) == pytest.approx(rho, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("reached", "common"), [(0.5, 0.1), (0.7, 0.1), (0.85, 0.1)])
def test_the_ceiling_from_twelve_repeats_is_off_by_less_than_a_point(reached, common):
    """Claim: the mean over experiments is what a perfect predictor reaches over 36 subsets; that of clipped roots is too low."""
    random, rho = np.random.default_rng(0), reached**2
    r = stats.beta.ppf((np.arange(4000) + 0.5) / 4000, 8 * rho, 8 * (1 - rho))
    truth = float(spearman_of(np.sqrt(r), 36).mean())
    found, clipped = [], []
    for _ in range(100):
        runs = replicates(random, rho, 2, common)
        found.append(noise_ceiling(runs, Bootstrap(100), 1, 36).value)
        clipped.append(np.sqrt(np.clip(per_query(runs[0], runs[1]), 0, 1)).mean())
    assert np.mean(found) == pytest.approx(truth, abs=0.01)
    assert np.mean(clipped) < truth - 0.015


def test_what_varies_between_queries():
    """Claim: the variance of ρ between queries is found without the noise of 12 subsets; a mean over unequal ρ is lower."""
    random, found = np.random.default_rng(1), []
    for _ in range(60):
        runs = replicates(random, 0.5, 2, 0.0)
        found.append(between_queries([(runs[0], runs[1])], 0.45))
    assert np.mean(found) == pytest.approx(0.25 / 9, abs=0.008)
    assert mean_ceiling(0.5, 0.03, 1, 36) < mean_ceiling(0.5, 0.0, 1, 36) < mean_ceiling(0.5, -0.03, 1, 36)
    assert mean_ceiling(-0.2, 0.03, 1, 36) == 0
    assert mean_ceiling(1.0, 0.0, 3, 36) == 1


def test_the_ceiling_has_an_interval():
    """Claim: it holds the value and says what was resampled; one query and few subsets are no error."""
    runs = replicates(np.random.default_rng(2), 0.5, 2, 0.1)
    estimate = noise_ceiling(runs, Bootstrap(200), 1, 36)
    assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    assert estimate.kind == "confidence, over queries and subsets"
    assert noise_ceiling(runs[:, :1, :3], Bootstrap(200)).kind == "confidence, over subsets"
    noise = np.random.default_rng(3).normal(size=(2, 64, 12))
    assert noise_ceiling(noise, Bootstrap(200)).low == 0
