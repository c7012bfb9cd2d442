"""Functions of the network's output o = ε_θ(x_t, t) whose gradients serve as features (D-TRAK, Zheng et al. 2024)."""

import math
from dataclasses import dataclass

from torch import Tensor

from attribution.diffusion import Denoiser
from attribution.measurements.base import Measure

SHARED = ("attribution.diffusion.schedule", "attribution.measurements.base")


@dataclass(frozen=True)
class SquareNorm(Measure):
    """Mean over pixels of o²: no loss, it does not ask for the right noise (D-TRAK's ``square``)."""

    NAME = "SquareNorm"
    VERSION = 1

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        # Under autocast the output may be bfloat16, in which a mean over pixels would lose digits.
        return denoise(self.schedule.add_noise(x0, t, noise), t).to(x0.dtype).square().flatten(1).mean(1)


@dataclass(frozen=True)
class OutputMean(Measure):
    """Mean over pixels of o (D-TRAK's ``avg``)."""

    NAME = "OutputMean"
    VERSION = 1

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return denoise(self.schedule.add_noise(x0, t, noise), t).to(x0.dtype).flatten(1).mean(1)


@dataclass(frozen=True)
class OutputNorm(Measure):
    """‖o‖_p over pixels: D-TRAK's ``l1`` (p = 1), ``l2`` (p = 2, not squared) and ``linf`` (p = inf).

    Raises:
        ValueError: p below 1.
    """

    NAME = "OutputNorm"
    VERSION = 1

    p: float

    def __post_init__(self):
        if not self.p >= 1:
            raise ValueError(f"feature.p={self.p}: a norm has p >= 1; inf is the largest magnitude")

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        output = denoise(self.schedule.add_noise(x0, t, noise), t).to(x0.dtype).flatten(1)
        return output.abs().amax(1) if math.isinf(self.p) else output.norm(self.p, dim=1)


@dataclass(frozen=True)
class Interpolated(Measure):
    """Mean over pixels of η o² - 2 (1-η) ε o: its gradient is ``(2/d)(η o - (1-η) ε)ᵀ∇o``.

    η = 1 is ``square``; η = ½ has half the gradient of the loss, so that TRAK with it at λ/4 is TRAK at λ.
    """

    NAME = "Interpolated"
    VERSION = 1

    eta: float

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        output = denoise(self.schedule.add_noise(x0, t, noise), t).to(x0.dtype)
        return (output * (self.eta * output - 2 * (1 - self.eta) * noise)).flatten(1).mean(1)
