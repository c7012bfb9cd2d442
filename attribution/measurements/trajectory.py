"""The probability density of the sampling trajectory that an image came from."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attribution.diffusion import Denoiser
from attribution.images.draws import Draws
from attribution.measurements.states import TrajectoryMeasure

SHARED = ("attribution.measurements.states",)

_DETERMINISTIC = (
    "measurement=trajectory: a deterministic sampler's trajectories have no density: set diffusion.sampler.eta above 0 and "
    "diffusion.sampler.steps to at least 2, or take diffusion=ddpm"
)


@dataclass(frozen=True)
class TrajectoryLikelihood(TrajectoryMeasure):
    """``-Σ log N(x_s; μ_θ(x_t, t), σ_t² I)`` over the S steps x_t → x_s of a stored trajectory, in nats (K-FAC paper §3, fig. 19).

    Mean and variance are the transitions of the ``sampler`` that made the trajectory, its clipping included: where the predicted
    image is clipped, a pixel has no gradient. The last step, which adds no noise, gets the variance of the one before
    (σ_1² := σ_2²). The constant -log p(x_T) is left out.

    The noise of draws is not used.

    Raises:
        ValueError: a deterministic sampler, or one of a single step: its trajectories have no density.
    """

    NAME = "TrajectoryLikelihood"
    VERSION = 1

    def __post_init__(self):
        if min(self._stds) == 0:
            raise ValueError(_DETERMINISTIC)

    def inputs(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """``([B·K, 2, C, H, W], t [B·K], [0])``: the states before and after the step that each draw chooses; no noise."""
        step, t, row = self.steps(x0, draws)
        return torch.stack([x0[row, step], x0[row, step + 1]], dim=2).flatten(0, 1), t, x0.new_empty(0)

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
    def _following(self) -> list[int]:
        return [*self._timesteps[1:], 0]

    @cached_property
    def _stds(self) -> list[float]:
        nothing, steps = torch.zeros(0), zip(self._timesteps, self._following, strict=True)
        stds = [self.sampler.transition(self.schedule, nothing, nothing, t, s)[1] for t, s in steps]
        return [*stds[:-1], stds[-1] or max(stds[-2:])]
