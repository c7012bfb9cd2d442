"""What is measured of an image under a model: training losses and query measurements are one type.

A measure maps ``(denoise, x0 [B, C, H, W], t [B], noise [B, C, H, W])`` to one cost per draw ``[B]``; larger is worse
(METHODS.md §1). Its expectation over draws is the measurement of the image.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from attribution.diffusion import Denoiser, NoiseSchedule


@dataclass(frozen=True)
class Measure(ABC):
    """A cost per draw under a noise schedule."""

    schedule: NoiseSchedule

    @abstractmethod
    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Loss(Measure):
    """ℓ_t(θ, ε, x) = mean over pixels of (ε - ε_θ(x_t, t))², the training loss (Ho et al. 2020, eq. 14)."""

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        predicted = denoise(self.schedule.add_noise(x0, t, noise), t)
        return (noise - predicted).square().flatten(1).mean(1)
