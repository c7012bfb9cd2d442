"""``task=speed``: ratios of times, measured in one process (docs/speed.md)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from experiments.metrics.estimate import Estimate
from experiments.report.row import Row, Subject
from experiments.speed.curvature import curvature_speed
from experiments.speed.features import feature_speed
from experiments.speed.gradients import draws_speed, gradient_speed
from experiments.speed.retraining import retraining_speed
from experiments.speed.scoring import scoring_speed
from experiments.tasks.lab import lab
from experiments.tasks.settings import build


def speed(config: DictConfig, examples: int, repeats: int, draws: Sequence[int], groups: Sequence[int], steps: int) -> None:
    """Compare this program with plain passes of the same network, and retraining side by side with Lightning's fit."""
    with lab(config) as run:
        experiment = run.experiment
        shape = experiment.shape
        network = experiment.model().to(experiment.execution.torch_device())
        measure = build(config, "measurement")
        rows = gradient_speed(network, shape, measure, examples, draws, repeats)
        rows += draws_speed(network, shape, measure, examples, draws, repeats)
        for speed_of in (curvature_speed, scoring_speed, feature_speed):
            rows += speed_of(network, shape, experiment.objective, examples, draws, repeats)
        run.report.add(_row(f"{row['examples']} examples × {row['draws']} draws", row) for row in rows)
        images, recipe = experiment.data.load().train, replace(experiment.trainer, steps=steps)
        rows = retraining_speed(experiment.model, images, experiment.objective, experiment.optimizer, recipe, groups, repeats)
        run.report.add(_row(f"groups of {row['group']}", row) for row in rows)


def _row(subject: str, ratio: dict[str, Any]) -> Row:
    """The row of a ratio with its quartiles."""
    about = dict(ratio)
    metric, value, low, high = (about.pop(name) for name in ("metric", "value", "low", "high"))
    ends = (math.nan, math.nan) if low is None else (low, high)  # a number that is not a ratio of times has no quartiles
    return Row(benchmark="speed", metric=metric, subject=Subject(subject), estimate=Estimate(value, *ends, level=0.5), about=about)
