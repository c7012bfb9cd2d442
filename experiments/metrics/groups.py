"""Groups of images as units: their members as numbers, and what models of some of the groups say of each. Pure functions.

The *value* v(S) of a coalition S of G groups is the measurement of a query under a model that is trained on the groups in S (and on
the images in no group). The Shapley value (Shapley 1953; Ghorbani & Zou 2019 for data) of group g is how much adding g lowers it,
averaged over the permutations of the groups:

    φ_g = E_π [ v(before g in π) − v(before g in π, with g) ]

Permutations are drawn in *circles*: a random circular order of the groups, read from each of its G places in both directions. In
these 2G permutations every group is equally often in every position, and all their coalitions are arcs of the circle, of which
there are G(G − 1) + 1. Each permutation alone is uniformly random, so the mean is unbiased.

No model is trained on nothing. Every group is equally often the first one, so that v(∅) adds the same to all groups; it is taken as
the mean value of single groups.
"""

from collections.abc import Mapping

import numpy as np


def indicators(groups: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """1 where a group has an image, float64 ``[G, N]``, from the rows of each group."""
    result = np.zeros((len(groups), count))
    for line, rows in zip(result, groups.values(), strict=True):
        line[rows] = 1
    return result


def coalitions(orders: np.ndarray) -> np.ndarray:
    """The different arcs of circular ``orders [C, G]``, bool ``[M, G]``: true where a coalition has a group."""
    G = orders.shape[1]
    arcs = {tuple([True] * G): None}
    for order in orders:
        for size in range(G - 1, 0, -1):
            for first in range(G):
                arcs[tuple(np.isin(range(G), np.take(order, range(first, first + size), mode="wrap")).tolist())] = None
    return np.array(list(arcs))


def shapley(values: np.ndarray, members: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """The Shapley values of each circle, ``[C, .., G]``, from the ``values [.., M]`` of the coalitions ``members [M, G]``.

    The mean over circles estimates the Shapley value. Those of all groups add up to the mean value of single groups minus that of
    all groups.
    """
    place = {tuple(coalition): column for column, coalition in enumerate(members.tolist())}
    singles = np.stack([values[..., place[tuple(row)]] for row in np.eye(orders.shape[1], dtype=bool).tolist()])
    result = np.zeros((len(orders), *values.shape[:-1], orders.shape[1]))
    for of_circle, order in zip(result, orders, strict=True):
        for permutation in _readings(order):
            before, coalition = singles.mean(0), np.zeros(len(order), bool)
            for group in permutation:
                coalition[group] = True
                after = values[..., place[tuple(coalition.tolist())]]
                of_circle[..., group] += before - after
                before = after
        of_circle /= 2 * len(order)
    return result


def _readings(order: np.ndarray) -> list[np.ndarray]:
    """The permutations of a circle: from each place, in both directions."""
    return [np.roll(way, shift) for way in (order, order[::-1]) for shift in range(len(order))]
