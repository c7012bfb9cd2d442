"""Precision by source and AUROC by hand, by simulation and against scikit-learn's."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.metrics import precision as metrics
from experiments.metrics.ranking import top_k


def test_precision_by_hand():
    """Claim: of proponents 3, 0, 2 (source: 2, 3) two are of the source; levels are its share and 1, or what it allows."""
    own = np.array([False, False, True, True])
    top = top_k(np.array([[2.0, 0, 1, 3], [4, 3, 2, 1]]), 3)
    assert metrics.source_precision(top, own, 1).tolist() == [1, 0]
    assert metrics.source_precision(top, own, 3) == pytest.approx([2 / 3, 1 / 3])
    assert metrics.random_precision(own) == 0.5
    assert [metrics.maximum_precision(own, k) for k in (1, 2, 4)] == [1, 1, 0.5]


def test_random_scores_reach_the_random_level():
    """Claim: at random, precision is the share of own examples at every k, and AUROC one half."""
    random = np.random.default_rng(0)
    own, scores = np.arange(200) < 30, random.standard_normal((2000, 200))
    for k in (1, 20):
        reached = metrics.source_precision(top_k(scores, k), own, k)
        assert abs(reached.mean() - 0.15) < 4 * reached.std() / np.sqrt(2000)
    assert metrics.auroc(scores, own).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_scikit_learns(levels):
    """Claim: query by query, with few and with many ties."""
    random = np.random.default_rng(1)
    own, scores = random.random(60) < 0.2, random.integers(0, levels, (7, 60)).astype(np.float32)
    assert metrics.auroc(scores, own) == pytest.approx([roc_auc_score(own, row) for row in scores])


def test_first_rank_against_sorting():
    """Claim: the place of the best chosen example in the order of scores, behind equal ones; at random, (N + 1)/(n + 1)."""
    random = np.random.default_rng(2)
    scores, chosen = random.normal(size=(5, 30)), random.random(30) < 0.2
    expected = [1 + [bool(chosen[i]) for i in np.argsort(-row)].index(True) for row in scores]
    assert metrics.first_rank(scores, chosen).tolist() == expected
    assert metrics.first_rank(np.ones((1, 30)), chosen).tolist() == [31 - chosen.sum()]
    reached = metrics.first_rank(random.random((4000, 30)), chosen)
    assert reached.mean() == pytest.approx(metrics.random_first_rank(chosen), abs=4 * reached.std() / 4000**0.5)


def test_recall_and_average_precision_of_single_images():
    """Claim: recall counts the chosen images of each query among its own top k; average precision is scikit-learn's."""
    random = np.random.default_rng(3)
    scores, chosen = random.integers(0, 9, (7, 60)).astype(np.float32), random.random((7, 60)) < 0.1
    chosen[:, 0] = True
    found = [sum(chosen[q, i] for i in top) / chosen[q].sum() for q, top in enumerate(top_k(scores, 10))]
    assert metrics.recall(scores, chosen, 10) == pytest.approx(found)
    by_row = [average_precision_score(*pair) for pair in zip(chosen, scores, strict=True)]
    assert metrics.average_precision(scores, chosen) == pytest.approx(by_row)


@pytest.mark.parametrize(("chosen", "examples"), [(1, 1), (1, 5), (2, 5), (3, 4)])
def test_average_precision_at_random(chosen, examples):
    """Claim: the mean over all orders of the examples."""
    orders = [np.array(order) for order in itertools.permutations(range(examples))]
    values = metrics.average_precision(np.stack(orders), np.stack([np.arange(examples) < chosen] * len(orders)))
    assert metrics.random_average_precision(chosen, examples) == pytest.approx(values.mean())
