"""Functions of the network's output o at x_t; their gradients serve as features (D-TRAK, Zheng et al. 2024)."""

import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from attribution.checks import MAY_BE_INFINITE, FieldError
from attribution.diffusion import Denoiser
from attribution.measurements.base import Measure

SHARED = ("attribution.measurements.base",)


@dataclass(frozen=True)
class SquareNorm(Measure):
    """Mean over pixels of o² (D-TRAK's ``square``). It does not depend on the target of the loss."""

    NAME = "SquareNorm"
    VERSION = 1

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        # Under autocast the output may be bfloat16, in which a mean over pixels would lose digits.
        output = self.output(denoise, self.process.add_noise(x0, t, noise), t, condition)
        return output.to(x0.dtype).square().flatten(1).mean(1)


@dataclass(frozen=True)
class OutputMean(Measure):
    """Mean over pixels of o (D-TRAK's ``avg``)."""

    NAME = "OutputMean"
    VERSION = 1

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        output = self.output(denoise, self.process.add_noise(x0, t, noise), t, condition)
        return output.to(x0.dtype).flatten(1).mean(1)


@dataclass(frozen=True)
class OutputNorm(Measure):
    """‖o‖_p over pixels: D-TRAK's ``l1`` (p = 1), ``l2`` (p = 2, not squared) and ``linf`` (p = inf).

    Raises:
        ValueError: p below 1.
    """

    NAME = "OutputNorm"
    VERSION = 1

    p: Annotated[float, MAY_BE_INFINITE]

    def __post_init__(self):
        if not self.p >= 1:
            raise FieldError(self, "p", "a norm has p >= 1; inf is the largest magnitude")

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        output = self.output(denoise, self.process.add_noise(x0, t, noise), t, condition).to(x0.dtype).flatten(1)
        return output.abs().amax(1) if math.isinf(self.p) else output.norm(self.p, dim=1)


@dataclass(frozen=True)
class Interpolated(Measure):
    """Mean over pixels of η o² - 2 (1-η) y o, y the target of the loss: its gradient is ``(2/d)(η o - (1-η) y)ᵀ∇o``.

    η = 1 is ``square``; η = ½ has half the gradient of the unweighted loss, so that TRAK with it at λ/4 is TRAK at λ.
    """

    NAME = "Interpolated"
    VERSION = 1

    eta: float

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        output = self.output(denoise, self.process.add_noise(x0, t, noise), t, condition).to(x0.dtype)
        target = self.process.target(x0, t, noise)
        return (output * (self.eta * output - 2 * (1 - self.eta) * target)).flatten(1).mean(1)
