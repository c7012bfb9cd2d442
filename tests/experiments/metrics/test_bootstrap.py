"""The bootstrap against loops over what each resample draws, and against known truths."""

import numpy as np
import pytest
from scipy import stats

from experiments.metrics.bootstrap import CORRELATION_LIMITS, SHARE_LIMITS, Bootstrap, Statistic, listed
from experiments.metrics.estimate import Estimate, bounded_interval, constant_interval, exact_share, quantiles, ratio, t_interval

RANDOM = np.random.default_rng(0)


def ends(statistic: Statistic) -> tuple[float, float, float]:
    """Value and interval."""
    estimate = statistic.estimate()
    return estimate.value, estimate.low, estimate.high


def test_quantiles():
    """0..100 has its 95 % between 2.5 and 97.5; a single value says nothing about its spread."""
    assert quantiles(np.arange(101)) == pytest.approx((2.5, 97.5))
    assert quantiles(np.arange(101), level=0.5) == pytest.approx((25, 75))
    assert np.isnan(quantiles([0.3])).all()


def test_the_interval_of_a_mean_is_students():
    """Claim: for numbers without limits it is SciPy's t interval of the mean, up to the noise of the resamples."""
    values = RANDOM.gamma(2, 1, 5)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ends(Bootstrap(20000).mean(values))[1:] == pytest.approx((expected.low, expected.high), rel=0.03)
    assert t_interval(1.0, 0.5, 4) == pytest.approx((1 - 0.5 * 2.7764, 1 + 0.5 * 2.7764), rel=1e-4)


def test_axes_are_crossed_factors():
    """Claim: variances of the axes add up, each unbiased, with Satterthwaite's degrees of freedom."""
    values = RANDOM.normal(size=(6, 1)) + 2 * RANDOM.normal(size=(1, 4)) + 0 * RANDOM.normal(size=(6, 4))
    first, second = values.mean(1).var(ddof=1) / 6, values.mean(0).var(ddof=1) / 4
    error, degrees = Bootstrap(40000).mean(values, ("queries", "seeds")).error()
    assert error == pytest.approx((first + second) ** 0.5, rel=0.02)
    assert degrees == pytest.approx((first + second) ** 2 / (first**2 / 5 + second**2 / 3), rel=0.05)


def test_intervals_of_shares_are_binomial():
    """Claim: for values of 0 and 1 the interval is the exact binomial one with t in place of z; where all are equal, exactly it."""
    hits = np.arange(200) < 150
    exact = stats.binomtest(150, 200).proportion_ci(0.95, "exact")
    assert ends(Bootstrap(20000).mean(hits, limits=SHARE_LIMITS))[1:] == pytest.approx((exact.low, exact.high), abs=0.004)
    for value in (0.0, 1.0):
        exact = stats.binomtest(round(7 * value), 7).proportion_ci(0.95, "exact")
        assert ends(Bootstrap(100).mean(np.full(7, value), limits=SHARE_LIMITS))[1:] == pytest.approx((exact.low, exact.high))


def test_intervals_stay_within_the_limits():
    """Claim: however large the error; differences of shares, sums and multiples have the limits that follow."""
    for value, error in ((0.99, 0.3), (0.01, 0.3), (0.5, 0.4), (0.9999, 1e-5)):
        low, high = bounded_interval(value, error, 3, (0, 1))
        assert 0 <= low < value < high <= 1
    assert bounded_interval(0.2, 0.1, 9, (-1, 1)) == pytest.approx(tuple(2 * e - 1 for e in bounded_interval(0.6, 0.05, 9, (0, 1))))
    bootstrap = Bootstrap(100)
    a, b = (bootstrap.mean(RANDOM.integers(0, 2, 6), limits=SHARE_LIMITS) for _ in range(2))
    assert (a - b).limits == (-1, 1)
    assert ((a - b) * 100).limits == (-100, 100)
    assert Statistic.mean([a, b]).limits == (0, 1)
    assert (bootstrap.mean(RANDOM.random(6)) * -2).limits == (-np.inf, np.inf)


def test_equal_values_are_not_certain():
    """Claim: five queries with the same share leave a wide interval; so does a difference that is 0 for all of them."""
    same = Bootstrap(100).mean(np.full(5, 0.8), limits=SHARE_LIMITS)
    rare = 1 - 0.025 ** (1 / 5)
    assert ends(same) == pytest.approx((0.8, 0.8 * (1 - rare), 0.8 + 0.2 * rare))
    assert ends(same - same) == pytest.approx((0, -rare, rare))
    assert constant_interval(0.8, 5, SHARE_LIMITS) == pytest.approx(ends(same)[1:])
    assert ends(Bootstrap(100).mean(np.full(5, 0.8), limits=CORRELATION_LIMITS)) == pytest.approx((0.8, 0.8, 0.8))


def test_the_largest_of_several_shares():
    """Claim: the lower end holds for the largest of N shares; for one it is the exact interval."""
    hits = np.arange(48) < 9
    one, chosen = exact_share(hits), exact_share(hits, among=256)
    expected = stats.binomtest(9, 48).proportion_ci(0.95, "exact")
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high))
    assert chosen.high == one.high
    assert chosen.low == pytest.approx(stats.binomtest(9, 48).proportion_ci(1 - 0.05 / 256, "exact").low)


def test_intervals_say_what_was_resampled():
    """Claim: the axes that were repeated, in words; without any there is no interval and no kind."""
    bootstrap = Bootstrap(50)
    values = RANDOM.random((4, 1, 3))
    assert bootstrap.mean(values, ("queries", "removals", "seeds")).estimate().kind == "confidence, over queries and seeds"
    assert bootstrap.mean(values[:1, :, :1], ("queries", "removals", "seeds")).estimate().kind is None
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a"]) == "a"


def test_what_is_drawn_depends_on_seed_axis_and_length_only():
    """Claim: the same axis has the same resamples in every bootstrap of a seed; other axes, lengths and seeds have others."""
    counts = Bootstrap(50).counts("queries", 8)
    assert counts.shape == (50, 8)
    assert (counts.sum(1) == 8).all()
    other = Bootstrap(50)
    other.counts("subsets", 8)
    assert (other.counts("queries", 8) == counts).all()
    assert (Bootstrap(50).counts("subsets", 8) != counts).any()
    assert (Bootstrap(50, seed=1).counts("queries", 8) != counts).any()
    assert (Bootstrap(50).counts("queries", 9)[:, :8] != counts).any()


def test_every_index_is_drawn_equally_often():
    """Claim: counts have the mean 1 and the variance 1 - 1/n of a multinomial."""
    counts = Bootstrap(20000).counts("queries", 10)
    assert counts.mean(0) == pytest.approx(1, abs=0.03)
    assert counts.var(0) == pytest.approx(0.9, abs=0.04)


def test_strata_keep_their_numbers():
    """Claim: every resample has as many indices of each stratum as the experiment; labels of another length are an error."""
    labels = np.array([0, 1, 1, 0, 1, 1, 1])
    counts = Bootstrap(30, strata={"examples": labels}).counts("examples", 7)
    assert (counts[:, labels == 0].sum(1) == 2).all()
    assert (counts[:, labels == 1].sum(1) == 5).all()
    assert counts.std() > 0
    with pytest.raises(ValueError, match="strata of examples label 7 indices, but the values have 8"):
        Bootstrap(30, strata={"examples": labels}).counts("examples", 8)


def test_blocks_are_the_counts(monkeypatch):
    """Claim: the size of blocks bounds memory and changes nothing."""
    labels = np.arange(9) % 2
    whole = Bootstrap(40, strata={"examples": labels}).counts("examples", 9)
    mean = Bootstrap(40).mean(np.arange(12.0).reshape(3, 4), ("queries", "seeds"))
    monkeypatch.setattr("experiments.metrics.bootstrap._BLOCK", 30)
    blocks = list(Bootstrap(40, strata={"examples": labels}).blocks("examples", 9))
    assert len(blocks) > 1
    assert (np.concatenate(blocks) == whole).all()
    again = Bootstrap(40).mean(np.arange(12.0).reshape(3, 4), ("queries", "seeds"))
    for axis in ("queries", "seeds"):
        assert again.spread[axis] == pytest.approx(mean.spread[axis])


def test_a_mean_is_a_loop_over_resamples():
    """Claim: of one axis at a time, each index as often as drawn; leading dimensions are averaged, unknown values left out."""
    values = RANDOM.normal(size=(2, 4, 3, 5))
    values[1, 2, 0, 3] = values[0, 1, 1, 1] = np.nan
    where = RANDOM.random(values.shape) < 0.7
    bootstrap, axes = Bootstrap(25, seed=3), ("queries", "removals", "seeds")
    found = bootstrap.mean(values, axes, where)
    value = np.nanmean(values[where])
    assert found.value == pytest.approx(value)
    for place, (axis, n) in enumerate(zip(axes, values.shape[1:], strict=True), 1):
        for b, times in enumerate(bootstrap.counts(axis, n)):
            drawn = np.repeat(np.arange(n), times.astype(int))
            part, mask = values.take(drawn, place), where.take(drawn, place)
            assert found.spread[axis][b] == pytest.approx((np.nanmean(part[mask]) - value) * (n / (n - 1)) ** 0.5)
        assert found.degrees[axis] == n - 1


def test_what_is_there_once_adds_nothing():
    """Claim: an axis of length 1 leaves the others' interval; nothing repeated, or one known value, has none."""
    values = RANDOM.normal(size=(6, 1, 1))
    bootstrap = Bootstrap(100)
    assert ends(bootstrap.mean(values, ("queries", "removals", "seeds"))) == ends(bootstrap.mean(values[:, 0, 0]))
    assert not bootstrap.mean(values[:1, 0, 0]).spread
    alone = bootstrap.mean(np.array([np.nan, 2.0, np.nan])).estimate()
    assert alone.value == 2
    assert np.isnan([alone.low, alone.high]).all()
    assert np.isnan(bootstrap.mean(np.array([np.nan, np.nan])).value)


def test_nan_queries_are_left_out():
    """Claim: unknown queries do not count; a resample that draws none of the known ones is no resample."""
    values = np.array([1.0, np.nan, 2.0, np.nan, np.nan])
    statistic = Bootstrap(500).mean(values)
    assert statistic.value == 1.5
    assert np.isnan(statistic.spread["queries"]).any()
    assert statistic.degrees == {"queries": 1}
    error = (2 * statistic.spread["queries"][~np.isnan(statistic.spread["queries"])].var() / 2) ** 0.5
    assert ends(statistic) == pytest.approx((1.5, 1.5 - 12.706 * error, 1.5 + 12.706 * error), rel=1e-3)


def test_differences_are_paired():
    """Claim: a constant advantage has an interval of no width; with what was not repeated, the spread is the other side's."""
    base, bootstrap = RANDOM.random(20), Bootstrap(200)
    assert ends(bootstrap.mean(base + 0.25) - bootstrap.mean(base)) == pytest.approx((0.25, 0.25, 0.25))
    alone = bootstrap.mean(base[:1])
    value, low, high = ends(bootstrap.mean(base) - alone)
    assert (value, low, high) == pytest.approx(tuple(end - base[0] for end in ends(bootstrap.mean(base))))
    assert not (alone - alone).spread
    assert ends(Statistic.mean([bootstrap.mean(base), bootstrap.mean(base + 1)])) == pytest.approx(ends(bootstrap.mean(base + 0.5)))


def test_bootstrap_covers_the_true_mean():
    """About 95 % of intervals hold the true mean, and their width is that of the normal approximation."""
    samples = np.random.default_rng(5).standard_normal((200, 60))
    estimates = [Bootstrap(500, i).mean(row).estimate() for i, row in enumerate(samples)]
    covered = np.mean([e.low <= 0 <= e.high for e in estimates])
    width = np.mean([e.high - e.low for e in estimates])
    assert 0.88 < covered < 0.99
    assert width == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.1)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_a_median_and_those_of_resamples(n):
    """Claim: the median of the values, and of the drawn ones in each resample; a single value has no interval."""
    values, bootstrap = np.random.default_rng(n).normal(size=n), Bootstrap(50, seed=1)
    found = bootstrap.median(values)
    assert found.value == pytest.approx(np.median(values))
    drawn = [np.median(np.repeat(values, times.astype(int))) for times in bootstrap.counts("queries", n)]
    if n == 1:
        assert not found.estimate().has_interval
    else:
        np.testing.assert_allclose(found.spread["queries"], (np.array(drawn) - found.value) * np.sqrt(n / (n - 1)))


def test_the_interval_of_a_ratio_has_both_uncertainties():
    """Claim: that of normal numbers far from 0 is their simulated one; with a known denominator, the scaled one."""
    random = np.random.default_rng(0)
    (a, b), (sa, sb) = (3.0, 10.0), (0.3, 0.6)
    numerator, denominator = (Estimate(x, x - 1.96 * s, x + 1.96 * s, kind="known") for x, s in ((a, sa), (b, sb)))
    low, high = np.quantile(random.normal(a, sa, 200_000) / random.normal(b, sb, 200_000), [0.025, 0.975])
    found = ratio(numerator, denominator)
    assert (found.value, found.low, found.high, found.kind) == (
        0.3,
        pytest.approx(low, rel=0.02),
        pytest.approx(high, rel=0.02),
        "known",
    )
    certain = ratio(numerator, Estimate(b, b, b))
    assert (certain.low, certain.high) == pytest.approx((numerator.low / b, numerator.high / b))
    negative = ratio(Estimate(-a, -numerator.high, -numerator.low), denominator)
    assert (negative.low, negative.high) == pytest.approx((-found.high, -found.low))
    assert not ratio(numerator, Estimate(b)).has_interval
    assert np.isnan(ratio(numerator, Estimate(0.0, -1.0, 1.0)).value)
