"""Metrics of contributions of checkpoints, against loops."""

import numpy as np

from experiments.metrics import checkpoints as metrics

PARTS = np.random.default_rng(0).normal(size=(3, 4, 12))


def test_largest_share_against_a_loop():
    """Claim: the largest |part| over the sum of all; 1 where one checkpoint gives all, 1/S where all give the same or nothing."""
    found = metrics.largest_share(PARTS)
    for q in range(4):
        for i in range(12):
            sizes = [abs(PARTS[s, q, i]) for s in range(3)]
            assert found[q, i] == max(sizes) / sum(sizes)
    known = np.array([[[5.0, 1.0, 0.0]], [[0.0, -1.0, 0.0]]])
    assert metrics.largest_share(known).tolist() == [[1.0, 0.5, 0.5]]


def test_the_checkpoint_that_adds_most():
    """Claim: the largest part, not the largest magnitude; values are taken at it, for each query its own."""
    parts = np.array([[[1.0, -9.0], [0.0, 2.0]], [[3.0, 1.0], [0.0, 1.0]]])
    chosen = metrics.largest_checkpoint(parts)
    assert chosen.tolist() == [[1, 1], [0, 0]]
    assert metrics.at_checkpoint(np.array([[10, 20], [30, 40]]), chosen).tolist() == [[30, 40], [10, 20]]


def test_overlap_with_one_checkpoint_against_sets():
    """Claim: the largest, over checkpoints, of the shares of the whole top k that one checkpoint's top k holds."""
    found = metrics.overlap_with_one(PARTS, 4)
    for q in range(4):
        whole = set(np.argsort(-PARTS[:, q].sum(0))[:4])
        shares = [len(whole & set(np.argsort(-PARTS[s, q])[:4])) / 4 for s in range(3)]
        assert found[q] == max(shares)


def test_means_of_marked_queries():
    """Claim: a column's mean over the queries that are marked, or over all where none is."""
    values, where = np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[False, False], [True, False]])
    assert metrics.mean_where(values, where).tolist() == [3.0, 4.0]
    assert metrics.members(np.array([[2, 0]]), 4).tolist() == [[True, False, True, False]]
