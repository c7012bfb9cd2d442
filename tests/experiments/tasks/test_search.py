"""Searches by Optuna: what jobs return, what they report, and what does not count."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments.metrics import lds as metrics
from experiments.report.report import read_rows
from tests.experiments.tasks.test_cli import MAIN, run
from tests.experiments.tasks.test_multirun import swept_with

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Optuna 2 with recent libraries

SUBSETS = 12
SEARCH = [
    "hydra/sweeper=search",
    *(word for word in MAIN if not word.startswith("benchmark.subsets")),
    f"benchmark.subsets.count={SUBSETS}",
    "workers=1",
    "benchmark.compare=[]",
]
ALL, HELD_OUT = "lds_%", "lds_%_held_out_subsets"


def search(folder: Path, *arguments: str) -> tuple[dict, list]:
    """Run a search, and return its results and the rows about the chosen estimator."""
    run(folder, "-m", *SEARCH, *arguments, f"hydra.sweep.dir={folder / 'sweep'}")
    results = OmegaConf.to_container(OmegaConf.load(folder / "sweep" / "optimization_results.yaml"))
    rows = [
        row
        for row in read_rows(folder / "sweep")
        if row.minus is None and row.subject.name not in ("noise ceiling", "exact retraining")
    ]
    return results, rows


@pytest.mark.slow
def test_a_study_over_dampings_and_draws(tmp_path):
    """Claim: the best value is the largest LDS on the even subsets; rows have that of all subsets and of the odd ones."""
    space = ["estimator.damping=choice(1e-9,1e-1)", "estimator.draws.n=choice(1,2)"]
    results, rows = search(tmp_path, "hydra.sweeper.n_trials=4", *space)
    held_out = [row for row in rows if row.metric == HELD_OUT and row.queries == "validation"]
    assert len(held_out) >= 2
    values = [row.about["selection_lds_%"] for row in held_out]
    assert results["best_value"] == pytest.approx(max(values))
    best = [row.settings for row, value in zip(held_out, values, strict=True) if value == pytest.approx(max(values))]
    assert results["best_params"] in [{name: settings[name] for name in results["best_params"]} for settings in best]
    assert len({row.about["selection_lds_%"] for row in held_out}) > 1
    for row in held_out:
        assert (row.about["held_out"], row.about["subsets"]) == ("odd subsets: 1, 3, 5, ...", SUBSETS // 2)
        assert row.about["selected_on"] == "even subsets, validation queries"
        [whole] = [r for r in rows if r.metric == ALL and r.queries == "validation" and r.settings == row.settings]
        assert whole.about["subsets"] == SUBSETS
        assert whole.estimate.value not in (row.estimate.value, row.about["selection_lds_%"])


@pytest.mark.slow
def test_selection_and_report_use_different_halves(tmp_path, monkeypatch):
    """Claim: with the halves exchanged, the value becomes the reported number and the reported number the value."""
    one = ["hydra.sweeper.n_trials=1", "estimator.damping=choice(1e-7)"]
    (tmp_path / "exchanged").mkdir()
    first, rows = search(tmp_path, *one)
    monkeypatch.setattr(metrics, "folds", lambda count: 1 - np.arange(count) % 2)
    second, exchanged = search(tmp_path, *one)

    def reported(found: list) -> float:
        [value] = [row.estimate.value for row in found if row.metric == HELD_OUT and row.queries == "validation"]
        return value

    assert first["best_value"] == pytest.approx(reported(exchanged))
    assert second["best_value"] == pytest.approx(reported(rows))
    assert first["best_value"] != pytest.approx(second["best_value"])


@pytest.mark.slow
def test_a_study_over_checkpoints(tmp_path):
    """Claim: estimators that replay training can be searched over checkpoints."""
    space = ["estimator=choice(retrac)", "estimator.checkpoints=choice(1,2)"]
    results, _ = search(tmp_path, "hydra.sweeper.n_trials=2", *space)
    assert results["best_params"]["estimator.checkpoints"] in (1, 2)


@pytest.mark.slow
def test_a_list_counts_as_its_best_value_on_the_selection_half(tmp_path):
    """Claim: a job with a list of dampings returns the largest LDS on the even subsets, and reports that damping on the others."""
    results, rows = search(tmp_path, "hydra.sweeper.n_trials=1", "estimator.draws.n=choice(2)", "estimator.damping=[1e-9,1e-1]")
    [held_out] = [row for row in rows if row.metric == HELD_OUT and row.queries == "validation"]
    assert held_out.about["selection_lds_%"] == pytest.approx(results["best_value"])
    assert held_out.subject.settings["estimator.damping"] in (1e-9, 1e-1)


@pytest.mark.slow
def test_a_failed_job_is_no_number(tmp_path, capfd):
    """Claim: a job that fails is a failed trial, the best is that of another, and the search ends with the error."""
    space = ["hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=1", "estimator.damping=choice(-1.0,1e-7)"]
    said = swept_with(tmp_path, *SEARCH, *space)
    assert "(estimator.damping=-1.0): estimator.damping=-1.0: must be a number, at least 0" in said
    results = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert results.best_params["estimator.damping"] == 1e-7
    assert all(row.settings.get("estimator.damping") != -1.0 for row in read_rows(tmp_path / "sweep"))


def test_a_search_without_a_result(tmp_path):
    """Claim: if all jobs fail, there is no best value, and the errors of the jobs are listed."""
    said = swept_with(tmp_path, *SEARCH, "hydra.sweeper.n_trials=2", "estimator.damping=choice(-1.0,-2.0)")
    first, *failed = said.splitlines()
    assert first == "error: the sweep stopped after jobs that failed (No trials are completed yet.)"
    assert len(failed) == 2
    assert not (tmp_path / "sweep" / "optimization_results.yaml").exists()


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["task=train"], "task=train: a search needs a number to maximize; choose task=evaluate"),
    (["benchmark=targeted"], "benchmark=targeted: it has no number that a search can maximize; choose lds"),
    (["hydra.sweeper.direction=minimize"], "hydra.sweeper.direction=minimize: a larger LDS is better; set it to maximize"),
])  # fmt: skip
def test_searches_without_a_number_are_refused(arguments, sentence, tmp_path):
    """Claim: a search that cannot end well is refused before its first job."""
    with pytest.raises(SystemExit) as ended, contextlib.chdir(tmp_path):
        run(tmp_path, "-m", "hydra/sweeper=search", "seed=choice(0,1)", *arguments)
    assert sentence in str(ended.value.code)
    assert not (tmp_path / "store").exists()


def test_too_few_subsets_are_refused_before_training(tmp_path):
    """Claim: half of the subsets must be enough for a correlation."""
    few = ["benchmark.subsets.count=5", "hydra.sweeper.n_trials=1", "estimator.damping=choice(1e-7)"]
    said = swept_with(tmp_path, *[word for word in SEARCH if "subsets" not in word], *few)
    assert "a search selects on half of the subsets" in said
    assert not list((tmp_path / "store").rglob("*.safetensors"))
