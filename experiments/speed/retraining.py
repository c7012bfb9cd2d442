"""Speed of training many models at once, relative to training them one after another by ``fit``."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
from torch import nn

from attribution.images import Images
from attribution.measurements import Measure
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Alone, Mode, Together
from attribution.retraining.selection import Selection
from attribution.retraining.stacked_state import BuildOptimizer
from attribution.training.checkpoints import EverySteps
from attribution.training.fit import fit
from attribution.training.recipe import Hardware, Recipe
from experiments.report.row import Row, Subject
from experiments.speed.timing import BENCHMARK, quotient


def retraining_speed(
    model: Callable[[], nn.Module],
    images: Images,
    objective: Measure,
    optimizer: BuildOptimizer,
    recipe: Recipe,
    groups: Sequence[int],
    repeats: int,
) -> list[Row]:
    """Measure ``fit / together`` for every size in ``groups``, and ``fit / alone``: ratios of seconds per model and step.

    Each model trains on a random half of ``images``. ``recipe.steps`` steps of a group are timed, and ten times as many of a single
    model. Neither setup nor the first step is timed, which favors ``fit``. All training runs on the CPU.
    """
    training = _Training(model, images, objective, optimizer, recipe)
    contenders: dict[tuple[str, int], Callable[[], float]] = {
        ("fit", 1): training.fit,
        ("alone", 1): lambda: training.members(Alone(), 1),
    }
    for group in groups:
        contenders["together", group] = lambda group=group: training.members(Together(), group)
    rounds = [{key: run() for key, run in contenders.items()} for _ in range(repeats)]
    seconds = {key: [times[key] for times in rounds] for key in contenders}
    rows: list[Row] = []
    for name, group in list(contenders)[1:]:
        ratio = quotient(seconds["fit", 1], seconds[name, group])
        subject, about = Subject(f"groups of {group}"), {**ratio.about, "group": group}
        rows.append(Row(benchmark=BENCHMARK, metric=f"fit / {name}", subject=subject, estimate=ratio.estimate, about=about))
    return rows


class _Training:
    """The training runs to time, all with the same settings."""

    def __init__(self, model: Callable[[], nn.Module], images: Images, measure: Measure, optimizer: BuildOptimizer, recipe: Recipe):
        self.model, self.images, self.measure, self.optimizer, self.recipe = model, images, measure, optimizer, recipe

    def members(self, mode: Mode, group: int) -> float:
        """Train ``group`` models in this ``mode`` and return the seconds per model and step."""
        recipe = self._recipe(single=group == 1)
        clock = _Clock()
        with tempfile.TemporaryDirectory() as folder:
            members = [Member(0, self._half(m), Path(folder) / str(m)) for m in range(group)]
            arguments = (self.images, self.model, self.measure, self.optimizer, recipe, mode)
            fit_together(members, *arguments, progress=clock.steps)
        return clock.seconds() / group

    def fit(self) -> float:
        """Train one model by ``fit`` and return the seconds per step."""
        recipe = self._recipe(single=True)
        clock, half = _Clock(), self.images.take(self._half(0).rows)
        with tempfile.TemporaryDirectory() as folder:
            arguments = (half, self.model, self.measure, self.optimizer, recipe, EverySteps(recipe.steps), 0)
            fit(Path(folder), *arguments, hardware=Hardware(accelerator="cpu"), callbacks=[clock])
        return clock.seconds()

    def _recipe(self, single: bool) -> Recipe:
        return replace(self.recipe, steps=self.recipe.steps * (10 if single else 1))

    def _half(self, m: int) -> Selection:
        count = len(self.images)
        return Selection(np.random.default_rng(m).choice(count, count // 2, replace=False))


class _Clock(L.Callback):
    """Records a time for each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def steps(self, left: range) -> Iterator[int]:
        for step in left:
            yield step
            self.times.append(time.perf_counter())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the mean seconds of all steps after the first."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)
