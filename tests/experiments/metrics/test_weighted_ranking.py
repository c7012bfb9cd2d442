"""Metrics of a ranking in resamples of its examples, against scikit-learn's and against loops."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.metrics.bootstrap import SHARE_LIMITS, Bootstrap
from experiments.metrics.precision import auroc
from experiments.metrics.weighted_ranking import WeightedRanking


def drawn(positive: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Weights of examples in resamples with as many positive and as many other ones."""
    return Bootstrap(count, seed, {"examples": positive}).counts("examples", len(positive))


@pytest.mark.parametrize("levels", [3, 1000])
def test_weighted_metrics_are_scikit_learns(levels):
    """Claim: AUROC and average precision of a resample are scikit-learn's with its weights, with few and with many ties."""
    random = np.random.default_rng(0)
    positive, scores = random.random(50) < 0.3, random.integers(0, levels, 50).astype(np.float32)
    weights = np.concatenate([np.ones((1, 50)), drawn(positive, 8, seed=1)])
    ranking = WeightedRanking.of(scores, positive, weights)
    slow = [roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    assert ranking.auroc() == pytest.approx(slow)
    assert ranking.auroc()[0] == pytest.approx(auroc(scores[None], positive)[0])
    slow = [average_precision_score(positive, scores, sample_weight=w) for w in weights]
    assert ranking.average_precision() == pytest.approx(slow)


@pytest.mark.parametrize("levels", [4, 10**9])
def test_weighted_share_is_that_of_repeated_examples(levels):
    """Claim: an example that is drawn w times takes w of the k places, the last as many as are left; ties stand in order."""
    random = np.random.default_rng(2)
    positive, scores = random.random(30) < 0.4, random.integers(0, levels, 30).astype(np.float64)
    weights = drawn(positive, 20, seed=3)
    for k in (1, 7, 30):
        slow = []
        for w in weights.astype(int):
            examples = np.repeat(np.arange(30), w)
            slow.append(positive[examples[np.argsort(-scores[examples], kind="stable")[:k]]].mean())
        assert WeightedRanking.of(scores, positive, weights).share(k) == pytest.approx(slow)


def test_resamples_keep_the_numbers_of_both_sides():
    """Claim: as many positive and other examples in every resample, each as likely as the next, by the seed."""
    positive = np.arange(40) < 10
    weights = drawn(positive, 4000, seed=0)
    assert (weights[:, positive].sum(1) == 10).all()
    assert (weights[:, ~positive].sum(1) == 30).all()
    assert np.abs(weights.mean(0) - 1).max() < 5 / np.sqrt(4000)
    assert (weights == drawn(positive, 4000, seed=0)).all()
    assert (weights != drawn(positive, 4000, seed=1)).any()


def test_intervals_cover_the_true_auroc():
    """Claim: about 95 % of intervals hold Φ(1/√2), the AUROC of outliers that lie one standard deviation higher."""
    truth, covered = 0.7602, []
    for seed in range(100):
        random = np.random.default_rng(seed)
        positive = np.arange(160) < 40
        scores = random.standard_normal(160) + positive
        spread = WeightedRanking.of(scores, positive, drawn(positive, 300, seed)).auroc()
        value = WeightedRanking.of(scores, positive, np.ones((1, 160))).auroc()[0]
        strata = Bootstrap(strata={"examples": positive})
        estimate = strata.statistic(value, {"examples": (spread, 160)}, SHARE_LIMITS).estimate()
        covered.append(estimate.low <= truth <= estimate.high)
    assert np.mean(covered) > 0.87


def test_random_scores_reach_the_random_levels():
    """Claim: the random levels are the means over random scores (of average precision, nearly, with few examples)."""
    random = np.random.default_rng(4)
    positive, once = np.arange(500) < 50, np.ones((1, 500))
    rankings = [WeightedRanking.of(scores, positive, once) for scores in random.standard_normal((1000, 500))]
    shares = [ranking.share(20)[0] for ranking in rankings]
    assert np.mean(shares) == pytest.approx(0.1, abs=4 * np.std(shares) / np.sqrt(1000))
    average = [ranking.average_precision()[0] for ranking in rankings]
    assert np.mean(average) == pytest.approx(0.1, abs=0.02)
