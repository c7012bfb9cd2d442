"""Norms of the training loss's gradients, as a function of the timestep (ReTrac §4.2 and app. A)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from attribution.execution import Execution, ranges
from attribution.gradients.passes import engine
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import Images, ImageSet
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Measure
from attribution.models.pipeline import Pipeline
from attribution.nodes import Arrays, Cost, Get, Node, execution
from attribution.training import Recorded
from attribution.training.checkpoints import at_least, select

SHARED = ("attribution.gradients.passes",)


@dataclass(frozen=True, eq=False)
class Norms(Arrays):
    """``norms`` float64 and ``timestep`` int64, ``[S, n, K]``: K draws of n images under S models."""

    norms: np.ndarray
    timestep: np.ndarray


@dataclass(frozen=True, kw_only=True)
class NormsOf(ABC):
    """Of which gradients: those of ``images`` at K draws of each."""

    images: ImageSet
    execution: Execution = execution(default=Execution())

    @property
    @abstractmethod
    def count(self) -> int:
        """K."""

    @property
    @abstractmethod
    def objective(self) -> Measure:
        """Whose gradients."""

    @property
    def models(self) -> int:
        """S, or an estimate where that depends on the training."""
        return 1

    def of_each_model(self, get: Get) -> "Sequence[NormsOf]":
        """The same of each of the S models by itself."""
        return [self]

    @property
    @abstractmethod
    def suspect(self) -> str:
        """What the one model is called, and what to do where its gradients are not finite."""

    @abstractmethod
    def engine(self, get: Get) -> PerExampleGradients:
        """The network of the one model."""

    @abstractmethod
    def draws(self, index: np.ndarray, get: Get) -> Draws:
        """The draws of the images with these ids, for the one model."""


@dataclass(frozen=True, kw_only=True)
class AsTrained(NormsOf):
    """Under the model at each of ``checkpoints``, at the noise and flip that the image was last trained with before it.

    The timestep is the recorded one too, or each of ``timesteps`` in turn. ``checkpoints`` are as an estimator's.
    """

    NAME = "AsTrained"
    VERSION = 1

    record: Recorded
    checkpoints: int | str | Sequence[int]
    timesteps: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        return 1 if self.timesteps is None else len(self.timesteps)

    @property
    def objective(self) -> Measure:
        return self.record.objective

    @property
    def models(self) -> int:
        return at_least(self.checkpoints)

    def of_each_model(self, get: Get) -> "Sequence[AsTrained]":
        record = get(self.record)
        return [replace(self, checkpoints=(step,)) for step in select(self.checkpoints, record.steps, record.losses)]

    @property
    def suspect(self) -> str:
        return _trained_to(self._step)

    def engine(self, get: Get) -> PerExampleGradients:
        return engine(self.record, self._step, self.execution, get)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        trained_at = get(self.record).latest_draws(self._step, index)
        if self.timesteps is None:
            return trained_at
        shape = len(index), len(self.timesteps)
        timestep = torch.tensor(self.timesteps).expand(shape)
        return replace(trained_at.map(lambda tensor: tensor.expand(shape)), timestep=timestep)

    @property
    def _step(self) -> int:
        assert isinstance(self.checkpoints, tuple)
        (step,) = self.checkpoints
        return step


@dataclass(frozen=True, kw_only=True)
class AtScheme(NormsOf):
    """Under the model at checkpoint ``step`` (None: as it is used after training), at the draws of ``scheme`` for ``role``."""

    NAME = "AtScheme"
    VERSION = 1

    record: Recorded
    step: int | None
    scheme: DrawScheme
    role: str

    @property
    def count(self) -> int:
        return self.scheme.count

    @property
    def objective(self) -> Measure:
        return self.record.objective

    @property
    def suspect(self) -> str:
        return _trained_to(self.step)

    def engine(self, get: Get) -> PerExampleGradients:
        return engine(self.record, self.step, self.execution, get)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        return self.scheme.draw(self.role, torch.from_numpy(index), self.record.process.T)


@dataclass(frozen=True, kw_only=True)
class AsDrawn(NormsOf):
    """Under a model that others trained, whose own draws nobody knows, at ``scheme``."""

    NAME = "AsDrawn"
    VERSION = 1

    pipeline: Pipeline
    scheme: DrawScheme

    @property
    def count(self) -> int:
        return self.scheme.count

    @property
    def objective(self) -> Measure:
        return self.pipeline.objective

    @property
    def suspect(self) -> str:
        return f"the pipeline {self.pipeline.path}: choose another one"

    def engine(self, get: Get) -> PerExampleGradients:
        return PerExampleGradients(self.pipeline.network.to(self.execution.torch_device()), self.execution.batch_size)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        return self.scheme.draw("norms", torch.from_numpy(index), self.pipeline.process.T)


@dataclass(frozen=True)
class NormShard(Node[Norms]):
    """Those of the images ``rows[0]..rows[1]-1`` under one model."""

    NAME = "NormShard"
    VERSION = 1
    TITLE = "gradient norms, in shards"
    ARTIFACT = Norms
    TRANSIENT = True

    of: NormsOf
    rows: tuple[int, int]

    def cost(self) -> Cost:
        return Cost(passes=(self.rows[1] - self.rows[0]) * self.of.count)

    def compute(self, get: Get) -> Norms:
        return measured(self.of, get(self.of.images).take(slice(*self.rows)), get)


@dataclass(frozen=True)
class GradientNorms(Node[Norms]):
    """The norms of all images under all models."""

    NAME = "GradientNorms"
    VERSION = 1
    TITLE = "gradient norms"
    ARTIFACT = Norms

    of: NormsOf

    def cost(self) -> Cost:
        values = self.of.models * self.of.images.count * self.of.count
        return Cost(passes=values, disk=16 * values)

    def parts(self, get: Get) -> list[NormShard]:
        return [shard for shards in self._shards(get) for shard in shards]

    def compute(self, get: Get) -> Norms:
        of_models = [get.many(shards) for shards in self._shards(get)]
        return Norms(
            np.concatenate([np.concatenate([norms.norms for norms in found], axis=1) for found in of_models]),
            np.concatenate([np.concatenate([norms.timestep for norms in found], axis=1) for found in of_models]),
        )

    def _shards(self, get: Get) -> list[list[NormShard]]:
        """Of each model."""
        rows = ranges(0, self.of.images.count, self.of.execution.shard)
        return [[NormShard(of, some) for some in rows] for of in self.of.of_each_model(get)]


def measured(of: NormsOf, images: Images, get: Get) -> Norms:
    """Those of ``images``, some of those that ``of`` is about, under its one model: ``[1, n, K]``.

    Raises:
        FloatingPointError: a norm that is not finite, with its model and timestep.
    """
    per_example, device = of.engine(get), of.execution.torch_device()
    norms, timesteps = [], []
    for start, stop in ranges(0, len(images), _examples_at_once(of, per_example)):
        draws = of.draws(np.array(images.index[start:stop]), get)
        rows = slice(start, stop)
        captured = per_example.capture(of.objective, images.x0(rows).to(device), draws.to(device), images.conditions(rows))
        norms.append(captured.norms().double().cpu().numpy())
        timesteps.append(draws.timestep.numpy())
    found, timestep = np.concatenate(norms), np.concatenate(timesteps)
    if (bad := ~np.isfinite(found)).any():
        first = f"the first at timestep {timestep[bad][0]} under {of.suspect}"
        raise FloatingPointError(f"{bad.sum()} of {found.size} gradient norms are not finite, {first}")
    return Norms(found[None], timestep[None])


def _examples_at_once(of: NormsOf, per_example: PerExampleGradients) -> int:
    """Where there is one draw each, its norm is that of the whole gradient, which is held; of more no gradient ever is."""
    if of.count == 1:
        return of.execution.examples_at_once(sum(p.numel() for p in per_example.parameters))
    return max(1, of.execution.batch_size // of.count)


def _trained_to(step: int | None) -> str:
    model = "the final model" if step is None else f"checkpoint {step}"
    return f"{model}: training diverged; lower optimizer.lr, or trainer.clip"
