"""``task=speed``: ratios of times, measured in one process, or times on a GPU (docs/speed.md)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from hydra import compose
from omegaconf import DictConfig

from experiments.speed.curvature import curvature_speed
from experiments.speed.features import feature_speed
from experiments.speed.gpu import DeviceSuite
from experiments.speed.gradients import draws_speed, gradient_speed
from experiments.speed.retraining import retraining_speed
from experiments.speed.scoring import scoring_speed
from experiments.tasks.run_context import run_context
from experiments.tasks.settings import SettingError, build


def speed(
    config: DictConfig,
    suite: Literal["ratios", "gpu"],
    examples: int,
    repeats: int,
    draws: Sequence[int],
    groups: Sequence[int],
    steps: int,
    gpu: DeviceSuite,
) -> None:
    """Compare this program with plain passes of the same network, and retraining side by side with Lightning's fit.

    ``suite="gpu"`` measures times and memory on ``execution.device`` instead, as ``gpu`` says, for a network of its own.

    Raises:
        SettingError: If a number is below 1, or ``draws`` is empty.
    """
    numbers = {"examples": [examples], "repeats": [repeats], "steps": [steps], "draws": draws, "groups": groups}
    for name, values in numbers.items():
        if any(value < 1 for value in values) or (name == "draws" and not draws):
            raise SettingError(f"task.{name}={','.join(map(str, values))}: must be at least 1")
    if suite == "gpu":
        _on_device(config, gpu)
        return
    with run_context(config) as run:
        experiment = run.experiment
        shape = experiment.shape
        network = experiment.model().to(experiment.execution.torch_device())
        measure = build(config, "measurement")
        rows = gradient_speed(network, shape, measure, examples, draws, repeats)
        rows += draws_speed(network, shape, measure, examples, draws, repeats)
        for speed_of in (curvature_speed, scoring_speed, feature_speed):
            rows += speed_of(network, shape, experiment.objective, examples, draws, repeats)
        run.report.add(rows)
        images, recipe = experiment.data.load().train, replace(experiment.trainer, steps=steps)
        rows = retraining_speed(experiment.model, images, experiment.objective, experiment.optimizer, recipe, groups, repeats)
        run.report.add(rows)


def _on_device(config: DictConfig, suite: DeviceSuite) -> None:
    """Run the suite for the network and the shape of images that it names, on the run's device."""
    chosen = compose("config", [f"data={suite.data}", f"model={suite.model}", "++model.dropout=0"])
    source, execution = build(chosen, "data"), build(config, "execution")
    if execution.torch_device().type == "cpu":
        print("no GPU is used, so these are times of the CPU; execution.device=cuda chooses a GPU if there is one")
    with run_context(config) as run:
        run.report.data = suite.data  # which the table names
        rows = suite.rows(
            build(chosen, "model"), source.shape, run.experiment.objective, run.experiment.optimizer, run.experiment.execution
        )
        run.report.add(rows)
