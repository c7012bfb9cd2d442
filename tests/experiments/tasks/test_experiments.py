"""Every shipped experiment composes at every scale."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from attribution.estimators import Estimator
from attribution.training.checkpoints import check_selection
from experiments.benchmarks.base import Benchmark
from experiments.tasks.composition import estimators_of, experiment_of, leave_out_draws, published_numbers
from experiments.tasks.plan import plan
from experiments.tasks.settings import check_run
from tests.experiments.tasks.compositions import CONF, options

SCALES = ("digits", "small", "paper")


def configured(name: str, *overrides: str) -> DictConfig:
    """The config of an experiment, as that of the run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"experiment={name}", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    leave_out_draws(config)
    return config


def swept(config: DictConfig) -> dict[str, list[str]]:
    """The values of the settings that the experiment sweeps."""
    return {name: str(values).split(",") for name, values in (config.hydra.sweeper.params or {}).items()}


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_at_every_scale(name, scale):
    """Claim: a shipped experiment is a set of settings that exist, of which a dry run makes objects without any data; so is each
    job of its sweep. At scale=paper that includes all estimators that it compares, at the others the last of them."""
    config = configured(name, f"scale={scale}", "task=plan", "data.root=nowhere")
    check_run(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
    assert isinstance(instantiate(config.benchmark, _convert_="all"), Benchmark)
    assert set(config.benchmark.compare) <= set(options("estimator"))
    if scale != "paper":
        config.benchmark.compare = list(config.benchmark.compare)[-1:]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert all(isinstance(estimator, Estimator) for estimator in estimators_of(config).values())
    assert instantiate(config.task).func is plan
    experiment = experiment_of(config)
    candidates = experiment.checkpoints.candidates(experiment.trainer.steps, 40)
    assert candidates[-1] == experiment.trainer.steps
    if (chosen := config.estimator.get("checkpoints")) is not None:
        check_selection(OmegaConf.to_object(chosen) if OmegaConf.is_list(chosen) else chosen, candidates, len(candidates))
    assert all(number.source for number in published_numbers(config))
    sweep = swept(config)
    for setting in sweep:
        others = [f"{other}={values[0]}" for other, values in sweep.items() if other != setting]
        for value in sweep[setting]:
            job = configured(name, f"scale={scale}", *others, f"{setting}={value}")
            assert isinstance(instantiate(job.estimator, _convert_="all"), Estimator)
