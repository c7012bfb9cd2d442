"""The square norm of the network's output."""

from dataclasses import dataclass

from torch import Tensor

from attribution.diffusion import Denoiser
from attribution.measurements.base import Measure


@dataclass(frozen=True)
class SquareNorm(Measure):
    """Mean over pixels of ε_θ(x_t, t)²: no loss, it does not ask for the right noise (the output function ``square`` of D-TRAK)."""

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        # Under autocast the output may be bfloat16, in which a mean over pixels would lose digits.
        predicted = denoise(self.schedule.add_noise(x0, t, noise), t).to(x0.dtype)
        return predicted.square().flatten(1).mean(1)
