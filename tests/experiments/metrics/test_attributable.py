"""The test of a group against random groups: the statistic, its false positives, and several sizes in order."""

import numpy as np
import pytest
from scipy import stats

from experiments.metrics.attributable import GroupTest, against_random, left_out, retraining_error, significant, smallest

Q, R, K = 6000, 6, 3
SIZES = (2.0, 4.0, 8.0)


def measured(groups: int, seed: int = 0, of_groups: float = 1.0, noise: float = 1.0) -> np.ndarray:
    """Measurements ``[F, Q, groups, K]`` without nested random groups: effects of query, group and seed, and their interaction."""
    random = np.random.default_rng(seed)
    level, scale = random.uniform(1, 9, (Q, 1, 1)), random.uniform(0.1, 9, (Q, 1, 1))
    steps = np.diff(np.sqrt(SIZES), prepend=0)[:, None, None, None] * random.normal(size=(len(SIZES), Q, groups, 1))
    seeds, rest = 20 * random.normal(size=(Q, 1, K)), random.normal(size=(len(SIZES), Q, groups, K))
    return level + scale * (of_groups * np.cumsum(steps, 0) + noise * rest + seeds)


def test_the_statistic_is_student_s_for_one_number_against_several():
    """Claim: the t test of two samples of which one has a single number, the mean over seeds."""
    values = measured(R + 1)[0, :4]
    test = against_random(values[:, 0], values[:, 1:])
    for q in range(4):
        x, others = values[q, 0].mean(), [values[q, r].mean() for r in range(1, R + 1)]
        center = sum(others) / R
        pooled = sum((other - center) ** 2 for other in others) / (R - 1)
        t = (x - center) / (pooled * (1 + 1 / R)) ** 0.5
        assert test.t[q] == pytest.approx(t)
        assert test.p[q] == pytest.approx(stats.t(R - 1).sf(t))
    assert test.degrees == R - 1


@pytest.mark.parametrize(("of_groups", "noise"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_random_groups_pass_at_the_nominal_rate(of_groups, noise):
    """Claim: at most 5 % of queries whose top groups are random are attributable at any of three sizes, whatever differs between
    groups: the images or the noise of training. Each random group against the others passes as often. One size: 5 %.
    """
    values = measured(R + 1, 1, of_groups, noise)
    own, random = values[:, :, 0], values[:, :, 1:]
    test = against_random(own, random)
    error = (0.05 * 0.95 / Q) ** 0.5
    assert (test.p <= 0.05)[0].mean() == pytest.approx(0.05, abs=4 * error)
    for p in (test.p, left_out(random).p):
        assert 0.02 < significant(p, 0.05).any(0).mean() < 0.05 + 4 * error


def test_an_effect_is_found():
    """Claim: groups that do much more pass at nearly all queries; groups that make a query better never pass."""
    values = measured(R + 1, 2)
    scale = values[:, :, 1:].mean(-1).std(-1, keepdims=True)
    for shift, rate in ((12.0, 1.0), (-12.0, 0.0)):
        test = against_random(values[:, :, 0] + shift * scale, values[:, :, 1:])
        assert (smallest(significant(test.p, 0.05)) == 0).mean() == pytest.approx(rate, abs=0.03)


def test_the_error_of_retraining_is_that_of_the_interaction():
    """Claim: nothing if groups and seeds add up; all of the error if groups are alike; its square is unbiased."""
    assert retraining_error(measured(R, 3, noise=0.0)) == pytest.approx(0, abs=1e-9)
    values = measured(R, 4, of_groups=0.0)
    error = against_random(values[:, :, 0], values).error
    assert np.square(retraining_error(values)).mean() == pytest.approx(np.square(error).mean(), rel=0.05)


def test_sizes_are_tested_by_the_method_of_holm():
    """Claim: the smallest p against α/F, the next against α/(F - 1), ..., until one is larger, in the order of p, not of size."""
    p = np.array([[0.01, 0.03, 0.016, 0.2], [0.024, 0.03, 0.2, 0.2], [0.05, 0.03, 0.03, 0.01]])  # [F, Q]
    found = significant(p, 0.05)
    assert found.T.tolist() == [[True, True, True], [False] * 3, [True, False, False], [False, False, True]]
    assert smallest(found).tolist() == [0, 3, 0, 2]


def test_one_decisive_image_is_found():
    """Claim: a query with one decisive image, which random groups of 1/8 of all images often contain too, is found mostly."""
    random, N, F = np.random.default_rng(0), 256, (8, 16, 32)
    orders = np.stack([random.permutation(N) for _ in range(2000 * R)]).reshape(2000, R, N)
    contains = np.stack([(orders[..., :k] == 0).any(-1) for k in F])  # [F, Q, R]
    noise = random.normal(size=(len(F), 2000, R + 1, K))
    values = noise + 10 * np.concatenate([np.ones((len(F), 2000, 1)), contains], 2)[..., None]
    found = significant(against_random(values[:, :, 0], values[:, :, 1:]).p, 0.05)
    assert found.any(0).mean() > 0.8


def test_the_interval_says_what_p_says():
    """Claim: its lower end is above 0 if p is below the significance, at any number of groups; equal groups have no effect."""
    values = measured(4, 5)[0, :200]
    test = against_random(values[:, 0], values[:, 1:])
    for place in range(200):
        estimate = test.estimate(place, 0.05)
        assert (estimate.low > 0) == (test.p[place] < 0.05)
        assert estimate.level == pytest.approx(0.9)
    assert GroupTest(np.zeros(1), np.zeros(1), 3).p == pytest.approx(0.5)
    assert test.threshold(0.05) == pytest.approx(stats.t.ppf(0.95, 2))
