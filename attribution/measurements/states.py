"""Measures of the sampling trajectory that produced an image, instead of the image."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError
from attribution.diffusion.samplers import Sampler, TransitionSampler
from attribution.images import ImageSet
from attribution.images.draws import Draws
from attribution.images.proposals import Proposal
from attribution.measurements.base import DDPMMeasure
from attribution.nodes import Node

SHARED = ("attribution.measurements.base",)


@dataclass(frozen=True)
class TrajectoryMeasure(DDPMMeasure):
    """A cost of each step of trajectories ``[B, S + 1, C, H, W]`` (``images.Trajectories``) that ``sampler`` produced.

    A draw selects the step that begins at the sampler's largest timestep not above the drawn one (with ``DDPMSampler``, the drawn
    timestep itself), or at the smallest one not below it if the sampler's timesteps are trailing.
    """

    sampler: Sampler

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.sampler, TransitionSampler):
            raise FieldError(
                self, "sampler", "has no transitions between timesteps: sample by DDPM or DDIM", type(self.sampler).__name__
            )

    @property
    def transitions(self) -> TransitionSampler:
        """The sampler."""
        assert isinstance(self.sampler, TransitionSampler)
        return self.sampler

    def subject(self, images: ImageSet) -> Node[Any]:
        if images.trajectories is None:
            raise ValueError(
                f"{type(self).__name__} measures sampling trajectories, but {type(images).__name__} was not sampled from this "
                "model: use generated queries only"
            )
        return images.trajectories

    def steps(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The step ``[B, K]`` that each draw selects, its timestep ``[B·K]``, and the matching index of rows ``[B, 1]``.

        Raises:
            ValueError: a number of states other than S + 1, or draws with flips or weights.
        """
        draws.check_supported()
        S = len(self._timesteps)
        if x0.dim() != 5 or x0.shape[1] != S + 1:
            raise ValueError(
                f"{type(self).__name__} got {list(x0.shape)} instead of trajectories of the sampler, [B, {S + 1}, C, H, W]: "
                "use generated images as queries, with all states of their sampling"
            )
        if draws.flip.any():
            raise ValueError(f"{type(self).__name__}: trajectories cannot be mirrored, use draws without flips")
        step = self._step(draws)
        return step, self.timesteps(draws).flatten(), torch.arange(len(x0), device=x0.device).unsqueeze(1)

    def proposal(self) -> Proposal:
        """All steps alike: a multiple of S stratified draws selects each step equally often."""
        weights = np.array(self._weights[::-1])
        return Proposal(np.repeat(weights, np.round(self.schedule.T / weights).astype(int)))

    def timesteps(self, draws: Draws) -> Tensor:
        return torch.tensor(self._timesteps, device=draws.timestep.device)[self._step(draws)]

    def _step(self, draws: Draws) -> Tensor:
        first = torch.tensor(self._first, device=draws.timestep.device)
        return len(first) - torch.searchsorted(first, draws.timestep.contiguous(), right=True)

    @cached_property
    def _timesteps(self) -> list[int]:
        return self.transitions.timesteps(self.schedule.T)

    @cached_property
    def _first(self) -> list[int]:
        """The smallest drawn timestep that selects each step, ascending: for the last step first."""
        *below, _ = ascending = self._timesteps[::-1]
        return ascending if ascending[0] == 1 else [1, *(t + 1 for t in below)]

    @cached_property
    def _weights(self) -> list[float]:
        """T / n_t for each step, where n_t timesteps select it when drawn. Their mean over uniform draws is S."""
        counts = np.diff([*self._first, self.schedule.T + 1])
        return (self.schedule.T / counts[::-1]).tolist()
