"""Outlier detection: its metrics against scikit-learn's, its figure, its command line."""

import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from attribution.nodes import InMemory
from experiments import figures
from experiments.datasets import PatchesDigits, Split
from tests.experiments.benchmarks.test_image_tracing import TINY, planned
from tests.experiments.figures.drawn import overlaps, texts
from tests.experiments.tasks.test_cli import rows, run


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


@pytest.mark.slow
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
    assert found["retrac", "outlier_share@5"]["value"] == pytest.approx(np.mean([line[4] == "1" for line in lines[:5]]))
    assert found["retrac", "auroc"]["value"] == pytest.approx(
        roc_auc_score([line[4] == "1" for line in lines], [float(line[5]) for line in lines]), abs=1e-6
    )


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
    assert re.search("benchmark=outlier: estimator=raw_cos does not replay training.*; choose tracin or retrac", said)
    assert not (tmp_path / "store" / "TrainedModel").exists()
