"""``task=timesteps``."""

import numpy as np
import pytest

from experiments.metrics import windows
from tests.experiments.tasks.test_cli import FINAL, rows, run

TASK = [*FINAL, "task=timesteps", "curvature.draws.n=2", "queries.n=3"]
TINY = [
    *TASK,
    "estimator.draws.n=20",
    "estimator.draws.train=12",
    "task.draws=[4]",
    "task.bins=2",
    "task.groups=2",
    "task.halves=8",
]


@pytest.mark.slow
def test_the_window_is_reported_with_the_settings_that_choose_it(tmp_path, monkeypatch):
    """Claim: the report has the agreement of the chosen window and of all timesteps, a figure, and the window's settings.

    The scores of a model that has learned nothing show no window, and the error says so.
    """
    with pytest.raises(SystemExit, match="say nothing about any window; draw more"):
        run(tmp_path, *TINY)
    monkeypatch.setattr(windows, "agreement", lambda predictions, query, train: np.array([[0.25, 0.5], [np.nan, 0.75]]))
    printed = run(tmp_path, *TINY, f"hydra.run.dir={tmp_path / 'out'}")
    found = {row["swept"]["window"]: row["value"] for row in rows(tmp_path / "out")}
    assert found == {"501-1000": 75.0, "1-1000": 50.0}
    assert "4 draws of either side: draws@estimator.draws=window estimator.draws.low=501 estimator.draws.high=1000" in printed
    assert (tmp_path / "out" / "agreement_4.png").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("estimator=trak", ["estimator=trak", "choose estimator=kfac"]),
        ("draws@estimator.draws=window", ["estimator.draws", "draws@estimator.draws=uniform"]),
        ("estimator.draws.shared=true", ["estimator.draws", "shared=false"]),
        ("estimator.draws.n=63", ["task.groups=4", "estimator.draws.n=63"]),
        ("estimator.damping=[1e-8,1e-7]", ["estimator.damping", "one damping"]),
        ("task.bins=1", ["task.bins=1", "2..100"]),
        ("task.groups=17", ["task.groups=17", "2..16"]),
        ("task.halves=2", ["task.halves=2", "8.."]),
        ("task.draws=[]", ["task.draws=[]", "at least 1"]),
    ],
)
def test_bad_settings_are_refused_before_training(setting, words, tmp_path):
    """Claim: the error names the setting and says what to set, and nothing is trained."""
    with pytest.raises(SystemExit) as error:
        run(tmp_path, *TASK, setting)
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "store" / "TrainedModel").exists()
