"""``task=speed task.suite=scaling``: how attribution grows with its sizes, for the data and the network of the run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from experiments import figures
from experiments.models.rehearsal import rehearse
from experiments.speed.rates import Rates
from experiments.speed.scaling import AXES, PAPER, Measured, ScalingSuite, Sizes, Work, laws, measure, rows
from experiments.store.progress import track
from experiments.tasks.before_training import check_draws
from experiments.tasks.choices import overrides_of_run
from experiments.tasks.composition import experiment_of
from experiments.tasks.run_context import run_context
from experiments.tasks.settings import SettingError, build

_OWN = ("task", "estimator", "queries", "explained")
"""Groups that a point chooses itself."""


def measure_scaling(config: DictConfig, suite: ScalingSuite) -> None:
    """Measure the points of ``suite`` and report them with the laws that fit them, as rows and as a figure.

    Raises:
        SettingError: an estimator that takes no draws, a network without channels to widen, or more images or
            queries than the data set has.
    """
    channels = OmegaConf.select(config, "model.block_out_channels")
    if channels is None:
        raise SettingError("task.suite=scaling: this model has no block_out_channels to widen; choose one that has, as unet_digits")
    pairs = [(name, sizes) for name in suite.estimators for sizes in suite.sizes()]
    works = {pair: _work(_composed(config, *pair, channels)) for pair in pairs}
    with run_context(config) as run:
        points: list[Measured] = []
        for name, sizes in track(pairs, "scaling"):
            try:
                points.append(measure(name, sizes, works[name, sizes], torch.get_num_threads()))
            except Exception as error:  # as of a process that the system ended for its memory
                run.report.warn(f"{name} at {sizes}: not measured ({type(error).__name__}: {error})")
        run.report.add(rows(points))
        if found := laws(points):
            run.report.figure("scaling", figures.scaling(found, AXES, PAPER))


def _composed(config: DictConfig, name: str, sizes: Sizes, channels: Sequence[int]) -> DictConfig:
    """This run's configuration with an estimator at the sizes of a point; the network is a trained one."""
    others = [override for override in overrides_of_run() if override.key_or_group.split(".")[0] not in _OWN]
    own = [str(override.input_line) for override in others]
    numbers = [f"data.n_train={sizes.images}", f"queries.n={sizes.queries}", f"curvature.draws.n={sizes.draws}"]
    width = f"model.block_out_channels={[count * sizes.widths for count in channels]}"
    # Training changes no cost of attribution, so it is short; there are as many checkpoints as trajectory estimators take.
    training = [f"trainer.steps={4 * -(-sizes.images // config.trainer.batch_size)}", "checkpoints=epochs", "checkpoints.every=1"]
    config = compose("config", [*own, f"estimator={name}", "queries=validation", *training, *numbers, width])
    if "draws" not in config.estimator:
        raise SettingError(f"task.scaling.estimators=[{name}]: takes no draws of timesteps and noise; choose one that does")
    config.estimator.draws.n = sizes.draws
    return config


def _work(config: DictConfig) -> Work:
    experiment, estimator = experiment_of(config), build(config, "estimator")
    queries = build(config, "queries").node(experiment)
    check_draws(experiment, estimator)
    rehearse(experiment)

    def rates(folder: Path) -> Rates:
        network = experiment.model().to(experiment.execution.torch_device())  # of one point at a time
        return Rates.of(network, experiment.shape, experiment.objective, experiment.execution, folder)

    return Work(
        parameters=experiment.training.parameter_count,
        rates=rates,
        parents=[experiment.trained, experiment.train, queries],
        scores=estimator.scores(experiment.attributed, experiment.train, queries),
    )
