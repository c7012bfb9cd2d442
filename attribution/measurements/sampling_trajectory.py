"""The probability density of the sampling trajectory that produced an image."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attribution.checks import FieldError
from attribution.diffusion import Denoiser
from attribution.images.draws import Draws
from attribution.measurements.base import Inputs, per_draw
from attribution.measurements.states import TrajectoryMeasure

SHARED = ("attribution.measurements.states",)

_DETERMINISTIC = (
    "the trajectories of a deterministic sampler have no density: sample by DDPM, or by DDIM with eta above 0 and at least 2 steps"
)


@dataclass(frozen=True)
class TrajectoryLikelihood(TrajectoryMeasure):
    """``-Σ log N(x_s; μ_θ(x_t, t), σ_t² I)`` over the S steps x_t → x_s of a trajectory, in nats (K-FAC influence §3, fig. 19).

    Mean and variance are those of the transitions of ``sampler``, which produced the trajectory, including its clipping: where the
    predicted image is clipped, a pixel has no gradient. The last step, which adds no noise, gets the variance of the step before it
    (σ_1² := σ_2²). The constant -log p(x_T) is left out.

    The noise of the draws is not used.

    Raises:
        ValueError: a deterministic sampler or one with a single step (their trajectories have no density), guidance, or a process
            other than DDPM.
    """

    NAME = "TrajectoryLikelihood"
    VERSION = 1

    def __post_init__(self):
        super().__post_init__()
        if self.sampler.guidance != 1:
            message = "the density of guided trajectories is not measured: set 1, or measure the loss"
            raise FieldError(self.sampler, "guidance", message)
        if min(self._stds) == 0:
            raise FieldError(self, "sampler", _DETERMINISTIC)

    def inputs(self, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> Inputs:
        """The states before and after the step that each draw selects, ``[B·K, 2, C, H, W]``, and its t; ``noise`` is empty."""
        step, t, row = self.steps(x0, draws)
        states = torch.stack([x0[row, step], x0[row, step + 1]], dim=2).flatten(0, 1)
        return Inputs(states, t, x0.new_empty(len(t), 0), per_draw(condition, draws))

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """``T / n_t · -log N(x_s; ..)`` of the steps that ``inputs`` gives, where n_t timesteps select the step when drawn."""
        if x0.dim() != 5:
            raise ValueError(f"{type(self).__name__} got {list(x0.shape)}: call it with what its inputs() returns, not with images")
        before, after = x0.unbind(1)
        output = self.output(denoise, before, t, condition).to(x0.dtype)
        order, costs = [], []
        for timestep in t.unique().tolist():
            rows = (t == timestep).nonzero().flatten()
            step = self._timesteps.index(timestep)
            mean, _ = self.transitions.transition(self.ddpm, before[rows], output[rows], timestep, self._following[step])
            std = self._stds[step]
            nats = ((after[rows] - mean) / std).square() / 2 + math.log(std * math.sqrt(2 * math.pi))
            order.append(rows)
            costs.append(self._weights[step] * nats.flatten(1).sum(1))
        return torch.cat(costs)[torch.cat(order).argsort()]

    @cached_property
    def _following(self) -> list[int]:
        return [*self._timesteps[1:], 0]

    @cached_property
    def _stds(self) -> list[float]:
        empty, steps = torch.zeros(0), zip(self._timesteps, self._following, strict=True)
        stds = [self.transitions.transition(self.ddpm, empty, empty, t, s)[1] for t, s in steps]
        return [*stds[:-1], stds[-1] or max(stds[-2:])]
