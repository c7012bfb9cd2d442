"""The feature of Journey-TRAK's queries (Georgiev et al. 2023, "The Journey, Not the Destination"; METHODS.md §2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.diffusion import Denoiser
from attribution.images.draws import Draws
from attribution.measurements.states import TrajectoryMeasure

SHARED = ("attribution.measurements.states",)


@dataclass(frozen=True)
class JourneyLoss(TrajectoryMeasure):
    """Mean over the S sampling steps of the loss at the model's own x̂_0^(t), noised to t again.

    x̂_0^(t) is the sampler's estimate of the image at the state x_t, clipped as it clips; no gradient goes through it.
    """

    NAME = "JourneyLoss"
    VERSION = 1

    def inputs(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The states x_t ``[B·K, C, H, W]``, their timesteps, and the noise of the draws."""
        step, t, row = self.steps(x0, draws)
        return x0[row, step].flatten(0, 1), t, draws.noise(x0.shape[2:], x0.dtype).flatten(0, 1)

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            predicted, estimate = denoise(x0, t).to(x0.dtype), torch.empty_like(x0)
            weights = torch.empty_like(t, dtype=x0.dtype)
            for timestep in t.unique().tolist():
                some = t == timestep
                estimate[some] = self.sampler.predicted_image(self.schedule, x0[some], predicted[some], timestep)
                weights[some] = self._weights[self._timesteps.index(timestep)] / len(self._timesteps)
        error = noise - denoise(self.schedule.add_noise(estimate, t, noise), t)
        return weights * error.square().flatten(1).mean(1)
