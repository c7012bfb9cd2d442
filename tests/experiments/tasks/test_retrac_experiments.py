"""The experiments of ReTrac run from the command line, at the smallest size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from attribution.estimators.lissa_recursion import Recursion
from experiments.benchmarks.sparse_timesteps import SparseTimesteps
from tests.experiments.tasks.test_cli import rows, run
from tests.experiments.tasks.test_configs import composed, options
from tests.experiments.test_docs_run import TINY

DATA = {
    "Digits": ["data.n_train=40", "data.n_validation=24"],
    "PatchesDigits": ["data.patches=60", "data.zeros=10", "data.validation_patches=12", "data.validation_zeros=12"],
}
SMALL: dict[str, Any] = {
    "examples": 12, "timesteps": 3, "correlated": 5, "manipulated": 4, "resamples": 50, "sets": 20, "repeats": 1, "k": 3, "n": 2,
    "fixed": 7, "rows": 1,
}  # fmt: skip
"""Settings of benchmarks; one that takes a list gets a list of this number."""


def tiny(config: DictConfig) -> list[str]:
    """Overrides that make a composed experiment small."""
    benchmark, estimator = config.benchmark, config.estimator
    found = [
        f"benchmark.{name}={[n] if OmegaConf.is_list(benchmark[name]) else n}" for name, n in SMALL.items() if name in benchmark
    ]
    for kind, queries in (benchmark.get("queries") or {}).items():
        found += [f"benchmark.queries.{kind}.{name}={n}" for name, n in {"n": 4, "pool": 6}.items() if name in queries]
    if config.benchmark._target_.endswith(SparseTimesteps.__name__):
        found += ["diffusion.schedule.T=24", "diffusion.sampler.steps=4"]
    checkpoints = "[10,20]" if OmegaConf.is_list(estimator.checkpoints) else "last" if estimator.checkpoints == "last" else 2
    return [*found, f"estimator.checkpoints={checkpoints}", "estimator.draws.n=2"]


@pytest.fixture
def _short_recursions(monkeypatch):
    """Recursions of LiSSA have 8 steps. A command that compares LiSSA with others cannot shorten it."""
    call = Recursion.__call__
    monkeypatch.setattr(Recursion, "__call__", lambda self, *given: call(replace(self, depth=8), *given))


@pytest.mark.parametrize("name", [name for name in options("experiment") if name.startswith("retrac/")])
@pytest.mark.usefixtures("_short_recursions")
@pytest.mark.slow
def test_every_experiment_runs_on_digits(name, tmp_path, shared_store):
    """Claim: each ends with rows and figures, and with its published numbers beside rows that measure the same."""
    config = composed(f"experiment={name}", "scale=digits")
    data = DATA[config.data._target_.rpartition(".")[2]]
    words = [*data, "model.block_out_channels=[8,8]", *TINY, *tiny(config)]
    run(tmp_path, f"experiment={name}", "scale=digits", *words, f"hydra.run.dir={tmp_path / 'out'}", store=shared_store)
    found = rows(tmp_path / "out")
    assert all(row["experiment"] == name and row["scale"] == "digits" for row in found)
    assert list((tmp_path / "out").glob("*.png"))
    unchanged = [
        number for number in config.published if "@" not in number.metric and "timesteps" not in (number.get("settings") or {})
    ]
    for number in unchanged:
        assert any((row["metric"], row.get("published")) == (number.metric, number.value) for row in found)


def pictures(folder: Path, size: int, count: int) -> None:
    """``count`` made-up pictures of ``size`` × ``size`` pixels."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "size", "levels"),
    [("fig2", "artbench2", 128, 4), ("table1_celeba", "celeba", 256, 5), ("fig6", "tiny_imagenet", 64, 4)],
)
def test_experiments_on_folders_of_images(name, data, size, levels, tmp_path):
    """Claim: a data set that is not at hand works at scale=paper on made-up images, here with few of them and a thin U-Net."""
    for split, count in (("train", 8), ("validation", 4)):
        for label in ("a", "b"):
            pictures(tmp_path / "images" / split / label, size, count)
    given = [f"experiment=retrac/{name}", f"data.root={tmp_path / 'images'}"]
    config = composed(*given)
    words = [word for word in tiny(config) if not word.startswith(("estimator.checkpoints", "benchmark.k"))]
    words += [f"model.block_out_channels={[8] * levels}", "model.norm_num_groups=4", "diffusion.sampler.steps=2"]
    words += ["data.n_train=16", "data.n_validation=8", "trainer.steps=4", "trainer.batch_size=8", "checkpoints.every=2"]
    words += ["estimator.checkpoints=last", "samples.n=2", *(["benchmark.k=[10]"] if "k" in config.benchmark else [])]
    words += [word for word in TINY if not word.startswith(("trainer", "checkpoints", "samples"))]
    run(tmp_path, *given, *words, f"hydra.run.dir={tmp_path / 'out'}")
    found = rows(tmp_path / "out")
    assert found
    assert all(data in row["data"] and row["scale"] == "paper" for row in found)
