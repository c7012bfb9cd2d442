"""Norms of per-example gradients of the training loss: which gradients, and the nodes of their norms (ReTrac §4.2 and app. A)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from attribution.execution import Execution, ranges
from attribution.gradients.engine import engine
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import Images, ImageSet
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Measure
from attribution.models.pipeline import Pipeline
from attribution.nodes import Arrays, Cost, Get, Node, execution
from attribution.training import Recorded
from attribution.training.checkpoints import at_least, select


@dataclass(frozen=True, eq=False)
class Norms(Arrays):
    """Gradient norms ``norms`` (float64) and their ``timestep`` (int64), ``[S, n, K]``: K draws of n images under S models."""

    norms: np.ndarray
    timestep: np.ndarray


@dataclass(frozen=True, kw_only=True)
class GradientSet(ABC):
    """The gradients of ``images`` at K draws of each, under one or several models."""

    images: ImageSet
    execution: Execution = execution(default=Execution())

    @property
    @abstractmethod
    def count(self) -> int:
        """K, the number of draws of each image."""

    @property
    @abstractmethod
    def objective(self) -> Measure:
        """The measure that is differentiated."""

    @property
    def models(self) -> int:
        """S, the number of models, or an estimate if it depends on the training."""
        return 1

    def per_model(self, get: Get) -> "Sequence[GradientSet]":
        """Return one set of gradients for each of the S models."""
        return [self]

    @property
    @abstractmethod
    def model_and_remedy(self) -> str:
        """For error messages: the name of the model, and what to do if its gradients are not finite. For a single model only."""

    @abstractmethod
    def engine(self, get: Get) -> PerExampleGradients:
        """Return the network, ready for per-example gradients. For a single model only."""

    @abstractmethod
    def draws(self, index: np.ndarray, get: Get) -> Draws:
        """Return the draws of the images with the ids ``index``. For a single model only."""


@dataclass(frozen=True, kw_only=True)
class GradientsAtRecordedDraws(GradientSet):
    """Gradients under the model at each of ``checkpoints``, at the draw with which the image was last trained before it.

    Noise and flip are the recorded ones. So is the timestep, unless ``timesteps`` are given: these replace it, one draw for each.
    ``checkpoints`` takes the same values as that of an estimator.
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

    def per_model(self, get: Get) -> "Sequence[GradientsAtRecordedDraws]":
        record = get(self.record)
        return [replace(self, checkpoints=(step,)) for step in select(self.checkpoints, record.steps, record.losses)]

    @property
    def model_and_remedy(self) -> str:
        return _model_and_remedy(self._step)

    def engine(self, get: Get) -> PerExampleGradients:
        return engine(self.record, self._step, self.execution, get)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        recorded = get(self.record).latest_draws(self._step, index)
        if self.timesteps is None:
            return recorded
        shape = len(index), len(self.timesteps)
        timestep = torch.tensor(self.timesteps).expand(shape)
        return replace(recorded.map(lambda tensor: tensor.expand(shape)), timestep=timestep)

    @property
    def _step(self) -> int:
        assert isinstance(self.checkpoints, tuple)
        (step,) = self.checkpoints
        return step


@dataclass(frozen=True, kw_only=True)
class GradientsAtScheme(GradientSet):
    """Gradients at the draws of ``scheme`` for ``role``, under the model at checkpoint ``step`` (None: as used after training)."""

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
    def model_and_remedy(self) -> str:
        return _model_and_remedy(self.step)

    def engine(self, get: Get) -> PerExampleGradients:
        return engine(self.record, self.step, self.execution, get)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        return self.scheme.draw(self.role, torch.from_numpy(index), self.record.process.T)


@dataclass(frozen=True, kw_only=True)
class PipelineGradients(GradientSet):
    """Gradients under a pretrained pipeline, at the draws of ``scheme``; the draws of its training are unknown."""

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
    def model_and_remedy(self) -> str:
        return f"the pipeline {self.pipeline.path}: choose another one"

    def engine(self, get: Get) -> PerExampleGradients:
        return PerExampleGradients(self.pipeline.network.to(self.execution.torch_device()), self.execution.batch_size)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        return self.scheme.draw("norms", torch.from_numpy(index), self.pipeline.process.T)


@dataclass(frozen=True)
class NormShard(Node[Norms]):
    """The norms of the images ``rows[0]..rows[1]-1`` under one model."""

    NAME = "NormShard"
    VERSION = 1
    TITLE = "gradient norms, in shards"
    ARTIFACT = Norms
    TRANSIENT = True

    of: GradientSet
    rows: tuple[int, int]

    def cost(self) -> Cost:
        return Cost(passes=(self.rows[1] - self.rows[0]) * self.of.count)

    def compute(self, get: Get) -> Norms:
        return compute_norms(self.of, get(self.of.images).take(slice(*self.rows)), get)


@dataclass(frozen=True)
class GradientNorms(Node[Norms]):
    """The norms of all images under all models."""

    NAME = "GradientNorms"
    VERSION = 1
    TITLE = "gradient norms"
    ARTIFACT = Norms

    of: GradientSet

    def cost(self) -> Cost:
        values = self.of.models * self.of.images.count * self.of.count
        return Cost(passes=values, disk=16 * values)

    def parts(self, get: Get) -> list[NormShard]:
        return [shard for shards in self._shards(get) for shard in shards]

    def compute(self, get: Get) -> Norms:
        models = [get.many(shards) for shards in self._shards(get)]
        return Norms(
            np.concatenate([np.concatenate([shard.norms for shard in shards], axis=1) for shards in models]),
            np.concatenate([np.concatenate([shard.timestep for shard in shards], axis=1) for shards in models]),
        )

    def _shards(self, get: Get) -> list[list[NormShard]]:
        """The shards of each model."""
        rows = ranges(0, self.of.images.count, self.of.execution.shard)
        return [[NormShard(gradients, block) for block in rows] for gradients in self.of.per_model(get)]


def compute_norms(gradients: GradientSet, images: Images, get: Get) -> Norms:
    """Return the norms of ``gradients``, of a single model, for ``images``, a subset of its images: ``[1, n, K]``.

    Raises:
        FloatingPointError: a norm is not finite; the message names the model and the timestep.
    """
    per_example, device = gradients.engine(get), gradients.execution.torch_device()
    norms, timesteps = [], []
    for start, stop in ranges(0, len(images), _examples_at_once(gradients, per_example)):
        draws = gradients.draws(np.array(images.index[start:stop]), get)
        rows = slice(start, stop)
        x0, condition = images.x0(rows).to(device), images.conditions(rows)
        captured = per_example.capture(gradients.objective, x0, draws.to(device), condition)
        norms.append(captured.norms().double().cpu().numpy())
        timesteps.append(draws.timestep.numpy())
    norm, timestep = np.concatenate(norms), np.concatenate(timesteps)
    if (bad := ~np.isfinite(norm)).any():
        first = f"the first at timestep {timestep[bad][0]} under {gradients.model_and_remedy}"
        raise FloatingPointError(f"{bad.sum()} of {norm.size} gradient norms are not finite, {first}")
    return Norms(norm[None], timestep[None])


def _examples_at_once(gradients: GradientSet, per_example: PerExampleGradients) -> int:
    """The number of examples to capture at once.

    With one draw per example, its norm is computed from the whole gradient, which has to fit into memory. With several draws, the
    norms are computed without forming any gradient.
    """
    if gradients.count == 1:
        return gradients.execution.examples_at_once(sum(p.numel() for p in per_example.parameters))
    return max(1, gradients.execution.batch_size // gradients.count)


def _model_and_remedy(step: int | None) -> str:
    model = "the final model" if step is None else f"checkpoint {step}"
    return f"{model}: training diverged; lower optimizer.lr, or trainer.clip"
