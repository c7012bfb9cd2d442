"""The experiments of D-TRAK and of K-FAC influence: every one takes a step at digits."""

from itertools import product

import pytest
from hydra import initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from attribution.measurements import Loss
from attribution.projection import SJLT, Identity
from experiments.report.published import Published
from experiments.tasks.composition import estimators_of, published_numbers
from tests.experiments.tasks.compositions import CONF, options
from tests.experiments.tasks.test_cli import rows, run
from tests.experiments.tasks.test_experiments import configured, swept

EXPERIMENTS = [name for name in options("experiment") if name.split("/")[0] in ("dtrak", "kfac")]
FAST = ("kfac/fig16",)
ONE_STEP = {
    "data.n_train": 24,
    "data.n_validation": 12,
    "trainer.steps": 12,
    "trainer.batch_size": 8,
    "model.block_out_channels": "[8,8]",
    "checkpoints.every": 3,  # not before one epoch
    "hardware.accelerator": "cpu",
    "execution.device": "cpu",
    "samples.n": 2,
    "curvature.draws.n": 2,
    "estimator.draws.n": 2,
    "estimator.projection.k": 8,
    "projection.k": 8,
    "benchmark.draws.n": 2,
    "benchmark.resamples": 20,
    "benchmark.subsets.count": 4,
    "benchmark.repeats": 3,
    "benchmark.fractions": "[0.25]",
    "benchmark.random": 1,
    "benchmark.n": 2,
    "benchmark.k": "[5]",
    "benchmark.sets": 10,
    "benchmark.queries.training.n": 3,
    "benchmark.queries.validation.n": 3,
    "benchmark.queries.generated.n": 3,
}
"""The smallest sizes; an experiment gets those that it has a setting for."""


def one_step(name: str) -> list[str]:
    """The smallest sizes for an experiment."""
    config = configured(name, "scale=digits")
    sampler = ["diffusion=ddim", "diffusion.sampler.steps=4", "diffusion.sampler.eta=1"]  # not deterministic: trajectories
    own = "projection" in config.estimator and not OmegaConf.is_interpolation(config.estimator, "projection")
    known = [key for key in ONE_STEP if OmegaConf.select(config, key) is not None and (own or key != "estimator.projection.k")]
    return [*sampler, *(f"{key}={ONE_STEP[key]}" for key in known)]


def measured(number: Published, given: dict[str, str]) -> bool:
    """Whether a job with the settings ``given`` measures a published number. CLIP takes part at scale=paper."""
    elsewhere = any(given.get(setting, str(value)) != str(value) for setting, value in number.settings.items())
    fraction = number.metric.partition("@")[2]
    return not (elsewhere or number.estimator.startswith("clip") or (fraction and "benchmark.fractions" in given))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in EXPERIMENTS])
def test_every_experiment_takes_a_step(name, tmp_path, shared_store):
    """Claim: at digits, each trains, scores, retrains and reports at the smallest sizes; of a sweep, the first job. Published
    numbers stand beside the rows that measure the same."""
    first = [f"{setting}={values[0]}" for setting, values in swept(configured(name, "scale=digits")).items()]
    sizes = [size for size in one_step(name) if size.split("=")[0] not in {setting.split("=")[0] for setting in first}]
    draws = [setting for setting in first if setting.startswith(("estimator.draws.n", "projection.k", "trainer"))]
    first = [setting for setting in first if setting not in draws]
    sizes += [f"{setting.split('=')[0]}={ONE_STEP.get(setting.split('=')[0], 4)}" for setting in draws]
    words = [f"experiment={name}", "scale=digits", *first, *sizes]
    printed = run(tmp_path, *words, f"hydra.run.dir={tmp_path / 'out'}", store=shared_store)
    found = rows(tmp_path / "out")
    assert found
    assert {(row["experiment"], row["scale"]) for row in found} == {(name, "digits")}
    assert any(path.suffix == ".png" for path in (tmp_path / "out").iterdir())
    assert "rows.jsonl" in printed
    beside = {(row["metric"], row["estimator"], row["queries"], row["published"]) for row in found if "published" in row}
    given = dict(setting.split("=") for setting in (*first, *sizes))
    numbers = [number for number in published_numbers(configured(name, "scale=digits")) if measured(number, given)]
    assert {(number.metric, number.estimator, number.queries, number.value) for number in numbers} == beside


@pytest.mark.slow
def test_a_sweep_of_an_experiment_needs_no_settings(tmp_path):
    """Claim: -m experiment=kfac/fig4 runs the four approximations and ends with a table, bars and published numbers."""
    out = tmp_path / "sweep"
    printed = run(tmp_path, "-m", "experiment=kfac/fig4", "scale=digits", *one_step("kfac/fig4"), f"hydra.sweep.dir={out}")
    settings = {"curvature.fisher": ("empirical", "mc"), "curvature.sharing": ("reduce", "expand")}
    of_kfac = [row for row in rows(out) if (row["estimator"], row["metric"], row["queries"]) == ("kfac", "lds_%", "generated")]
    found = {tuple(row["swept"][name] for name in settings): row["published"] for row in of_kfac}
    assert found.keys() == set(product(*settings.values()))
    assert found["mc", "expand"] == 21.46
    assert found["empirical", "reduce"] == 6.05
    assert str(out / "lds.png") in printed
    assert "lds % published" in " ".join(printed.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kfac/fig2a", "kfac/fig2b", "kfac/fig8", "dtrak/table_lds"])
def test_compared_estimators_have_equal_effort_as_published(name):
    """Claim: at scale=paper all that draw have the paper's number of draws, and TRAK and its relatives 32,768 features."""
    config = configured(name, "scale=paper", *(["estimator.draws.n=100"] if name.startswith("dtrak") else []))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = estimators_of(config)
    own = ("journey_trak", "retrac", "tracin")
    draws = {estimator.draws_of({}) for name, estimator in found.items() if name not in own}
    assert draws - {None} == {(100, 100) if name.startswith("dtrak") else (250, 250)}
    assert {estimator.projection.k for estimator in found.values() if hasattr(estimator, "projection")} == {32768}
    assert isinstance(configured(name, "scale=paper", "projection=none").projection, DictConfig)
    assert instantiate(configured(name, "scale=paper", "projection=none").projection) == Identity()
    assert instantiate(config.projection) == SJLT(32768)


@pytest.mark.parametrize(("name", "measured"), [("kfac_loss", "elbo"), ("trak_loss", "trajectory")])
def test_an_estimator_on_the_loss_whatever_is_measured(name, measured):
    """Claim: its measurement is the training loss, and the benchmark's stays that of the command line."""
    config = configured("kfac/fig2b", "scale=digits", f"estimator={name}", f"measurement={measured}")
    assert isinstance(instantiate(config.estimator, _convert_="all").measurement, Loss)
    assert config.benchmark.measurement._target_ == config.measurement._target_ != config.objective._target_


def test_the_command_line_wins_over_an_experiment():
    """Claim: data, sizes, a scheme of draws and an estimator without draws are given on the command line as elsewhere."""
    config = configured(
        "dtrak/table_lds", "scale=paper", "data=digits", "benchmark.subsets.count=7", "draws@estimator.draws=uniform"
    )
    assert config.data._target_.endswith("Digits")
    assert config.benchmark.subsets.count == 7
    assert config.estimator.draws._target_.endswith("Uniform")
    without = configured("kfac/fig2a", "scale=paper", "estimator=random")
    assert "draws" not in without.estimator
    refused = configured("kfac/fig2a", "scale=paper", "estimator=random", "++estimator.draws.n=3")
    assert refused.estimator.draws.n == 3  # and check_run says that there is no such setting
