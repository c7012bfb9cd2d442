"""The bootstrap against loops over what each resample draws, and against known truths."""

import numpy as np
import pytest

from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.metrics.estimate import interval

RANDOM = np.random.default_rng(0)


def ends(statistic: Statistic) -> tuple[float, float, float]:
    """Value and interval."""
    estimate = statistic.estimate()
    return estimate.value, estimate.low, estimate.high


def test_interval_is_between_the_quantiles():
    """0..100 has its 95 % between 2.5 and 97.5; a single value says nothing about its spread."""
    assert interval(np.arange(101)) == pytest.approx((2.5, 97.5))
    assert interval(np.arange(101), level=0.5) == pytest.approx((25, 75))
    assert np.isnan(interval([0.3])).all()


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
    assert again.spread == pytest.approx(mean.spread)


def test_a_mean_is_a_loop_over_resamples():
    """Claim: over several axes, each index as often as drawn; leading dimensions are averaged, unknown values left out."""
    values = RANDOM.normal(size=(2, 4, 3, 5))
    values[1, 2, 0, 3] = values[0, 1, 1, 1] = np.nan
    where = RANDOM.random(values.shape) < 0.7
    bootstrap, axes = Bootstrap(25, seed=3), ("queries", "removals", "seeds")
    found = bootstrap.mean(values, axes, where)
    drawn = [
        np.stack([np.repeat(np.arange(n), times.astype(int)) for times in bootstrap.counts(axis, n)])
        for axis, n in zip(axes, values.shape[1:], strict=True)
    ]
    assert found.value == pytest.approx(np.nanmean(values[where]))
    for b in range(25):
        index = np.ix_(*(side[b] for side in drawn))
        some = [part[index][mask[index]] for part, mask in zip(values, where, strict=True)]
        assert found.spread[b] == pytest.approx(np.nanmean(np.concatenate(some)))


def test_what_is_there_once_adds_nothing():
    """Claim: an axis of length 1 leaves the others' interval; nothing repeated, or one known value, has none."""
    values = RANDOM.normal(size=(6, 1, 1))
    bootstrap = Bootstrap(100)
    assert ends(bootstrap.mean(values, ("queries", "removals", "seeds"))) == ends(bootstrap.mean(values[:, 0, 0]))
    assert bootstrap.mean(values[:1, 0, 0]).spread is None
    alone = bootstrap.mean(np.array([np.nan, 2.0, np.nan])).estimate()
    assert alone.value == 2
    assert np.isnan([alone.low, alone.high]).all()
    assert np.isnan(bootstrap.mean(np.array([np.nan, np.nan])).value)


def test_nan_queries_are_left_out():
    """Claim: unknown queries do not count; a resample that draws none of the known ones is no resample."""
    values = np.array([1.0, np.nan, 2.0, np.nan, np.nan])
    statistic = Bootstrap(500).mean(values)
    assert statistic.value == 1.5
    assert np.isnan(statistic.spread).any()
    assert ends(statistic) == (1.5, 1, 2)


def test_differences_are_paired():
    """Claim: a constant advantage has an interval of no width; with what was not repeated, the spread is the other side's."""
    base, bootstrap = RANDOM.random(20), Bootstrap(200)
    assert ends(bootstrap.mean(base + 0.25) - bootstrap.mean(base)) == pytest.approx((0.25, 0.25, 0.25))
    alone = bootstrap.mean(base[:1])
    value, low, high = ends(bootstrap.mean(base) - alone)
    assert (value, low, high) == pytest.approx(tuple(end - base[0] for end in ends(bootstrap.mean(base))))
    assert (alone - alone).spread is None
    assert ends(Statistic.mean([bootstrap.mean(base), bootstrap.mean(base + 1)])) == pytest.approx(ends(bootstrap.mean(base + 0.5)))


def test_bootstrap_covers_the_true_mean():
    """About 95 % of intervals hold the true mean, and their width is that of the normal approximation."""
    samples = np.random.default_rng(5).standard_normal((200, 60))
    estimates = [Bootstrap(500, i).mean(row).estimate() for i, row in enumerate(samples)]
    covered = np.mean([e.low <= 0 <= e.high for e in estimates])
    width = np.mean([e.high - e.low for e in estimates])
    assert 0.88 < covered < 0.99
    assert width == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.1)
