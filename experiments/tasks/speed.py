"""``task=speed``: ratios of times, measured in one process, or times on a GPU (docs/speed.md)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Literal

from hydra import compose
from omegaconf import DictConfig

from experiments.report.row import Row
from experiments.speed.curvature import curvature_speed
from experiments.speed.features import feature_speed
from experiments.speed.gpu import DeviceSuite
from experiments.speed.gradients import draws_speed, gradient_speed
from experiments.speed.retraining import retraining_speed
from experiments.speed.scaling import ScalingSuite
from experiments.speed.scoring import scoring_speed
from experiments.speed.whole_methods import MethodSizes, method_speed
from experiments.tasks.choices import config_file
from experiments.tasks.run_context import RunContext, run_context
from experiments.tasks.scaling import measure_scaling
from experiments.tasks.settings import SettingError, build

PARTS = {"curvature": curvature_speed, "scoring": scoring_speed, "features": feature_speed}
"""The tables that need only the network and its objective; ``gradients``, ``methods`` and ``retraining`` need other arguments."""
CHOICES = ("gradients", *PARTS, "methods", "retraining")


def speed(
    config: DictConfig,
    suite: Literal["ratios", "gpu", "scaling"],
    parts: Sequence[str],
    examples: int,
    repeats: int,
    draws: Sequence[int],
    groups: Sequence[int],
    steps: int,
    methods: MethodSizes,
    gpu: DeviceSuite,
    scaling: ScalingSuite,
) -> None:
    """Compare this program with plain passes of the same network, other libraries, and retraining by Lightning's fit.

    ``suite="gpu"`` measures times and memory on ``execution.device`` instead, as ``gpu`` says, for a network of its own.
    ``suite="scaling"`` measures how attribution grows with its sizes, as ``scaling`` says.

    Raises:
        SettingError: If a number is below 1 (``steps``: below 2), ``draws`` is empty, or a part, a choice of ``gpu`` or an
            estimator is unknown.
    """
    numbers = {"examples": [examples], "repeats": [repeats], "steps": [steps], "draws": draws, "groups": groups}
    for name, values in numbers.items():
        if any(value < 1 for value in values) or (name == "draws" and not draws):
            raise SettingError(f"task.{name}={','.join(map(str, values))}: must be at least 1")
    if steps < 2:
        raise SettingError(f"task.steps={steps}: must be at least 2, because the first step is not timed")
    for group, choice in (("model", gpu.model), ("data", gpu.data)):
        if config_file(f"{group}/{choice}.yaml") is None:
            raise SettingError(f"task.gpu.{group}={choice}: there is no {group}={choice}; see the files in conf/{group}")
    if unknown := [name for name in scaling.estimators if config_file(f"estimator/{name}.yaml") is None]:
        raise SettingError(f"task.scaling.estimators=[{unknown[0]}]: there is no such estimator; see the files in conf/estimator")
    if suite == "gpu":
        _on_device(config, gpu)
        return
    if suite == "scaling":
        measure_scaling(config, scaling)
        return
    if unknown := [part for part in parts if part not in CHOICES]:
        raise SettingError(f"task.parts={','.join(parts)}: {unknown[0]} is not a part; choose from {', '.join(CHOICES)}")
    with run_context(config) as run:
        network, objective = run.experiment.model().to(run.experiment.execution.torch_device()), run.experiment.objective
        sizes = (network, run.experiment.shape), (examples, draws, repeats)
        if "gradients" in parts:
            measure = build(config, "measurement")
            for speed_of in (gradient_speed, draws_speed):
                run.report.add(speed_of(*sizes[0], measure, *sizes[1]))
        for part in [part for part in PARTS if part in parts]:
            run.report.add(PARTS[part](*sizes[0], objective, *sizes[1]))
        if "methods" in parts:
            run.report.add(method_speed(run.experiment, repeats=repeats, **asdict(methods)))
        if "retraining" in parts:
            run.report.add(_retraining(run, groups, steps, repeats))


def _retraining(run: RunContext, groups: Sequence[int], steps: int, repeats: int) -> list[Row]:
    experiment = run.experiment
    images, recipe = experiment.data.load().train, replace(experiment.trainer, steps=steps)
    return retraining_speed(experiment.model, images, experiment.objective, experiment.optimizer, recipe, groups, repeats)


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
