"""Metrics against hand-written matrices and slow, obvious truth."""

import time

import numpy as np
import pytest
from scipy import stats

from experiments.metrics import common as metrics


def test_top_k_orders_by_score_and_breaks_ties_by_position():
    """Largest first; of equal scores the first position wins, also across the edge of the top k."""
    scores = np.array([[1.0, 3.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, -5.0, -1.0, np.inf, -np.inf]])
    assert metrics.top_k(scores, 3).tolist() == [[1, 3, 2], [0, 1, 2], [3, 0, 2]]
    assert metrics.top_k(scores, 5)[0].tolist() == [1, 3, 2, 4, 0]


def test_top_k_is_the_stable_sort():
    """Equal to a stable descending sort on many ties, for every k and for integers."""
    scores = np.random.default_rng(0).integers(-3, 4, size=(20, 30))
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in range(1, 31):
        assert (metrics.top_k(scores.astype(np.float32), k) == order[:, :k]).all()
        assert (metrics.top_k(scores, k) == order[:, :k]).all()


@pytest.mark.parametrize("k", [0, 6])
def test_top_k_beyond_the_training_set_names_the_setting(k):
    """k outside 1..N is an error that names benchmark.k and N."""
    with pytest.raises(ValueError, match=rf"benchmark\.k={k}.* 5 training examples"):
        metrics.top_k(np.zeros((2, 5)), k)


def test_nan_is_never_ranked():
    """A NaN score is an error that counts them and says where the first is."""
    scores = np.zeros((4, 3))
    scores[2, 1] = scores[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"2 of 12 .* first in row 2"):
        metrics.top_k(scores, 1)
    with pytest.raises(ValueError, match="NaN, first in row 2"):
        metrics.spearman(np.zeros((4, 3)), scores)


def test_distinct_share_by_hand():
    """Identical tops give 1/n, disjoint ones 1."""
    top = np.array([[0, 1], [1, 0], [2, 3], [1, 2]])
    shares = metrics.distinct_share(top, np.array([[0, 1], [0, 2], [0, 3], [2, 3]]))
    assert shares.tolist() == [0.5, 1.0, 0.75, 0.75]


def test_distinct_share_is_the_union_of_python_sets():
    """Equal to the size of the union, by Python's sets."""
    top = metrics.top_k(np.random.default_rng(1).standard_normal((30, 50)), 7)
    sets = metrics.random_sets(30, 5, 40, seed=2)
    slow = [len(set().union(*(set(top[q]) for q in queries))) / 35 for queries in sets]
    assert metrics.distinct_share(top, sets).tolist() == slow


def test_random_level_is_what_random_scores_reach():
    """The formula agrees with a simulation to four standard errors."""
    N, n, k, sets = 60, 8, 5, 3000
    scores = np.random.default_rng(3).random((sets * n, N))
    shares = metrics.distinct_share(metrics.top_k(scores, k), np.arange(sets * n).reshape(sets, n))
    error = shares.std() / np.sqrt(sets)
    assert abs(shares.mean() - metrics.random_distinct_share(N, n, k)) < 4 * error
    assert error < 0.002


def test_levels_at_the_edges():
    """One query or all of the training set leave no room: maximum and random level meet there."""
    assert metrics.maximum_distinct_share(100, 5, 10) == 1
    assert metrics.maximum_distinct_share(100, 50, 10) == 0.2
    assert metrics.random_distinct_share(100, 1, 10) == pytest.approx(1)
    assert metrics.random_distinct_share(100, 4, 100) == metrics.maximum_distinct_share(100, 4, 100) == 0.25


def test_random_sets_are_distinct_seeded_and_fair():
    """No set repeats a query; the seed decides; every query is drawn about equally often."""
    sets = metrics.random_sets(20, 6, 2000, seed=0)
    assert sets.shape == (2000, 6)
    assert all(len(set(row)) == 6 for row in sets.tolist())
    assert (sets == metrics.random_sets(20, 6, 2000, seed=0)).all()
    assert (sets != metrics.random_sets(20, 6, 2000, seed=1)).any()
    assert np.abs(np.bincount(sets.ravel(), minlength=20) - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)


def test_random_sets_of_the_whole_pool_are_one_set():
    """n = pool has one set; n > pool is an error that names both."""
    assert metrics.random_sets(4, 4, 100, seed=0).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match=r"benchmark\.n=5 .* pool has 4"):
        metrics.random_sets(4, 5, 100, seed=0)
    with pytest.raises(ValueError, match=r"benchmark\.sets=0"):
        metrics.random_sets(4, 2, 0, seed=0)


def test_generally_influential_by_hand():
    """In the top of *more than* the share: position 7 is in 3 of 4, position 1 in 2 of 4."""
    top = np.array([[7, 1], [7, 2], [1, 7], [3, 4]])
    assert metrics.generally_influential(top, 0.5).tolist() == [7]
    assert metrics.generally_influential(top, 0.4).tolist() == [1, 7]
    assert metrics.generally_influential(top, 0.75).tolist() == []


def test_interval_is_between_the_quantiles():
    """0..100 has its 95 % between 2.5 and 97.5; a single value says nothing about its spread."""
    assert metrics.interval(np.arange(101)) == pytest.approx((2.5, 97.5))
    assert metrics.interval(np.arange(101), level=0.5) == pytest.approx((25, 75))
    assert metrics.over_sets(np.arange(101)) == pytest.approx((50, 2.5, 97.5))
    assert np.isnan(metrics.interval([0.3])).all()
    estimate = metrics.over_sets([0.3])
    assert estimate.value == 0.3
    assert np.isnan(estimate[1:]).all()


def test_paired_difference_is_free_of_the_common_spread():
    """A constant advantage has an interval of no width, however much the sets differ; other sets are an error."""
    base = np.random.default_rng(0).random(200)
    assert metrics.paired_difference(base + 0.25, base) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="same sets"):
        metrics.paired_difference(base, base[:1])


def test_bootstrap_covers_the_true_mean():
    """About 95 % of intervals hold the true mean, and their width is that of the normal approximation."""
    samples = np.random.default_rng(5).standard_normal((200, 60))
    estimates = [metrics.bootstrap_mean(row, resamples=500, seed=i) for i, row in enumerate(samples)]
    covered = np.mean([e.low <= 0 <= e.high for e in estimates])
    width = np.mean([e.high - e.low for e in estimates])
    assert 0.88 < covered < 0.99
    assert width == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.1)


def test_bootstrap_leaves_out_queries_without_a_value():
    """NaN does not count; the seed decides; one value or none has no interval."""
    values = np.array([1.0, np.nan, 2.0, 3.0])
    assert metrics.bootstrap_mean(values, seed=1) == metrics.bootstrap_mean(values[[0, 2, 3]], seed=1)
    assert metrics.bootstrap_mean(values).value == 2
    assert np.isnan(metrics.bootstrap_mean(values[1:2])).all()
    assert metrics.bootstrap_mean(values[:2]).value == 1
    assert np.isnan(metrics.bootstrap_mean(values[:2]).low)


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_is_scipys(levels):
    """Equal to scipy.stats.spearmanr row by row, with few and with many ties, for any leading axes."""
    a, b = np.random.default_rng(6).integers(0, levels, size=(2, 3, 8, 40)).astype(np.float32)
    slow = [[stats.spearmanr(a[i, j], b[i, j]).statistic for j in range(8)] for i in range(3)]
    assert metrics.spearman(a, b) == pytest.approx(np.array(slow), abs=1e-12)


def test_spearman_in_blocks_is_spearman_at_once(monkeypatch):
    """The size of the blocks changes nothing."""
    a, b = np.random.default_rng(7).standard_normal((2, 23, 10))
    whole = metrics.spearman(a, b)
    monkeypatch.setattr(metrics, "_BLOCK", 30)
    assert (metrics.spearman(a, b) == whole).all()


def test_split_halves_by_hand():
    """Same order 1, opposite order -1, a constant row NaN."""
    halves = np.array([[[1.0, 2, 3], [1, 2, 3], [1, 1, 1]], [[10.0, 20, 90], [3, 2, 1], [1, 2, 3]]])
    result = metrics.split_half_spearman(halves)
    assert result[:2] == pytest.approx([1, -1])
    assert np.isnan(result[2])


def test_spearman_of_a_large_benchmark_takes_seconds():
    """1000 queries × 5000 examples in about half a second on one core (a generous limit: machines differ)."""
    a, b = np.random.default_rng(8).standard_normal((2, 1000, 5000), dtype=np.float32)
    start = time.perf_counter()
    metrics.spearman(a, b)
    assert time.perf_counter() - start < 10
