"""The probability density of the sampling trajectory that an image came from."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution.diffusion import Denoiser
from attribution.diffusion.samplers import Sampler
from attribution.draws import Draws
from attribution.images import ImageSet
from attribution.measurements.base import Measure
from attribution.node import Node

_DETERMINISTIC = (
    "measurement=trajectory: a deterministic sampler's trajectories have no density: set diffusion.sampler.eta above 0 and "
    "diffusion.sampler.steps to at least 2, or take diffusion=ddpm"
)


@dataclass(frozen=True)
class TrajectoryLikelihood(Measure):
    """``-Σ log N(x_s; μ_θ(x_t, t), σ_t² I)`` over the S steps x_t → x_s of a stored trajectory, in nats (K-FAC paper §3, fig. 19).

    Mean and variance are the transitions of the ``sampler`` that made the trajectory, its clipping included: where the predicted
    image is clipped, a pixel has no gradient. The last step, which adds no noise, gets the variance of the one before
    (σ_1² := σ_2²). The constant -log p(x_T) is left out.

    What is measured are trajectories ``[B, S + 1, C, H, W]`` (``samplers.Trajectory.states``) instead of images; ``inputs`` takes
    them. A draw chooses a step: the one from the sampler's last timestep that is not above the drawn one (under DDPM, the drawn
    timestep itself). Its noise is not used.

    Raises:
        ValueError: a deterministic sampler, or one of a single step: its trajectories have no density.
    """

    sampler: Sampler

    def __post_init__(self):
        if min(self._stds) == 0:
            raise ValueError(_DETERMINISTIC)

    def subject(self, images: ImageSet) -> Node[Any]:
        if images.trajectories is None:
            raise ValueError(
                f"measurement=trajectory: {type(images).__name__} did not come from a sampler of this model: take generated "
                "queries (queries=generated; of a benchmark's pools remove the others, as by '~benchmark.queries.validation')"
            )
        return images.trajectories

    def inputs(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """``([B·K, 2, C, H, W], t [B·K], [0])``: the states before and after the step that each draw chooses; no noise.

        Raises:
            ValueError: other than S + 1 states, or draws that flip.
        """
        S = len(self._timesteps)
        if x0.dim() != 5 or x0.shape[1] != S + 1:
            raise ValueError(
                f"measurement=trajectory got {list(x0.shape)} instead of trajectories of diffusion.sampler, [B, {S + 1}, C, H, W]: "
                "take generated images as queries, with all the states that they came from"
            )
        if draws.flip.any():
            raise ValueError("measurement=trajectory: trajectories have no mirror images, take draws without flips")
        falling = torch.tensor(self._timesteps, device=x0.device)
        step = S - torch.searchsorted(falling.flip(0), draws.timestep.contiguous(), right=True)
        row = torch.arange(len(x0), device=x0.device).unsqueeze(1)
        pairs = torch.stack([x0[row, step], x0[row, step + 1]], dim=2)
        return pairs.flatten(0, 1), falling[step].flatten(), x0.new_empty(0)

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``T / n_t · -log N(x_s; ..)`` of the steps that ``inputs`` gives; n_t: how many timesteps, when drawn, choose t."""
        if x0.dim() != 5:
            raise ValueError(
                f"measurement=trajectory was called with {list(x0.shape)}: it measures what its inputs() gives, not images"
            )
        before, after = x0.unbind(1)
        epsilon = denoise(before, t).to(x0.dtype)
        rows, costs = [], []
        for timestep in t.unique().tolist():
            some = (t == timestep).nonzero().flatten()
            step = self._timesteps.index(timestep)
            mean, _ = self.sampler.transition(self.schedule, before[some], epsilon[some], timestep, self._following[step])
            std = self._stds[step]
            nats = ((after[some] - mean) / std).square() / 2 + math.log(std * math.sqrt(2 * math.pi))
            rows.append(some)
            costs.append(self._weights[step] * nats.flatten(1).sum(1))
        return torch.cat(costs)[torch.cat(rows).argsort()]

    @cached_property
    def _timesteps(self) -> list[int]:
        return self.sampler.timesteps(self.schedule.T)

    @cached_property
    def _following(self) -> list[int]:
        return [*self._timesteps[1:], 0]

    @cached_property
    def _stds(self) -> list[float]:
        nothing, steps = torch.zeros(0), zip(self._timesteps, self._following, strict=True)
        stds = [self.sampler.transition(self.schedule, nothing, nothing, t, s)[1] for t, s in steps]
        return [*stds[:-1], stds[-1] or max(stds[-2:])]

    @cached_property
    def _weights(self) -> list[float]:
        above = [self.schedule.T + 1, *self._timesteps[:-1]]
        return (self.schedule.T / (np.array(above) - self._timesteps)).tolist()
