"""Training records with replaced timesteps: what would the scores be if examples had been trained at these (ReTrac §4.2)?

``Retimed`` is a record like any other. An estimator that replays training takes it in place of the true record.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from attribution.execution import Execution
from attribution.gradients.gradient_sets import GradientsAtRecordedDraws
from attribution.gradients.norms import GradientNorms
from attribution.images import ImageSet
from attribution.images.draws import Draws, random_draws
from attribution.nodes import Get, execution
from attribution.training import Recorded, TrainingRecord
from attribution.training.checkpoints import select

SHARED = ("attribution.images.draws", "attribution.training.checkpoints", "attribution.training.record")


class Timing(ABC):
    """Chooses the timesteps. Subclasses are frozen dataclasses; their fields are their identity."""

    @abstractmethod
    def timesteps(self, trained: Recorded, images: ImageSet, checkpoints: int | str | Sequence[int], get: Get) -> np.ndarray:
        """Return the timestep of each of n images at each of S checkpoints, int64 ``[S, n]``."""


@dataclass(frozen=True)
class AtLargestNorm(Timing):
    """t_max(z) = argmax over ``grid`` of ‖∇ℓ_t(θ_k, ε_train, z)‖ (ReTrac, definition 1); the first one if several are equal."""

    NAME = "AtLargestNorm"
    VERSION = 1

    grid: tuple[int, ...]
    execution: Execution = execution(default=Execution())

    def norms(self, trained: Recorded, images: ImageSet, checkpoints: int | str | Sequence[int]) -> GradientNorms:
        """The norms that are compared."""
        gradients = GradientsAtRecordedDraws(
            images=images, trained=trained, checkpoints=checkpoints, timesteps=self.grid, execution=self.execution
        )
        return GradientNorms(gradients)

    def timesteps(self, trained: Recorded, images: ImageSet, checkpoints: int | str | Sequence[int], get: Get) -> np.ndarray:
        return np.array(self.grid)[get(self.norms(trained, images, checkpoints)).norms.argmax(2)]


@dataclass(frozen=True)
class AtRandom(Timing):
    """t ~ U{1..T}, a function of (seed, checkpoint, example)."""

    NAME = "AtRandom"
    VERSION = 1

    seed: int = 0

    def timesteps(self, trained: Recorded, images: ImageSet, checkpoints: int | str | Sequence[int], get: Get) -> np.ndarray:
        record, ids = get(trained), get(images).ids()[:, None]
        steps = select(checkpoints, record.steps, record.losses)
        zero, T = torch.zeros(1, dtype=torch.int64), trained.process.T
        drawn = [random_draws(self.seed, f"retimed at {step}", ids, zero, T).timestep[:, 0] for step in steps]
        return torch.stack(drawn).numpy()


@dataclass(frozen=True, eq=False)
class RetimedTraining(TrainingRecord):
    """A record with replaced timesteps: ``timesteps`` maps checkpoint → example id → timestep. Noise and flips are as recorded."""

    timesteps: Mapping[int, Mapping[int, int]]

    def latest_draws(self, step: int, examples: np.ndarray) -> Draws:
        """Return the draws of the true record with replaced timesteps.

        Raises:
            KeyError: there is no timestep for a checkpoint or an example.
        """
        draws = super().latest_draws(step, examples)
        timestep = torch.tensor([self.timesteps[step][example] for example in examples.tolist()])
        return replace(draws, timestep=timestep[:, None])


@dataclass(frozen=True, kw_only=True)
class Retimed(Recorded):
    """``trained`` with timesteps chosen by ``timing``, for scores of ``images`` at ``checkpoints``."""

    NAME = "Retimed"
    VERSION = 1
    TITLE = "training with other timesteps"
    STORED = False
    ARTIFACT = RetimedTraining

    trained: Recorded
    images: ImageSet
    checkpoints: int | str | Sequence[int]
    timing: Timing

    @classmethod
    def of(cls, trained: Recorded, images: ImageSet, checkpoints: int | str | Sequence[int], timing: Timing) -> "Retimed":
        return cls(trained.model, trained.objective, trained=trained, images=images, checkpoints=checkpoints, timing=timing)

    def network(self, get: Get, step: int | None = None) -> nn.Module:
        return self.trained.network(get, step)

    def compute(self, get: Get) -> RetimedTraining:
        record, ids = get(self.trained), get(self.images).index.tolist()
        timesteps = self.timing.timesteps(self.trained, self.images, self.checkpoints, get)
        steps = select(self.checkpoints, record.steps, record.losses)
        by_id = {step: dict(zip(ids, row.tolist(), strict=True)) for step, row in zip(steps, timesteps, strict=True)}
        return RetimedTraining(record.folder, by_id)
