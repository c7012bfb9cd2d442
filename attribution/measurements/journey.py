"""The query feature of Journey-TRAK (Georgiev et al. 2023, "The Journey, Not the Destination")."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attribution.diffusion import Denoiser
from attribution.diffusion.schedule import lookup
from attribution.images.draws import Draws
from attribution.measurements.base import Inputs, per_draw
from attribution.measurements.loss import Loss
from attribution.measurements.states import TrajectoryMeasure

SHARED = ("attribution.measurements.loss", "attribution.measurements.states")


@dataclass(frozen=True)
class JourneyLoss(TrajectoryMeasure):
    """Mean over the S sampling steps of the training loss at the model's own estimate x̂_0^(t), noised to t again.

    x̂_0^(t) is the sampler's estimate of the image at the state x_t, guided and clipped as the sampler does; it is not
    differentiated. The loss at it is that of the network with the condition.
    """

    NAME = "JourneyLoss"
    VERSION = 1

    def inputs(self, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> Inputs:
        """The states x_t ``[B·K, C, H, W]``, their timesteps, and the noise of the draws."""
        step, t, row = self.steps(x0, draws)
        noise = draws.noise(x0.shape[2:], x0.dtype).flatten(0, 1)
        return Inputs(x0[row, step].flatten(0, 1), t, noise, per_draw(condition, draws))

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            output = self.output(self.sampler.conditioned(denoise, condition), x0, t, None).to(x0.dtype)
            estimate = self.transitions.predicted_image(self.ddpm, x0, output, t)
            weights = lookup(self._shares, t, x0.dtype)
        return weights * Loss(self.process)(denoise, estimate, t, noise, condition)

    @cached_property
    def _shares(self) -> np.ndarray:
        """``T / (S n_t)`` at the timesteps of the sampler, where n_t timesteps select one when drawn, as float64 ``[T + 1]``."""
        shares = np.zeros(self.schedule.T + 1)
        shares[self._timesteps] = np.array(self._weights) / len(self._timesteps)
        return shares
