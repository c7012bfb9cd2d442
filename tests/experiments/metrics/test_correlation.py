"""Correlations against SciPy's, row by row."""

import time

import numpy as np
import pytest
from scipy import stats

from experiments.metrics import correlation


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_is_scipys(levels):
    """Equal to scipy.stats.spearmanr row by row, with few and with many ties, for any leading axes."""
    a, b = np.random.default_rng(6).integers(0, levels, size=(2, 3, 8, 40)).astype(np.float32)
    slow = [[stats.spearmanr(a[i, j], b[i, j]).statistic for j in range(8)] for i in range(3)]
    assert correlation.spearman(a, b) == pytest.approx(np.array(slow), abs=1e-12)


def test_spearman_in_blocks_is_spearman_at_once(monkeypatch):
    """The size of the blocks changes nothing."""
    a, b = np.random.default_rng(7).standard_normal((2, 23, 10))
    whole = correlation.spearman(a, b)
    monkeypatch.setattr(correlation, "_BLOCK", 30)
    assert (correlation.spearman(a, b) == whole).all()


def test_split_halves_by_hand():
    """Same order 1, opposite order -1, a constant row NaN."""
    halves = np.array([[[1.0, 2, 3], [1, 2, 3], [1, 1, 1]], [[10.0, 20, 90], [3, 2, 1], [1, 2, 3]]])
    result = correlation.split_half_spearman(halves)
    assert result[:2] == pytest.approx([1, -1])
    assert np.isnan(result[2])


def test_spearman_of_a_large_benchmark_takes_seconds():
    """1000 queries × 5000 examples in about half a second on one core (a generous limit: machines differ)."""
    a, b = np.random.default_rng(8).standard_normal((2, 1000, 5000), dtype=np.float32)
    start = time.perf_counter()
    correlation.spearman(a, b)
    assert time.perf_counter() - start < 10
