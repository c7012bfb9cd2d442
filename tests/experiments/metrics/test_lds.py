"""The linear datamodeling score on matrices written by hand, and against slow truths."""

import numpy as np
import pytest
from scipy import stats

from experiments.metrics import lds as lds_metrics
from experiments.metrics.bootstrap import Bootstrap


def lds(predictions: np.ndarray, measured: np.ndarray, bootstrap: Bootstrap):
    """The estimate of one prediction of one target, ``[Q, M]`` each."""
    return lds_metrics.lds(predictions[None], measured[None], bootstrap)[0, 0].estimate()


def retraining(seeds: np.ndarray, bootstrap: Bootstrap):
    """The estimate of exact retraining of one target, ``[K, Q, M]``."""
    return lds_metrics.retraining(seeds[:, None], bootstrap)[0, 0].estimate()


def test_predictions_add_up_what_is_taken_away():
    """Claim: a subset's prediction is the sum of the scores of what it lacks, each times the weight it lost."""
    scores = np.array([[1.0, 2.0, 4.0]])
    removed = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.5, 0.0, 0.5]])
    assert lds_metrics.predicted(scores, removed).tolist() == [[1.0, 6.0, 2.5]]


def test_lds_is_spearman_over_subsets():
    """Claim: per query, SciPy's Spearman over the subsets; predictions that are all equal count 0."""
    random = np.random.default_rng(0)
    predictions, measured = random.normal(size=(3, 4, 20)), random.normal(size=(4, 20))
    predictions[0, 0] = 1.0
    found = lds_metrics.per_query(predictions, measured)
    for v in range(3):
        for q in range(4):
            expected = 0.0 if (v, q) == (0, 0) else stats.spearmanr(predictions[v, q], measured[q]).statistic
            assert found[v, q] == pytest.approx(expected)


def test_sign():
    """Claim: scores that say what removal really does (cost rises by τ/N each) have an LDS of 100 %, their negative of -100 %."""
    random = np.random.default_rng(1)
    scores, masks = random.normal(size=(5, 30)), random.random((16, 30)) < 0.5
    measured = 3.0 + scores @ (~masks).T / 30
    bootstrap = Bootstrap(100)
    assert lds(lds_metrics.predicted(scores, ~masks), measured, bootstrap).value == pytest.approx(1)
    assert lds(lds_metrics.predicted(-scores, ~masks), measured, bootstrap).value == pytest.approx(-1)


def test_a_resample_is_the_weighted_correlation_of_ranks():
    """Claim: a resample of queries is the mean of their LDS; one of subsets, of the correlations of ranks."""
    random = np.random.default_rng(2)
    predictions, measured = random.normal(size=(3, 12)), random.normal(size=(3, 12))
    bootstrap = Bootstrap(20, 5)
    subsets, queries = bootstrap.counts("subsets", 12), bootstrap.counts("queries", 3)
    found = lds_metrics.lds(predictions[None], measured[None], bootstrap)[0, 0]
    of_queries = np.array([stats.spearmanr(predictions[q], measured[q]).statistic for q in range(3)])
    assert found.degrees == {"queries": 2, "subsets": 11}
    for b in range(20):
        total = 0.0
        for q in range(3):
            rows = np.repeat(np.arange(12), subsets[b].astype(int))
            x, y = stats.rankdata(predictions[q])[rows], stats.rankdata(measured[q])[rows]
            total += np.corrcoef(x, y)[0, 1]
        assert found.spread["subsets"][b] == pytest.approx((total / 3 - of_queries.mean()) * (12 / 11) ** 0.5)
        drawn = (queries[b] * of_queries).sum() / 3
        assert found.spread["queries"][b] == pytest.approx((drawn - of_queries.mean()) * (3 / 2) ** 0.5)


def test_intervals_cover():
    """Claim: the 95 % interval holds the truth in about that many of repeated experiments."""
    random, hits = np.random.default_rng(3), 0
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman of a normal pair with correlation 0.6
    for trial in range(60):
        common = random.normal(size=(8, 64))
        other = 0.6 * common + 0.8 * random.normal(size=(8, 64))
        estimate = lds(common, other, Bootstrap(300, trial))
        hits += estimate.low <= truth <= estimate.high
    assert hits >= 52


def test_the_best_of_a_sweep_is_chosen_elsewhere():
    """Claim: of noise alone the held-out best is about 0, where the best on the same subsets is above; a good one is found."""
    random = np.random.default_rng(4)
    measured = random.normal(size=(10, 40))
    noise = np.repeat(random.normal(size=(30, 1, 40)), 10, 1)
    statistic, _ = lds_metrics.cross_validated(noise, measured, Bootstrap(100))
    assert abs(statistic.value) < 0.15
    with_truth = np.concatenate([noise, measured[None]])
    statistic, chosen = lds_metrics.cross_validated(with_truth, measured, Bootstrap(100))
    assert chosen == [30, 30]
    assert statistic.value == pytest.approx(1)


@pytest.mark.parametrize("subsets", [24, 25])
def test_the_interval_of_a_chosen_damping_is_as_wide_as_that_of_a_given_one(subsets):
    """Claim: with an even and an odd number of subsets, where queries differ in how well they are predicted."""
    random, widths = np.random.default_rng(subsets), []
    for _ in range(12):
        measured = random.standard_normal((30, subsets))
        predictions = random.uniform(0, 1.5, 30)[:, None] * measured + random.standard_normal((30, subsets))
        statistic, _ = lds_metrics.cross_validated(predictions[None], measured, Bootstrap(300))
        chosen, given = statistic.estimate(), lds(predictions, measured, Bootstrap(300))
        widths.append((chosen.high - chosen.low) / (given.high - given.low))
    assert np.mean(widths) == pytest.approx(1, abs=0.1)


def test_the_best_as_papers_report_it_is_chosen_on_what_it_reports():
    """Claim: the largest mean LDS of all values of the sweep, with the interval of this value alone."""
    random = np.random.default_rng(4)
    measured, sweep = random.normal(size=(5, 12)), random.normal(size=(4, 5, 12))
    bootstrap = Bootstrap(40)
    each = [lds_metrics.lds(prediction[None], measured[None], bootstrap)[0, 0] for prediction in sweep]
    value, chosen = lds_metrics.best(sweep, measured, bootstrap)
    assert chosen == int(np.argmax([one.value for one in each]))
    assert value.estimate() == each[chosen].estimate()
    assert lds_metrics.cross_validated(sweep, measured, bootstrap)[0].value <= value.value  # here the honest one is lower


def test_predictions_that_are_not_finite():
    """Claim: one NaN or infinity makes the LDS of this prediction NaN, and of no other; it is never chosen."""
    random = np.random.default_rng(5)
    measured, sweep = random.normal(size=(3, 10)), random.normal(size=(3, 3, 10))
    alone = lds_metrics.lds(sweep[1:2], measured[None], Bootstrap(20))
    sweep[0, 1, 4], sweep[2, 0, 0] = np.nan, np.inf
    together = lds_metrics.lds(sweep, measured[None], Bootstrap(20))
    assert np.isnan(together.value[[0, 2], 0]).all()
    assert not together[0, 0].estimate().has_interval
    assert together[1, 0].estimate() == alone[0, 0].estimate()
    of_queries = lds_metrics.per_query(sweep, measured)
    assert np.isnan(of_queries).tolist() == [[False, True, False], [False] * 3, [True, False, False]]
    assert lds_metrics.best(sweep, measured, Bootstrap(20))[1] == 1
    assert lds_metrics.cross_validated(sweep, measured, Bootstrap(20))[1] == [1, 1]


def test_without_size_is_the_partial_rank_correlation():
    """Claim: the correlation of what remains of both ranks after a regression on those of the control; in resamples as well."""
    random = np.random.default_rng(5)
    size = random.integers(2, 20, 12).astype(float)
    predictions, measured = random.normal(size=(2, 3, 12)) + size, random.normal(size=(3, 12)) + size / 2
    bootstrap = Bootstrap(6, 5)
    found = lds_metrics.without(size, predictions, measured, bootstrap)
    ranked = [stats.rankdata(side, axis=-1) for side in (predictions, measured, size)]

    def slow(p: int, q: int, rows: np.ndarray) -> float:
        x, y, z = ranked[0][p, q, rows], ranked[1][q, rows], ranked[2][rows]
        rests = [side - np.polyval(np.polyfit(z, side, 1), z) for side in (x, y)]
        return float(np.corrcoef(*rests)[0, 1])

    for p in range(2):
        value = np.mean([slow(p, q, np.arange(12)) for q in range(3)])
        assert found.value[p] == pytest.approx(value)
        for b, times in enumerate(bootstrap.counts("subsets", 12)):
            drawn = np.mean([slow(p, q, np.repeat(np.arange(12), times.astype(int))) for q in range(3)])
            assert found.spread["subsets"][b, p] == pytest.approx((drawn - value) * (12 / 11) ** 0.5)


def test_counting_images_explains_nothing_without_size():
    """Claim: scores that are all 1 predict measurements that follow the size; without its effect nothing is left of either."""
    removed = np.arange(30) < np.array([[3], [8], [5], [12], [20]])
    scores = np.stack([np.ones((2, 30)), np.random.default_rng(6).normal(size=(2, 30))])
    predictions, size = lds_metrics.predicted(scores, removed), removed.sum(1)
    measured = np.broadcast_to(2.0 * size, (2, 5))
    assert lds_metrics.lds(predictions, measured[None], Bootstrap(10)).value[0, 0] == pytest.approx(1)
    assert lds_metrics.without(size, predictions, measured, Bootstrap(10)).value.tolist() == [0, 0]
