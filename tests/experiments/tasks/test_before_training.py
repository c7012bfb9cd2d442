"""What is said before training."""

from pathlib import Path

import numpy as np
import pytest

from attribution.images import Images
from experiments.report.report import Report
from experiments.store.store import Store
from experiments.tasks.before_training import check_before_training, notes_on_duplicates
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


def test_duplicates_are_listed_by_name():
    """Claim: copies stand in groups, nearly equal images in pairs, the first ten of each; images that differ make no line."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (60, 1, 4, 4)).astype(np.float32)
    names = np.array([f"{i}.png" for i in range(60)])
    assert notes_on_duplicates(Images(pixels, np.arange(60), np.full(60, -1), names=names)) == []
    pixels[[5, 8]], pixels[3] = pixels[2], pixels[2] + 0.03
    pixels[20:34] = pixels[19]
    copies, near = notes_on_duplicates(Images(pixels, np.arange(60), np.full(60, -1), names=names))
    assert copies == (
        "note: 18 of 60 training images have an exact copy (copies share the score that one image would get): "
        "2.png = 5.png = 8.png; " + " = ".join(f"{i}.png" for i in range(19, 29)) + " = and 5 more"
    )
    assert (
        near == "note: 1 pair of 60 training images differ by at most 2% of the range of pixels (root mean square): 2.png ~ 3.png"
    )
