"""Benchmarks that compare the explained model with models of subsets: predicted changes, agreement; and losses by timestep."""

import re

import numpy as np
import pytest
from hydra.utils import instantiate
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr

from attribution.measurements import LossAtT
from attribution.nodes import InMemory
from experiments import figures
from experiments.metrics import lds as metrics
from experiments.models.measured import Measured
from experiments.report.report import Report
from experiments.tasks.composition import experiment_of
from tests.experiments.tasks.test_cli import FINAL, rows, run
from tests.experiments.tasks.test_configs import composed

SMALL = [
    *FINAL,
    "benchmark.subsets.count=4",
    "benchmark.repeats=0",
    "benchmark.steps=6",
    "benchmark.draws.n=4",
    "benchmark.queries.validation.n=5",
    "queries@benchmark.queries.generated=none",
    "benchmark.resamples=50",
    "estimator.draws.n=2",
    "curvature.draws.n=2",
]


def evaluated(folder, *overrides):
    """The rows of a benchmark computed in memory, its experiment and what computed it."""
    config = composed(*SMALL, *overrides)
    experiment, get = experiment_of(config), InMemory()
    benchmark = instantiate(config.benchmark, _convert_="all")
    estimators = {"kfac": instantiate(config.estimator, _convert_="all")}
    report = Report(folder, data="digits", seed=0)
    benchmark.evaluate(experiment, estimators, get, report)
    return report, benchmark, experiment, estimators["kfac"], get


def measurements(benchmark, experiment, measure, get):
    """The measurement of every query under the explained model ``[Q]``, and under those of the subsets ``[Q, M]``, by hand."""
    images = benchmark.queries["validation"].node(experiment)
    models = [experiment.trained, *benchmark.truth(experiment).models()]
    nodes = [
        Measured(model=m, images=images, measure=measure, draws=benchmark.draws, execution=experiment.execution) for m in models
    ]
    before, *after = (get(node).values for node in nodes)
    return before, np.stack(after, 1)


@pytest.mark.slow
def test_shares_of_increases_are_counted_pair_by_pair(tmp_path):
    """Claim: an actual increase is a loss above that of the explained model; a predicted one, a positive sum of removed scores."""
    report, benchmark, experiment, kfac, get = evaluated(tmp_path, "benchmark=predicted_change", "benchmark.timesteps=[3,400]")
    found = {(row.estimator, row.settings["measured_t"]): row.estimate.value for row in report.rows}
    assert found.keys() == {(name, t) for name in ("kfac", "retrained models") for t in ("all", 3, 400)}
    images = benchmark.queries["validation"].node(experiment)
    removed = benchmark.subsets.removed(get(experiment.train))
    for t in ("all", 3, 400):
        measure = benchmark.measurement if t == "all" else LossAtT(experiment.diffusion.process, t)
        before, after = measurements(benchmark, experiment, measure, get)
        actual = sum(after[q, m] > before[q] for q in range(5) for m in range(4)) / 20
        node = kfac.measuring(measure).scores(experiment.trained, experiment.train, images)
        scores = get(node).at(damping=1e-8, draws=2).values
        predicted = sum((scores[q] * removed[m]).sum() > 0 for q in range(5) for m in range(4)) / 20
        assert found["retrained models", t] == pytest.approx(actual)
        assert found["kfac", t] == pytest.approx(predicted)
    assert [path.name for path in report.figures] == ["changes_validation_kfac.png"]
    assert np.allclose(metrics.predicted(scores, removed)[1, 2], (scores[1].astype(float) * removed[2]).sum())


@pytest.mark.slow
def test_changes_have_the_unit_of_the_measurement(tmp_path, monkeypatch):
    """Claim: the figure shows (1/N) Σ_{i∉S} τ[q, i] against the loss of the retrained model minus that of the explained one."""
    drawn = []
    monkeypatch.setattr(figures, "changes", lambda panels, title: drawn.append(panels) or Figure())
    _, benchmark, experiment, kfac, get = evaluated(tmp_path, "benchmark=predicted_change", "benchmark.timesteps=[400]")
    removed = benchmark.subsets.removed(get(experiment.train))
    images = benchmark.queries["validation"].node(experiment)
    for panel, measure in zip(*drawn, (benchmark.measurement, LossAtT(experiment.diffusion.process, 400)), strict=True):
        before, after = measurements(benchmark, experiment, measure, get)
        scores = get(kfac.measuring(measure).scores(experiment.trained, experiment.train, images)).at(damping=1e-8, draws=2).values
        by_hand = [[sum(scores[q, removed[m] == 1].astype(float)) / len(removed[m]) for m in range(4)] for q in range(5)]
        assert panel.predicted == pytest.approx(np.array(by_hand))
        assert panel.actual == pytest.approx(after - before[:, None])


@pytest.mark.slow
def test_agreement_is_the_mean_over_pairs_of_models(tmp_path):
    """Claim: correlations over queries of all pairs, those with the explained model apart from those of two subsets."""
    report, benchmark, experiment, _, get = evaluated(
        tmp_path, "benchmark=agreement", "measurement=elbo_weighted", "benchmark.shown=2"
    )
    before, after = measurements(benchmark, experiment, benchmark.measurement, get)
    found = {(row.estimator, row.metric): row.estimate for row in report.rows}
    for metric, slow in (("pearson", pearsonr), ("spearman", spearmanr)):
        with_all = [slow(before, after[:, m]).statistic for m in range(4)]
        of_subsets = [slow(after[:, a], after[:, b]).statistic for a in range(4) for b in range(a)]
        assert found["all images and a subset", metric].value == pytest.approx(np.mean(with_all))
        assert found["two subsets", metric].value == pytest.approx(np.mean(of_subsets))
        assert all(-1 <= found[name, metric].low <= found[name, metric].high <= 1 for name, _ in found)
    assert [path.name for path in report.figures] == ["agreement_validation.png"]


@pytest.mark.slow
def test_losses_at_timesteps(tmp_path):
    """Claim: a row for each timestep with the mean loss there, of training and of validation images; a sweep draws the curves."""
    out = tmp_path / "sweep"
    settings = ["benchmark=timestep_losses", "estimator=random", "benchmark.timesteps=[1,50,999]", "benchmark.draws.n=3"]
    settings += ["benchmark.queries.training.n=6", "benchmark.queries.validation.n=4"]
    printed = run(tmp_path, "-m", *FINAL, *settings, "trainer.steps=10,20", f"hydra.sweep.dir={out}")
    found = rows(out)
    assert {(row["queries"], row["swept"]["t"], row["swept"]["trainer.steps"]) for row in found} == {
        (kind, t, steps) for kind in ("training", "validation") for t in (1, 50, 999) for steps in (10, 20)
    }
    config = composed(*FINAL, *settings, "trainer.steps=10")
    experiment, benchmark = experiment_of(config), instantiate(config.benchmark, _convert_="all")
    images = benchmark.queries["training"].node(experiment)
    loss = LossAtT(experiment.diffusion.process, 50)
    by_hand = Measured(model=experiment.trained, images=images, measure=loss, draws=benchmark.draws, execution=experiment.execution)
    (value,) = (
        row["value"] for row in found if (row["queries"], row["swept"]["t"], row["swept"]["trainer.steps"]) == ("training", 50, 10)
    )
    assert value == pytest.approx(InMemory()(by_hand).values.mean(), rel=1e-5)
    assert str(out / "over_t.png") in printed
    assert (out / "over_t.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["predicted_change", "timestep_losses"])
@pytest.mark.parametrize("timesteps", ["[0]", "[5,1001]"])
def test_timesteps_outside_the_schedule_are_refused(name, timesteps):
    """Claim: they are found before any training."""
    config = composed(
        f"benchmark={name}", f"benchmark.timesteps={timesteps}", "estimator=random", *FINAL, "benchmark.queries.validation.n=4"
    )
    benchmark = instantiate(config.benchmark, _convert_="all")
    with pytest.raises(ValueError, match=re.escape("timesteps")):
        benchmark.nodes(experiment_of(config), {})


@pytest.mark.slow
def test_further_predictors_of_losses_at_timesteps(tmp_path):
    """Claim: scores of another measure predict every target, in a row of the matrix and in rows of their own."""
    out = tmp_path / "out"
    square = "+measurement@benchmark.predictors.square_norm=square_norm"
    run(tmp_path, *SMALL, "benchmark=lds_timesteps", "benchmark.timesteps=[1,10,200,999]", "benchmark.repeats=3",
        "benchmark.compare=[]", square, f"hydra.run.dir={out}")  # fmt: skip
    found = [row for row in rows(out) if row["estimator"] == "kfac" and "swept" in row]
    own = {row["swept"]["measured_t"]: row for row in found if row["metric"] == "lds_%"}
    square_norm = {row["swept"]["measured_t"]: row for row in found if row["metric"] == "lds_%_by_square_norm"}
    assert own.keys() == square_norm.keys() == {1, 10, 200, 999, "all"}
    for t, row in own.items():
        assert list(row["by_predicted"]) == ["1", "10", "200", "999", "all", "square_norm"]
        assert row["by_predicted"]["square_norm"]["value"] == pytest.approx(square_norm[t]["value"])
    alone = tmp_path / "alone"
    run(tmp_path, *SMALL, "benchmark=lds_timesteps", "benchmark.timesteps=[1,10,200,999]", "benchmark.repeats=3",
        "benchmark.compare=[]", "measurement=square_norm", "+measurement@benchmark.measurement=loss",
        f"hydra.run.dir={alone}")  # fmt: skip
    found = [row for row in rows(alone) if row["estimator"] == "kfac" and "swept" in row]
    by_all = {row["swept"]["measured_t"]: row["value"] for row in found if row["metric"] == "lds_%_by_all"}
    assert by_all == pytest.approx({t: square_norm[t]["value"] for t in by_all})
    assert len(by_all) == 4
