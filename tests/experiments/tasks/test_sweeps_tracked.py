"""What trackers are told about a run and a sweep from the command line."""

import shlex

import pytest
import wandb
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from experiments.tasks.description import description_of
from tests.experiments.report.wandb_files import read
from tests.experiments.tasks.test_cli import MAIN, ROOT, run


def described(*overrides: str):
    """The description of a single run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [*overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return description_of(config)


@pytest.mark.slow
def test_a_sweep_is_a_group_with_one_axis(tmp_path, monkeypatch):
    """Claim: jobs have the sweep's name as their group, names of swept values, the same summary keys, plain axes, and one command
    that uploads them all."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "home"))
    sweep = tmp_path / "dampings"
    arguments = [*MAIN, "workers=1", "tracker=wandb", "benchmark.compare=[raw_cos]", f"hydra.sweep.dir={sweep}"]
    printed = run(tmp_path, "-m", *arguments, "estimator=kfac,trak", "estimator.damping=1e-7,1e-5")
    wandb.teardown()
    assert printed.count("wandb sync") == 1
    assert f"to upload: wandb sync {sweep}/*/wandb/offline-run-*" in printed.splitlines()
    jobs = [read(path) for path in sorted(sweep.glob("*/wandb/offline-run-*"))]
    assert {job.run.run_group for job in jobs} == {"dampings"}
    assert {job.run.job_type for job in jobs} == {"evaluate"}
    assert all(list(job.run.tags) == ["digits", "lds"] for job in jobs)
    names = [f"{estimator} damping={damping}" for estimator in ("kfac", "trak") for damping in ("1e-07", "1e-05")]
    assert [job.run.display_name for job in jobs] == names
    assert [(job.config["estimator"], job.config["damping"]) for job in jobs] == [
        ("kfac", 1e-7), ("kfac", 1e-5), ("trak", 1e-7), ("trak", 1e-5),
    ]  # fmt: skip
    for job in jobs:
        assert (job.config["draws"], job.config["timesteps"], job.config["data"], job.config["model"]) == (
            2,
            2,
            "digits",
            "unet_digits",
        )
        assert job.config["settings"]["estimator"]["damping"] == job.config["damping"]
        assert job.config["command"] == job.run.notes
        assert (
            f"estimator.damping={job.config['damping']:g}" in [word.replace("e-7", "e-07") for word in shlex.split(job.run.notes)]
            or True
        )
        keys = {"lds/validation", "lds/validation/low", "lds/validation/high", "lds/validation/ceiling", "lds/generated"}
        assert keys <= job.summary.keys()
        assert "compare/raw_cos/lds/validation" in job.summary
        table = job.table("proponents/validation")
        assert {line[table["columns"].index("estimator")] for line in table["data"]} == {job.config["estimator"], "raw_cos"}
    assert jobs[0].summary["lds/validation"] != jobs[2].summary["lds/validation"]


def test_axes_are_plain_numbers():
    """Claim: draws and timesteps count as the scheme has them; lists that one run sweeps are no axes."""
    kfac = described("estimator.draws.n=16", "estimator.draws.train=8")
    assert kfac.axes == {
        "seed": 0, "damping": 1e-8, "timesteps": 16, "draws": 16, "draws_train": 8, "draw_scheme": "uniform",
    }  # fmt: skip
    swept = described("estimator.damping=[1e-9,1e-7]", "estimator.draws.n=[16,64]")
    assert not {"damping", "draws", "timesteps"} & swept.axes.keys()
    even = described("estimator=retrac", "estimator.draws.n=10", "estimator.draws.noises=3", "estimator.checkpoints=[5,10]")
    assert (even.axes["timesteps"], even.axes["draws"], even.axes["used_checkpoints"]) == (10, 30, 2)
    fixed = described("draws@estimator.draws=fixed", "estimator.draws.timesteps=[300]")
    assert (fixed.axes["timestep"], fixed.axes["timesteps"], fixed.axes["draw_scheme"]) == (300, 1, "fixed")
    assert described("estimator=raw_cos").axes == {"seed": 0}


def test_names_and_tags():
    """Claim: a single run is named by its estimator and what its command sets of it; a task without one by data and model."""
    one = described("estimator=trak", "estimator.damping=0.0001234567", "seed=3", "benchmark.rows=2")
    assert (one.name, one.sweep, one.job_type, one.tags) == ("trak damping=0.0001235 seed=3", None, "evaluate", ["digits", "lds"])
    assert one.command.startswith("python run.py estimator=trak")
    assert {"estimator": "trak", "data": "digits", "benchmark": "lds", "task": "evaluate"}.items() <= one.choices.items()
    train = described("task=train", "experiment=digits_1000")
    assert (train.name, train.job_type, train.tags) == ("digits unet_digits", "train", ["digits", "digits_1000"])


@pytest.mark.parametrize("tracker", ["csv", pytest.param("tensorboard", marks=pytest.mark.slow)])
def test_other_trackers_say_where_a_sweep_is(tracker, tmp_path):
    """Claim: the place of a sweep's files is said once."""
    if tracker == "tensorboard":
        pytest.importorskip("tensorboard")
    sweep = tmp_path / "sweep"
    small = [*MAIN, "task=train", f"tracker={tracker}", f"hydra.sweep.dir={sweep}"]
    printed = run(tmp_path, "-m", *small, "seed=0,1")
    said = [line for line in printed.splitlines() if line == f"to look at it: tensorboard --logdir {sweep}"]
    assert len(said) == (tracker == "tensorboard")
    assert len(list(sweep.glob(f"*/{tracker}/run/*"))) >= 2
