"""Latents on the command line: what takes values for pixels in [-1, 1] is refused before training."""

import csv

import numpy as np
import pytest

from attribution.images import Images
from tests.experiments.tasks.test_cli import FINAL, run

LATENTS = ["data=arrays", "data.size=8", "data.channels=4", "data.range=unbounded", "data.n_train=20", "data.n_validation=6"]
SMALL = [word for word in FINAL if not word.startswith("data.")]
FREE = "diffusion.sampler.clip=false"


@pytest.fixture
def root(tmp_path):
    values = 2 * np.random.default_rng(0).standard_normal((30, 4, 8, 8)).astype(np.float32)
    values[7], values[9] = values[8], values[4] + 0.01
    np.savez(tmp_path / "made.npz", latents=values, names=np.array([f"photo{i}.jpg" for i in range(30)]))
    return f"data.root={tmp_path / 'made.npz'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=train"], r"diffusion\.sampler\.clip=true: must be false: the values of the data have no bounds"),
        ([FREE, "task=attribute", "measurement=elbo", "queries.n=2"], r"the ELBO is a bound for images of discrete values"),
        (
            [FREE, "task=attribute", "queries=folder", "queries.path=."],
            r"queries\.path=\.: image files are no queries for a model of",
        ),
        pytest.param(
            [FREE, "benchmark=counterfactual", "benchmark.fractions=[0.1]"],
            r"leave these queries out with queries@benchmark\.queries\.generated=none",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_needs_bounds_is_refused(tmp_path, root, arguments, message):
    """Claim: the sampler's clipping, the ELBO, image files as queries, and distances of pixels; nothing is trained."""
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *SMALL, *LATENTS, root, *arguments)
    assert not (tmp_path / "store" / "TrainedModel").exists()


@pytest.mark.slow
def test_latents_are_explained(tmp_path, root):
    """Claim: generated latents go beyond [-1, 1] and are drawn on the scale of the data; duplicates are listed before training."""
    out = tmp_path / "out"
    more = [FREE, "task=attribute", "queries=generated", "queries.n=2", "estimator=raw_dot", "diffusion.sampler.steps=4"]
    printed = run(tmp_path, *SMALL, *LATENTS, "data.n_train=24", root, *more, f"hydra.run.dir={out}")
    lines = list(csv.DictReader((out / "scores" / "train.csv").read_text().splitlines()))
    assert all(line["name"] == f"photo{line['index']}.jpg" for line in lines)
    names = {line["name"] for line in lines}
    if {"photo7.jpg", "photo8.jpg"} <= names:
        assert "2 of 24 training images have an exact copy" in printed
        assert "photo7.jpg = photo8.jpg" in printed
    if {"photo4.jpg", "photo9.jpg"} <= names:
        assert "photo4.jpg ~ photo9.jpg" in printed
    assert names & {"photo7.jpg", "photo4.jpg"}
    (folder,) = (tmp_path / "store" / "Samples").iterdir()
    samples = Images.load(folder)
    assert np.abs(samples.pixels).max() > 1
    assert samples.display > 2
