"""Times and memory of training, retraining and attribution on one device, for a network of the papers' size (docs/speed.md).

Images are noise and the network is untrained: neither changes the time of a pass.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn

from attribution.checks import FieldError, whole
from attribution.diffusion import eval_mode
from attribution.execution import FLOAT32_BYTES, Execution
from attribution.gradients.activations import activation_bytes
from attribution.gradients.layer_check import find_layers
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import Images
from attribution.measurements import Measure
from attribution.precision import BFLOAT16, FLOAT32, TF32
from attribution.projection import SJLT
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Alone, Mode, Together
from attribution.retraining.selection import Selection
from attribution.retraining.stacked_state import BuildOptimizer
from attribution.training.checkpoints import EverySteps
from attribution.training.fit import fit
from attribution.training.recipe import COMPILERS, Hardware, Recipe
from experiments.metrics.estimate import Estimate
from experiments.models.trained import quiet_lightning
from experiments.report.row import Row, Subject
from experiments.speed.curvature import Passes
from experiments.speed.features import FEATURES, ProjectedFeatures
from experiments.speed.scoring import QUERIES, Scoring
from experiments.speed.timing import BENCHMARK, inputs, seconds_of, synchronize

WARM_UP = 3
"""Steps that are not timed: kernels are chosen and compiled, and memory is allocated."""
ATTRIBUTION = "attribution, float32"


@dataclass(frozen=True, kw_only=True)
class DeviceSuite:
    """The measurements of ``task.suite=gpu``.

    ``model``, ``data``: choices of the configuration, for the network and the shape of images. ``batch_size``: of training.
    ``steps``: training steps that are timed, after ``WARM_UP``. ``group``: models that are retrained together; 0 leaves this out.
    ``draws``: of an image in attribution. ``repeats``: passes that are timed. ``compiler``: a backend of ``torch.compile``; None
    leaves compiled training out.
    """

    model: str
    data: str
    batch_size: int
    steps: int
    group: int
    draws: int
    repeats: int
    compiler: str | None = None

    def __post_init__(self):
        for name in ("batch_size", "steps", "draws", "repeats"):
            whole(self, name, least=1)
        whole(self, "group", least=0)
        if self.compiler not in (None, *COMPILERS):
            raise FieldError(self, "compiler", f"must be null or one of {', '.join(COMPILERS)}")

    def rows(
        self,
        model: Callable[[], nn.Module],
        shape: tuple[int, int, int],
        objective: Measure,
        optimizer: BuildOptimizer,
        execution: Execution,
    ) -> list[Row]:
        """Measure everything on the device of ``execution``, for images of ``shape`` (C, H, W)."""
        quiet_lightning()
        device = execution.torch_device()
        training = _Training(self, model, shape, objective, optimizer, device)
        network = model().to(device)
        size = _activation_bytes(network, shape, objective)
        rows: list[Row] = []
        for name, recipe in self._recipes().items():
            step, peak = _peak(device, lambda recipe=recipe: training.fit(recipe))
            planned = 4 * _bytes(network) + self.batch_size * size  # gradients, parameters and two moments; as in the plan
            values = {"training, ms a step": 1e3 * step}
            if recipe.compiler is None:
                values["retraining alone, ms a step"] = 1e3 * training.retrained(recipe, Alone(), 1)
                if self.group:
                    together = training.retrained(recipe, Together(group=self.group), self.group)
                    values[f"retraining {self.group} together, ms a step and model"] = 1e3 * together
            rows += _rows(name, values | _memory(peak, planned))
        return rows + self._attribution(network, shape, objective, execution, size)

    def _recipes(self) -> dict[str, Recipe]:
        plain = Recipe(steps=self.steps + WARM_UP, batch_size=self.batch_size, clip=1.0)
        recipes = {
            "float32": replace(plain, precision=FLOAT32),
            "TF32": replace(plain, precision=TF32),
            "bf16": replace(plain, precision=BFLOAT16),
            "bf16, channels_last": replace(plain, precision=BFLOAT16, channels_last=True),
        }
        if self.compiler is not None:
            recipes[f"bf16, channels_last, {self.compiler}"] = replace(
                plain, precision=BFLOAT16, channels_last=True, compiler=self.compiler
            )
        return recipes

    def _attribution(
        self, network: nn.Module, shape: tuple[int, int, int], objective: Measure, execution: Execution, size: float
    ) -> list[Row]:
        """The passes of K-FAC and TRAK, each with as many inputs as ``execution`` puts into a pass."""
        x0, draws = inputs(network, shape, 2, self.draws, objective.process.T)
        at_once = PerExampleGradients(network, execution.batch_size, execution.pass_bytes).inputs_per_pass(objective, x0, draws)
        examples = max(1, at_once // self.draws)
        x0, draws = inputs(network, shape, examples, self.draws, objective.process.T)
        count, device, parameters = examples * self.draws, x0.device, _bytes(network)
        passes = parameters + min(count, at_once) * size
        gradients = 3 * examples * parameters
        features = ProjectedFeatures(SJLT(FEATURES), PerExampleGradients(network, at_once), objective, x0, draws)
        scored = Scoring(network, objective, x0, draws, at_once)
        runs: dict[str, tuple[Callable[[], None], float]] = {
            "K-FAC factors": (Passes(network, objective, x0, draws).factors("expand"), passes),
            f"K-FAC scoring, {QUERIES} queries": (scored.run([3e-7]), passes + gradients + QUERIES * parameters),
            f"TRAK features, sjlt {FEATURES}": (features.run, passes + gradients),
        }
        rows: list[Row] = []
        with eval_mode(network):
            for name, (run, planned) in runs.items():
                run()
                seconds, peak = _peak(device, lambda run=run: min(seconds_of(run) for _ in range(self.repeats)))
                values = {"µs per image and draw": 1e6 * seconds / count} | _memory(peak, planned)
                rows += _rows(f"{ATTRIBUTION}: {name}", values)
        return rows


class _Training:
    """Training runs of one network on noise, and the seconds of their steps."""

    def __init__(
        self,
        suite: DeviceSuite,
        model: Callable[[], nn.Module],
        shape: tuple[int, int, int],
        objective: Measure,
        optimizer: BuildOptimizer,
        device: torch.device,
    ):
        self.model, self.objective, self.optimizer, self.device = model, objective, optimizer, device
        count = 2 * suite.batch_size
        pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
        self.images = Images(pixels, np.arange(count), np.full(count, -1))

    def fit(self, recipe: Recipe) -> float:
        """Train one model by Lightning and return the seconds of a step."""
        clock = _Clock(recipe.steps)
        hardware = Hardware(accelerator=self.device.type)
        with tempfile.TemporaryDirectory() as folder:
            settings = (self.images, self.model, self.objective, self.optimizer, recipe, EverySteps(recipe.steps), 0)
            fit(Path(folder), *settings, hardware=hardware, callbacks=[clock])
        return clock.seconds()

    def retrained(self, recipe: Recipe, mode: Mode, models: int) -> float:
        """Train ``models`` models and return the seconds of a step of one of them."""
        clock = _Clock(recipe.steps)
        with tempfile.TemporaryDirectory() as folder:
            members = [Member(seed, Selection(np.arange(len(self.images))), Path(folder) / str(seed)) for seed in range(models)]
            settings = (self.images, self.model, self.objective, self.optimizer, recipe, mode)
            fit_together(members, *settings, device=self.device, progress=clock.steps)
        return clock.seconds() / models


class _Clock(L.Callback):
    """The time of all steps after ``WARM_UP``. The device is waited for before the first and after the last of them only."""

    def __init__(self, total: int):
        self.total, self.done, self.start, self.end = total, 0, 0.0, 0.0

    def steps(self, left: range) -> Iterator[int]:
        for step in left:
            yield step
            self._tick()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        self._tick()

    def _tick(self) -> None:
        self.done += 1
        if self.done in (WARM_UP, self.total):
            synchronize()
            self.start, self.end = (time.perf_counter(), 0.0) if self.done == WARM_UP else (self.start, time.perf_counter())

    def seconds(self) -> float:
        """Return the mean seconds of a step."""
        return (self.end - self.start) / (self.total - WARM_UP)


def _peak(device: torch.device, run: Callable[[], float]) -> tuple[float, float | None]:
    """Return the result of ``run`` and the peak of the bytes that tensors took on a CUDA GPU; None on other devices."""
    if device.type != "cuda":
        return run(), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return run(), float(torch.cuda.max_memory_allocated(device))


def _memory(peak: float | None, planned: float) -> dict[str, float]:
    found = {} if peak is None else {"peak memory, GB": peak / 1e9}
    return {**found, "planned, GB": planned / 1e9}


def _rows(name: str, values: Mapping[str, float]) -> list[Row]:
    subject = Subject(name)
    return [Row(benchmark=BENCHMARK, metric=metric, subject=subject, estimate=Estimate(value)) for metric, value in values.items()]


def _bytes(network: nn.Module) -> float:
    return FLOAT32_BYTES * sum(p.numel() for p in network.parameters())


def _activation_bytes(network: nn.Module, shape: tuple[int, int, int], objective: Measure) -> float:
    """The bytes that a pass keeps for each input."""
    x0, draws = inputs(network, shape, 2, 1, objective.process.T)
    return activation_bytes(network, find_layers(network), objective, objective.inputs(x0, draws))
