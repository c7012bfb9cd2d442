"""Sets of per-example gradients: the images, the models and the draws at which the training loss is differentiated."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from attribution.double_precision import on_device
from attribution.execution import Execution
from attribution.gradients.network_cache import engine
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import ImageSet
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Measure
from attribution.models.pipeline import Pipeline
from attribution.models.trained import Trained
from attribution.nodes import Get, execution
from attribution.training import Recorded
from attribution.training.checkpoints import at_least, select

SHARED = ("attribution.gradients.network_cache", "attribution.training.checkpoints", "attribution.training.record")


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
    @abstractmethod
    def parameter_count(self) -> int:
        """P, the number of trainable parameters of a model."""

    @property
    def models(self) -> int:
        """S, the number of models, or an estimate if it depends on the training."""
        return 1

    def per_model(self, get: Get) -> "Sequence[GradientSet]":
        """Return one set of gradients for each of the S models."""
        return [self]

    @property
    @abstractmethod
    def diverged_message(self) -> str:
        """The end of an error message for gradients that are not finite: the model and a remedy. For a single model only."""

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

    NAME = "GradientsAtRecordedDraws"
    VERSION = 1

    trained: Recorded
    checkpoints: int | str | Sequence[int]
    timesteps: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        return 1 if self.timesteps is None else len(self.timesteps)

    @property
    def parameter_count(self) -> int:
        return self.trained.parameter_count

    @property
    def objective(self) -> Measure:
        return self.trained.objective

    @property
    def models(self) -> int:
        return at_least(self.checkpoints)

    def per_model(self, get: Get) -> "Sequence[GradientsAtRecordedDraws]":
        record = get(self.trained)
        return [replace(self, checkpoints=(step,)) for step in select(self.checkpoints, record.steps, record.losses)]

    @property
    def diverged_message(self) -> str:
        return _diverged_message(self._step)

    def engine(self, get: Get) -> PerExampleGradients:
        return engine(self.trained, self._step, self.execution, get)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        recorded = get(self.trained).latest_draws(self._step, index)
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
class GradientsAtDraws(GradientSet):
    """Gradients at the draws of ``scheme`` for ``role``, under the model at checkpoint ``step`` (None: as used after training)."""

    NAME = "GradientsAtDraws"
    VERSION = 1

    trained: Trained
    step: int | None
    scheme: DrawScheme
    role: str

    @property
    def count(self) -> int:
        return self.scheme.count

    @property
    def parameter_count(self) -> int:
        return self.trained.parameter_count

    @property
    def objective(self) -> Measure:
        return self.trained.objective

    @property
    def diverged_message(self) -> str:
        return _diverged_message(self.step)

    def engine(self, get: Get) -> PerExampleGradients:
        return engine(self.trained, self.step, self.execution, get)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        return self.scheme.draw(self.role, torch.from_numpy(index), self.trained.process.T)


@dataclass(frozen=True, kw_only=True)
class PipelineGradients(GradientSet):
    """Gradients under a pretrained pipeline, at the draws of ``scheme``; the draws of its training are unknown."""

    NAME = "PipelineGradients"
    VERSION = 1

    pipeline: Pipeline
    scheme: DrawScheme

    @property
    def count(self) -> int:
        return self.scheme.count

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.pipeline.network.parameters() if p.requires_grad)

    @property
    def objective(self) -> Measure:
        return self.pipeline.objective

    @property
    def diverged_message(self) -> str:
        return f"the pipeline {self.pipeline.path}: choose another one"

    def engine(self, get: Get) -> PerExampleGradients:
        network = on_device(self.pipeline.network, self.execution.torch_device())
        return PerExampleGradients(network, self.execution.batch_size, self.execution.pass_bytes)

    def draws(self, index: np.ndarray, get: Get) -> Draws:
        return self.scheme.draw("norms", torch.from_numpy(index), self.pipeline.process.T)


def _diverged_message(step: int | None) -> str:
    model = "the final model" if step is None else f"checkpoint {step}"
    return f"{model}: training diverged; lower the learning rate, or clip gradients"
