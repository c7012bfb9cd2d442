"""Precision by source and AUROC by hand, by simulation and against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

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
