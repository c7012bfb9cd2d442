"""What is said before training."""

from pathlib import Path

import pytest

from experiments.report.report import Report
from experiments.store.store import Store
from experiments.tasks.before_training import check_before_training
from experiments.tasks.composition import experiment_of
from experiments.tasks.run_context import RunContext
from tests.experiments.tasks.test_configs import TINY, composed


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        (["trainer.ema=0.999", "trainer.ema_warmup=false", "trainer.steps=500"], "61%"),
        (["trainer.ema=0.999", "trainer.steps=500"], None),
        (["trainer.ema=0.9", "trainer.ema_warmup=false", "trainer.steps=500"], None),
        (["trainer.steps=500"], None),
    ],
)
def test_an_average_that_keeps_the_first_steps_is_said(tmp_path: Path, capsys, settings, share):
    """Claim: a plain average that holds over 1 % of the first step's weights is named, before and beside results."""
    config = composed(*TINY, *settings)
    run = RunContext(config, experiment_of(config), Store(tmp_path), Report(tmp_path, "digits", 0), None)  # pyright: ignore[reportArgumentType]
    check_before_training(run)
    assert len(run.report.warnings) == (share is not None)
    if share is not None:
        assert f"keeps {share} of the weights of the first step" in capsys.readouterr().out
        assert f"keeps {share} of the weights of the first step" in run.report.warnings[0]
