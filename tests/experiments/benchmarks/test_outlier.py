"""Outlier detection: its metrics against scikit-learn's, its figure, its command line."""

import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from attribution.nodes import InMemory
from experiments import figures
from experiments.datasets import PatchesDigits, Split
from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.metrics.precision import auroc
from experiments.metrics.weighted_ranking import WeightedRanking
from tests.experiments.benchmarks.test_image_tracing import TINY, planned
from tests.experiments.figures.drawn import overlaps, texts
from tests.experiments.tasks.test_cli import rows, run


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
        estimate = Statistic.of(WeightedRanking.of(scores, positive, np.ones((1, 160))).auroc()[0], spread).estimate()
        covered.append(estimate.low <= truth <= estimate.high)
    assert np.mean(covered) > 0.87


def test_ranked_images_carry_their_rank_and_box():
    """Claim: lists in their order with ranks among all; boxed ones boxed; nothing covers anything, whatever the lengths."""
    train = InMemory()(Split(PatchesDigits(), "train"))
    values = np.random.default_rng(0).random(len(train))
    order = np.argsort(-values)
    for count in (1, 5, 24):
        lists = {"largest self-influence": order[:count], "largest self-influence of inliers": order[1::2][:count]}
        figure = figures.ranked(train, lists, values, order[:2].tolist(), "outlier: label 1")
        shown = [text.split(".")[0] for text in texts(figure) if "#" in text]
        assert shown == [str(1 + i) for i in range(count)] + [str(2 + 2 * i) for i in range(count)]
        red = [patch for patch in figure.axes[0].patches if patch.get_linewidth() == 2.5]
        assert len(red) == min(2, count) + 1  # the second image stands in both lists
        assert not overlaps(figure)


def test_outlier_on_the_command_line(tmp_path):
    """Claim: both estimators with levels, intervals, paired differences; values are those of task=attribute's self-influences."""
    out, other = tmp_path / "out", tmp_path / "other"
    run(tmp_path, *TINY, "benchmark=outlier", "benchmark.k=[5,10]", "benchmark.resamples=50", f"hydra.run.dir={out}")
    found = {(r["estimator"], r["metric"]): r for r in rows(out)}
    for metric in ("outlier_share@5", "outlier_share@10", "auroc", "average_precision"):
        for name in ("retrac", "tracin"):
            assert found[name, metric]["random"] == pytest.approx(0.5 if metric == "auroc" else 10 / 70)
            assert found[name, metric]["low"] <= found[name, metric]["high"]
        difference = found["retrac", metric]["value"] - found["tracin", metric]["value"]
        assert found["retrac − tracin", metric]["value"] == pytest.approx(difference)
    for name in ("outlier_share", "self_influence_retrac", "self_influence_tracin"):
        assert (out / f"{name}.png").stat().st_size > 5000
    run(tmp_path, *TINY, "task=attribute", "task.self_influence=true", "queries.n=1", f"hydra.run.dir={other}")
    lines = [line.split(",") for line in (other / "self_influence.csv").read_text().splitlines()[1:]]
    assert found["retrac", "outlier_share@5"]["value"] == pytest.approx(np.mean([line[3] == "1" for line in lines[:5]]))
    assert found["retrac", "auroc"]["value"] == pytest.approx(
        roc_auc_score([line[3] == "1" for line in lines], [float(line[4]) for line in lines]), abs=1e-6
    )


def test_chance_is_what_random_self_influences_reach():
    """Claim: the random levels are the means over random scores (of average precision, nearly, with few examples)."""
    random = np.random.default_rng(4)
    positive, once = np.arange(500) < 50, np.ones((1, 500))
    rankings = [WeightedRanking.of(scores, positive, once) for scores in random.standard_normal((1000, 500))]
    shares = [ranking.share(20)[0] for ranking in rankings]
    assert np.mean(shares) == pytest.approx(0.1, abs=4 * np.std(shares) / np.sqrt(1000))
    average = [ranking.average_precision()[0] for ranking in rankings]
    assert np.mean(average) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["benchmark.outlier=7"], "benchmark.outlier=7"),
        (["benchmark.k=[0]"], "benchmark.k[0]=0"),
        (["benchmark.k=[71]"], "benchmark.k[0]=71"),
        (["benchmark.k=[5,2.5]"], "benchmark.k[1]=2.5"),
        (["benchmark.resamples=0"], "benchmark.resamples=0"),
        (["benchmark.resamples=1.5"], "benchmark.resamples=1.5"),
        (["benchmark.shown=0"], "benchmark.shown=0"),
    ],
)
def test_bad_settings_are_refused_before_training(arguments, said):
    """Claim: the dry run, which comes before any training, has an error that names the setting."""
    with pytest.raises(ValueError, match=re.escape(said)):
        planned(*TINY, "benchmark=outlier", "benchmark.k=[5]", *arguments)


def test_estimators_without_self_influence_are_refused(tmp_path, capfd, monkeypatch):
    """Claim: on the command line too, a sentence that names the estimator and what to choose, with nothing in the store."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    settings = [*TINY, "benchmark=outlier", "benchmark.k=[5]", "benchmark.compare=[raw_cos]", f"hydra.run.dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *settings)
    said = f"{ended.value.code}{''.join(capfd.readouterr())}"
    assert "benchmark=outlier: estimator=raw_cos has no self-influence; choose tracin or retrac" in said
    assert not (tmp_path / "store" / "TrainedModel").exists()
