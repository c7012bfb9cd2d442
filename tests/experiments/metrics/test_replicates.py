"""What groups of draws say about scores."""

import numpy as np
import pytest
from scipy import stats

from experiments.metrics import lds
from experiments.metrics.bootstrap import CORRELATION_LIMITS, Bootstrap, Statistic
from experiments.metrics.replicates import Noise, membership, standard_errors, with_draws


def crossed(rng, R: int, S: int, shape: tuple[int, ...], a: float, b: float, e: float, x: np.ndarray | float = 0.0) -> np.ndarray:
    """``x + a_r + b_s + e_rs`` ``[R, S, *shape]``."""
    of_query, of_train = a * rng.standard_normal((R, 1, *shape)), b * rng.standard_normal((1, S, *shape))
    return x + of_query + of_train + e * rng.standard_normal((R, S, *shape))


def literal_errors(cross: np.ndarray) -> np.ndarray:
    """The jackknife of the docstring, by leaving groups out."""
    R, S = cross.shape[:2]
    without_r = [np.delete(cross, r, 0).mean((0, 1)) for r in range(R)]
    without_s = [np.delete(cross, s, 1).mean((0, 1)) for s in range(S)]
    without = [[np.delete(np.delete(cross, r, 0), s, 1).mean((0, 1)) for s in range(S)] for r in range(R)]
    mean = cross.mean((0, 1))
    of_query = (R - 1) / R * sum((x - mean) ** 2 for x in without_r)
    of_train = (S - 1) / S * sum((x - mean) ** 2 for x in without_s)
    of_both = (
        (R - 1)
        / R
        * (S - 1)
        / S
        * sum((without[r][s] - without_r[r] - without_s[s] + mean) ** 2 for r in range(R) for s in range(S))
    )
    return np.sqrt(np.maximum(of_query + of_train - of_both, of_both))


def test_standard_errors_are_the_two_way_jackknife():
    """Claim: they equal the jackknife that leaves groups out."""
    cross = crossed(np.random.default_rng(0), 4, 3, (5, 6), 1.0, 0.5, 0.3)
    np.testing.assert_allclose(standard_errors(cross), literal_errors(cross), rtol=1e-10)


@pytest.mark.parametrize(
    ("S", "a", "b", "e", "most"),
    [
        (4, 1.0, 0.3, 0.5, 1.05),
        (4, 0.2, 1.0, 2.0, 1.2),
        (4, 1.0, 1.0, 0.0, 1.05),
        (4, 0.0, 0.0, 1.0, 1.6),
        (1, 1.0, 0.0, 0.0, 1.05),
    ],
)
def test_the_variance_is_unbiased_and_intervals_cover(S, a, b, e, most):
    """Claim: the mean square of the error is the variance of the score, or more where e dominates; intervals cover 95 %."""
    R, scores = 4, 20_000
    cross = crossed(np.random.default_rng(1), R, S, (scores,), a, b, e)
    errors, mean = standard_errors(cross), cross.mean((0, 1))
    truth = a**2 / R + b**2 / S + e**2 / (R * S)
    assert np.mean(mean**2) == pytest.approx(truth, rel=0.05)
    assert 0.95 * truth < np.mean(errors**2) < most * truth
    assert np.mean(np.abs(mean) < stats.t.ppf(0.975, R - 1) * errors) > 0.94


@pytest.mark.parametrize(("R", "S"), [(4, 4), (4, 1)])
def test_shares_of_noise_and_what_more_draws_buy(R, S):
    """Claim: the shares are those of a simulation, and the LDS expected at other numbers of draws is the one found there."""
    rng, queries, subsets = np.random.default_rng(2), 40, 400
    truth = rng.standard_normal((queries, subsets))
    target = truth + rng.standard_normal(truth.shape)
    a, b, e = 1.0, 0.6 if S > 1 else 0.0, 1.5 if S > 1 else 0.0

    def drawn(times_query: int, times_train: int) -> np.ndarray:
        return crossed(rng, R * times_query, S * times_train, truth.shape, a, b, e, truth)

    def found(cross: np.ndarray) -> float:
        return float(lds.per_query(cross.mean((0, 1)), target).mean())

    cross = drawn(1, 1)
    noise = Noise.of(cross)
    parts = np.array([1.0, a**2 / R, b**2 / S, e**2 / (R * S)])
    np.testing.assert_allclose([noise.signal, noise.query, noise.train, noise.both], parts / parts.sum(), atol=0.015)
    for times in ((8, 1), (1, 8), (8, 8)) if S > 1 else ((8, 1),):
        assert noise.expected(found(cross), *times) == pytest.approx(found(drawn(*times)), abs=0.02)
    assert noise.expected(found(cross), np.inf, np.inf) == pytest.approx(float(lds.per_query(truth, target).mean()), abs=0.02)


def test_predictions_without_signal_are_not_reliable():
    """Claim: where groups share nothing, the reliability is near 0 and nothing is expected of more draws."""
    noise = Noise.of(crossed(np.random.default_rng(3), 4, 4, (30, 200), 1.0, 1.0, 1.0))
    assert abs(noise.signal) < 0.05
    assert np.isnan(Noise.of(np.zeros((2, 2, 3, 5))).signal)


def test_the_error_of_an_lds_is_the_spread_over_other_draws():
    """Claim: over simulations with new draws, the error of the jackknife is that of the LDS, and intervals cover their mean."""
    rng, bootstrap = np.random.default_rng(4), Bootstrap(200)
    truth = rng.standard_normal((5, 40))
    target = truth + rng.standard_normal(truth.shape)
    statistics = []
    for _ in range(150):
        cross = crossed(rng, 4, 4, truth.shape, 1.5, 1.0, 1.0, truth)
        alone = Statistic(lds.per_query(cross.mean((0, 1)), target).mean(), limits=CORRELATION_LIMITS)
        statistics.append(with_draws(alone, cross, target, bootstrap))
    values = np.array([float(statistic.value) for statistic in statistics])
    errors = np.array([statistic.error()[0] for statistic in statistics])
    assert np.mean(errors**2) == pytest.approx(values.var(), rel=0.35)
    estimates = [statistic.estimate() for statistic in statistics]
    assert np.mean([estimate.low <= values.mean() <= estimate.high for estimate in estimates]) > 0.92


def test_an_interval_says_which_draws_were_resampled():
    """Claim: the axes are named, and a side without groups is not among them."""
    rng, bootstrap = np.random.default_rng(5), Bootstrap(200)
    target = rng.standard_normal((3, 20))
    for S, named in ((3, "queries, subsets, query draws and training draws"), (1, "queries, subsets and query draws")):
        cross = crossed(rng, 3, S, target.shape, 0.5, 0.5, 0.5, target)
        plain = lds.lds(cross.mean((0, 1))[None], target[None], bootstrap)[0, 0]
        estimate = with_draws(plain, cross, target, bootstrap).estimate()
        assert estimate.interval == f"95 % confidence, over {named}"
        assert plain.limits == CORRELATION_LIMITS


def test_membership_is_a_probability():
    """Claim: scores far apart are in the top k for sure; two equal ones within their noise about half the time."""
    rng = np.random.default_rng(6)
    true = np.array([[10.0, 5.0, 5.0, 0.0, -1.0]])
    inside = np.mean(
        [membership(crossed(rng, 4, 4, true.shape, 0.1, 0.1, 0.1, true), 2, Bootstrap(200, seed))[0] for seed in range(30)], axis=0
    )
    assert inside[0, 0] == 1
    assert inside[0, 3:].max() == 0
    assert inside[0, 1] + inside[0, 2] == pytest.approx(1)
    assert 0.3 < inside[0, 1] < 0.7
    np.testing.assert_array_equal(membership(true[None, None].repeat(2, 0).repeat(2, 1), 99, Bootstrap(10)), 1)
    cross = crossed(rng, 4, 4, true.shape, 1.0, 1.0, 1.0, true)
    np.testing.assert_array_equal(membership(cross, 2, Bootstrap(50))[1], membership(-cross, 2, Bootstrap(50))[0])


def test_the_mean_over_trainings_has_their_spread():
    """Claim: the error has the variance of a mean over trainings besides that over subsets and queries; one training has none."""
    rng, bootstrap = np.random.default_rng(7), Bootstrap(2000)
    target = rng.standard_normal((6, 40))
    predictions = target + 2 * rng.standard_normal((4, *target.shape))
    each = [lds.lds(prediction[None], target[None], bootstrap)[0, 0] for prediction in predictions]
    mean, values = lds.over_trainings(each, bootstrap), np.array([float(statistic.value) for statistic in each])
    assert float(mean.value) == pytest.approx(values.mean())
    alone = Statistic.mean(each).error()[0]
    assert mean.error()[0] ** 2 == pytest.approx(alone**2 + values.var(ddof=1) / 4, rel=0.05)
    assert mean.estimate().interval == "95 % confidence, over queries, subsets and trainings"
    assert lds.over_trainings(each[:1], bootstrap) is each[0]
