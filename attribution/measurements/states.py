"""Measures of the sampling trajectory that an image came from, instead of the image."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution.diffusion.samplers import Sampler
from attribution.images import ImageSet
from attribution.images.draws import Draws
from attribution.measurements.base import Measure
from attribution.nodes import Node


@dataclass(frozen=True)
class TrajectoryMeasure(Measure):
    """A cost of each step of the trajectories ``[B, S + 1, C, H, W]`` (``images.Trajectories``) of ``sampler``, which made them.

    A draw chooses a step: the one from the sampler's last timestep that is not above the drawn one (under DDPM, the drawn timestep
    itself).
    """

    sampler: Sampler

    def subject(self, images: ImageSet) -> Node[Any]:
        if images.trajectories is None:
            raise ValueError(
                f"{type(self).__name__} is of sampling trajectories, and {type(images).__name__} did not come from a sampler of "
                "this model: take generated queries (queries=generated; of a benchmark's pools remove the others, as by "
                "'~benchmark.queries.validation')"
            )
        return images.trajectories

    def steps(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The step ``[B, K]`` that each draw chooses, its timestep ``[B·K]``, and an index of rows ``[B, 1]`` to go with it.

        Raises:
            ValueError: other than S + 1 states, or draws that flip.
        """
        S = len(self._timesteps)
        if x0.dim() != 5 or x0.shape[1] != S + 1:
            raise ValueError(
                f"{type(self).__name__} got {list(x0.shape)} instead of trajectories of diffusion.sampler, [B, {S + 1}, C, H, W]: "
                "take generated images as queries, with all the states that they came from"
            )
        if draws.flip.any():
            raise ValueError(f"{type(self).__name__}: trajectories have no mirror images, take draws without flips")
        step = self._chosen(draws)
        return step, self.timesteps(draws).flatten(), torch.arange(len(x0), device=x0.device).unsqueeze(1)

    def timesteps(self, draws: Draws) -> Tensor:
        return torch.tensor(self._timesteps, device=draws.timestep.device)[self._chosen(draws)]

    def _chosen(self, draws: Draws) -> Tensor:
        rising = torch.tensor(self._timesteps[::-1], device=draws.timestep.device)
        return len(rising) - torch.searchsorted(rising, draws.timestep.contiguous(), right=True)

    @cached_property
    def _timesteps(self) -> list[int]:
        return self.sampler.timesteps(self.schedule.T)

    @cached_property
    def _weights(self) -> list[float]:
        """T / n_t for each step; n_t: how many timesteps, when drawn, choose it. Their mean over uniform draws is S."""
        above = [self.schedule.T + 1, *self._timesteps[:-1]]
        return (self.schedule.T / (np.array(above) - self._timesteps)).tolist()
