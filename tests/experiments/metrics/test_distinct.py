"""Distinct shares by hand, and against Python's sets."""

import numpy as np
import pytest

from experiments.metrics import distinct as metrics
from experiments.metrics.ranking import top_k


def test_distinct_share_by_hand():
    """Identical tops give 1/n, disjoint ones 1."""
    top = np.array([[0, 1], [1, 0], [2, 3], [1, 2]])
    shares = metrics.distinct_share(top, np.array([[0, 1], [0, 2], [0, 3], [2, 3]]))
    assert shares.tolist() == [0.5, 1.0, 0.75, 0.75]


def test_distinct_share_is_the_union_of_python_sets():
    """Equal to the size of the union, by Python's sets."""
    top = top_k(np.random.default_rng(1).standard_normal((30, 50)), 7)
    sets = metrics.random_sets(30, 5, 40, seed=2)
    slow = [len(set().union(*(set(top[q]) for q in queries))) / 35 for queries in sets]
    assert metrics.distinct_share(top, sets).tolist() == slow


def test_random_level_is_what_random_scores_reach():
    """The formula agrees with a simulation to four standard errors."""
    N, n, k, sets = 60, 8, 5, 3000
    scores = np.random.default_rng(3).random((sets * n, N))
    shares = metrics.distinct_share(top_k(scores, k), np.arange(sets * n).reshape(sets, n))
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
    with pytest.raises(ValueError, match=r"n=5 .* pool has 4"):
        metrics.random_sets(4, 5, 100, seed=0)
    with pytest.raises(ValueError, match=r"sets=0"):
        metrics.random_sets(4, 2, 0, seed=0)


def test_a_range_over_sets_is_between_the_quantiles_of_the_sets():
    """Shares 0..100 have their 95 % between 2.5 and 97.5; a single set says nothing about the spread."""
    estimate = metrics.OverSets(np.arange(101)).estimate()
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((50, 2.5, 97.5))
    assert estimate.interval == "95 % range of sets of queries, no confidence interval"
    single = metrics.OverSets(np.array([0.3])).estimate()
    assert single.value == 0.3
    assert np.isnan([single.low, single.high]).all()


def test_differences_of_shares_are_free_of_the_common_spread():
    """A constant advantage on the same sets has an interval of no width, however much the sets differ."""
    base = np.random.default_rng(0).random(200)
    difference = (metrics.OverSets(base + 0.25) - metrics.OverSets(base)).estimate()
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.25, 0.25, 0.25))
