"""Ranks and top examples of matrices written by hand, and against slow truths."""

import numpy as np
import pytest

from experiments.metrics.correlation import spearman
from experiments.metrics.ranking import generally_influential, top_k


def test_top_k_orders_by_score_and_breaks_ties_by_position():
    """Largest first; of equal scores the first position wins, also across the edge of the top k."""
    scores = np.array([[1.0, 3.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, -5.0, -1.0, np.inf, -np.inf]])
    assert top_k(scores, 3).tolist() == [[1, 3, 2], [0, 1, 2], [3, 0, 2]]
    assert top_k(scores, 5)[0].tolist() == [1, 3, 2, 4, 0]


def test_top_k_is_the_stable_sort():
    """Equal to a stable descending sort on many ties, for every k and for integers."""
    scores = np.random.default_rng(0).integers(-3, 4, size=(20, 30))
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in range(1, 31):
        assert (top_k(scores.astype(np.float32), k) == order[:, :k]).all()
        assert (top_k(scores, k) == order[:, :k]).all()


@pytest.mark.parametrize("k", [0, 6])
def test_top_k_beyond_the_training_set_names_the_setting(k):
    """k outside 1..N is an error that names benchmark.k and N."""
    with pytest.raises(ValueError, match=rf"k={k}.* 5 training examples"):
        top_k(np.zeros((2, 5)), k)


def test_nan_is_never_ranked():
    """A NaN score is an error that counts them and says where the first is."""
    scores = np.zeros((4, 3))
    scores[2, 1] = scores[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"2 of 12 .* first in row 2"):
        top_k(scores, 1)
    with pytest.raises(ValueError, match="NaN, first in row 2"):
        spearman(np.zeros((4, 3)), scores)


def test_generally_influential_by_hand():
    """In the top of *more than* the share: position 7 is in 3 of 4, position 1 in 2 of 4."""
    top = np.array([[7, 1], [7, 2], [1, 7], [3, 4]])
    assert generally_influential(top, 0.5).tolist() == [7]
    assert generally_influential(top, 0.4).tolist() == [1, 7]
    assert generally_influential(top, 0.75).tolist() == []
