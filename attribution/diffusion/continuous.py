"""Forward processes whose noise levels are numbers of a continuous range: rectified flow and EDM.

Training draws the level from a distribution. Level t of 1..T is its ``(t - ½)/T`` quantile, so that t ~ U{1..T} is the training
distribution, and draw schemes, bins and windows are those of a DDPM. A larger t is a noisier image.

Where other methods take t as int64, these processes take floating-point levels ``[B]`` too, within the grid or beyond: samplers
begin above its largest level.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy import special
from torch import Tensor

from attribution.checks import FieldError, positive, whole
from attribution.diffusion.process import Process
from attribution.diffusion.schedule import lookup

SHARED = ("attribution.diffusion.process", "attribution.diffusion.schedule")


@dataclass(frozen=True, kw_only=True)
class ContinuousProcess(Process):
    """``T`` levels at the quantiles of the training distribution, all of which have weight 1.

    Raises:
        ValueError: T below 1.
    """

    T: int = 1000  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    def __post_init__(self):
        whole(self, "T", least=1)
        with np.errstate(over="ignore"):
            levels = self.levels[1:].astype(np.float32)
        if not (np.isfinite(levels).all() and (levels > 0).all()):
            raise FieldError(self, "T", "levels of this training distribution are 0 or infinite in float32: change its parameters")

    @abstractmethod
    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """The quantiles of the training distribution of the level, float64."""

    @cached_property
    def levels(self) -> np.ndarray:
        """The levels of t = 0..T as float64 ``[T + 1]``; index 0 is not used."""
        return np.append(0.0, self.quantile((np.arange(self.T) + 0.5) / self.T))

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The levels ``[B]`` of int64 t, or floating-point t themselves."""
        return t.to(dtype) if t.is_floating_point() else lookup(self.levels, t, dtype)

    def weight(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones_like(t, dtype=dtype)

    def _level(self, t: Tensor, images: Tensor) -> Tensor:
        """The levels ``[B, 1, 1, 1]`` in the dtype of ``images``."""
        return self.level(t, images.dtype).view(-1, *[1] * (images.dim() - 1))


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(ContinuousProcess):
    """``x_s = (1 - s) x_0 + s ε`` for s in (0, 1); the network predicts ``ε - x_0`` (Liu et al. 2023; Lipman et al. 2023).

    ``time``: the training distribution of s.

    - ``uniform``
    - ``logit_normal``: log(s/(1 - s)) is normal with mean ``logit_mean`` and deviation ``logit_std`` (Esser et al. 2024, §3.1)

    The network gets 1000 s, as those of Stable Diffusion 3 and FLUX do.

    Raises:
        ValueError: another ``time``, or a deviation that is not above 0.
    """

    NAME = "RectifiedFlow"
    VERSION = 1

    time: Literal["uniform", "logit_normal"] = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.time not in ("uniform", "logit_normal"):
            raise FieldError(self, "time", "choose uniform or logit_normal")
        positive(self, "logit_std")

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        if self.time == "uniform":
            return probability
        return special.expit(self.logit_mean + self.logit_std * special.ndtri(probability))

    @property
    def log_snr(self) -> np.ndarray:
        return -2 * special.logit(self.levels[1:])

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        s = self._level(t, x0)
        return (1 - s) * x0 + s * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return noise - x0

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    def network_time(self, t: Tensor) -> Tensor:
        return 1000 * self.level(t)

    def epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t + (1 - self._level(t, x_t)) * output

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t - self._level(t, x_t) * output


@dataclass(frozen=True, kw_only=True)
class EDM(ContinuousProcess):
    """``x_σ = x_0 + σ ε`` with the preconditioning of Karras et al. 2022 (table 1, column "Ours").

    The denoised image is ``c_skip x_σ + c_out F(c_in x_σ, c_noise)`` with ``c_skip = σ_d²/(σ² + σ_d²)``,
    ``c_out = σ σ_d/√(σ² + σ_d²)``, ``c_in = 1/√(σ² + σ_d²)``, ``c_noise = ln(σ)/4``, where σ_d is ``sigma_data``. In training ln σ
    is normal with mean ``P_mean`` and standard deviation ``P_std``.

    The paper's weight ``λ = 1/c_out²`` of the error of the denoised image is weight 1 of the error of F (eq. 8), the output here.

    Raises:
        ValueError: a deviation that is not above 0.
    """

    NAME = "EDM"
    VERSION = 1

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        positive(self, "P_std")
        positive(self, "sigma_data")

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        return np.exp(self.P_mean + self.P_std * special.ndtri(probability))

    @property
    def log_snr(self) -> np.ndarray:
        return -2 * np.log(self.levels[1:])

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return x0 + self._level(t, x0) * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``(x_0 - c_skip x_σ) / c_out``, which is ``(σ x_0 - σ_d² ε) / (σ_d √(σ² + σ_d²))``: no difference of large numbers."""
        sigma, d = self._level(t, x0), self.sigma_data
        return (sigma * x0 - d**2 * noise) / (d * self._scale(sigma))

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t / self._scale(self._level(t, x_t))

    def network_time(self, t: Tensor) -> Tensor:
        return self.level(t).log() / 4

    def epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``(x_σ - x_0) / σ``, which is ``(σ x_σ - σ_d √(σ² + σ_d²) F) / (σ² + σ_d²)``."""
        sigma, d = self._level(t, x_t), self.sigma_data
        return (sigma * x_t - d * self._scale(sigma) * output) / self._scale(sigma) ** 2

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        sigma, d = self._level(t, x_t), self.sigma_data
        return (d**2 * x_t + sigma * d * self._scale(sigma) * output) / self._scale(sigma) ** 2

    def _scale(self, sigma: Tensor) -> Tensor:
        """√(σ² + σ_d²)."""
        return (sigma**2 + self.sigma_data**2).sqrt()
