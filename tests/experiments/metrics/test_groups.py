"""Shapley values of groups, against all permutations."""

import itertools

import numpy as np
import pytest

from experiments.metrics.groups import coalitions, indicators, shapley


def marginal_contributions(value, permutations, G):
    """The Shapley values by the definition: the mean fall of ``value`` when a group joins those before it."""
    falls = np.zeros(G)
    for permutation in permutations:
        for place, group in enumerate(permutation):
            falls[group] += value(permutation[:place]) - value(permutation[: place + 1])
    return falls / len(permutations)


@pytest.fixture
def game():
    """A function of coalitions of five groups with all interactions; of the empty one, the mean of single groups."""
    table = {frozenset(s): v for s, v in zip(subsets(5), np.random.default_rng(0).normal(size=31), strict=True)}
    table[frozenset()] = np.mean([table[frozenset([group])] for group in range(5)])
    return lambda groups: table[frozenset(map(int, groups))]


def subsets(G):
    return [s for size in range(1, G + 1) for s in itertools.combinations(range(G), size)]


def of(game, members):
    return np.array([game(np.flatnonzero(row)) for row in members])


def test_a_circle_has_the_permutations_of_its_readings(game):
    """Claim: the values of one circle are the mean marginal contributions over its 2G permutations, from G(G - 1) + 1 models."""
    order = np.array([[3, 0, 4, 1, 2]])
    members = coalitions(order)
    readings = [np.roll(way, -first) for way in (order[0], order[0][::-1]) for first in range(5)]
    assert len(members) == len(set(map(tuple, members.tolist()))) == 5 * 4 + 1
    found = shapley(np.stack([of(game, members), 2 * of(game, members)]), members, order)  # [C, 2, G]
    np.testing.assert_allclose(found[0, 0], marginal_contributions(game, readings, 5), atol=1e-12)
    np.testing.assert_allclose(found[0, 1], 2 * found[0, 0])
    assert found[0, 0].sum() == pytest.approx(game([]) - game(range(5)))


def test_all_circles_together_are_exact(game):
    """Claim: the mean over the (G - 1)! circular orders is the Shapley value over all permutations."""
    orders = np.array([[0, *rest] for rest in itertools.permutations(range(1, 5))])
    members = coalitions(orders)
    assert len(members) == 31
    exact = marginal_contributions(game, list(itertools.permutations(range(5))), 5)
    np.testing.assert_allclose(shapley(of(game, members), members, orders).mean(0), exact, atol=1e-12)


def test_of_a_linear_game_they_are_its_coefficients():
    """Claim: one circle is exact, up to what the empty coalition adds to all groups."""
    fall, order = np.array([3.0, -1.0, 0.5, 2.0]), np.array([[2, 0, 3, 1]])
    members = coalitions(order)
    (found,) = shapley(7 - members @ fall, members, order)
    np.testing.assert_allclose(found - found.mean(), fall - fall.mean(), atol=1e-12)


def test_indicators_sum_over_members():
    """Claim: scores times indicators are sums over groups."""
    groups = {"a": np.array([0, 2]), "b": np.array([1])}
    assert (np.array([[1.0, 2.0, 4.0, 8.0]]) @ indicators(groups, 4).T).tolist() == [[5.0, 2.0]]
