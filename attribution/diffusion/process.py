"""Forward processes: how an image becomes noise, what the network predicts, and how the training loss weights noise levels.

Shapes: images ``x0``, ``x_t``, ``noise`` and network outputs ``[B, C, H, W]``; noise levels t int64 ``[B]``, in 1..T.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError, number
from attribution.diffusion.schedule import NoiseSchedule, lookup
from attribution.nodes import added

SHARED = ("attribution.diffusion.schedule",)


class Process(ABC):
    """A forward process q(x_t | x_0) and the parameterization of the network that reverses it.

    A network f_θ is trained to minimize the mean over t ~ U{1..T}, noise and pixels of ``weight(t) · (target - output)²``, where
    ``output = f_θ(network_input(x_t, t), network_time(t))``. Subclasses are frozen dataclasses: their fields are their identity.
    """

    VERSION: ClassVar[int] = 1

    @property
    @abstractmethod
    def T(self) -> int:
        """The number of noise levels."""

    @property
    @abstractmethod
    def log_snr(self) -> np.ndarray:
        """``log(α_t²/σ_t²)`` of ``x_t = α_t x_0 + σ_t ε`` at t = 1..T, float64 ``[T]``; -inf where x_t is pure noise."""

    @abstractmethod
    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The noisy image x_t, for standard normal ``noise``."""

    @abstractmethod
    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network is trained to predict at x_t."""

    @abstractmethod
    def weight(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight of the squared error of the network's output at each noise level, ``[B]``."""

    @abstractmethod
    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The image that the network gets at x_t."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The noise levels in the form in which the network gets them, ``[B]``."""

    @abstractmethod
    def epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a network's ``output`` at x_t predicts."""

    @abstractmethod
    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The image that a network's ``output`` at x_t predicts, not clipped."""


@dataclass(frozen=True)
class DDPM(Process):
    """``x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε`` (Ho et al. 2020, eq. 4) with ᾱ_t of ``schedule``. The network gets t - 1.

    ``prediction``: what the network predicts.

    - ``epsilon``: the noise ε
    - ``v``: ``√ᾱ_t ε - √(1-ᾱ_t) x_0`` (Salimans & Ho 2022, appendix D)
    - ``sample``: the image x_0

    ``weighting``: the weight of the squared error of the prediction.

    - ``constant``: 1 at every t (Ho et al. 2020, eq. 14)
    - ``min_snr``: min(SNR, ``snr_gamma``) for the error of x_0, with SNR = ᾱ_t/(1-ᾱ_t) (Hang et al. 2023, §3.4): divided by SNR for
      the error of ε, and by SNR + 1 for that of v

    Raises:
        ValueError: another prediction or weighting, ``snr_gamma`` that is not above 0, or a prediction of the noise under a
            schedule with ᾱ_T = 0.
    """

    NAME = "DDPM"
    VERSION = 1

    schedule: NoiseSchedule
    prediction: Literal["epsilon", "v", "sample"] = added(default="epsilon")
    weighting: Literal["constant", "min_snr"] = added(default="constant")
    snr_gamma: float = added(default=5.0)

    def __post_init__(self):
        for name, known in (("prediction", ("epsilon", "v", "sample")), ("weighting", ("constant", "min_snr"))):
            if getattr(self, name) not in known:
                raise FieldError(self, name, f"choose one of {', '.join(known)}")
        number(self, "snr_gamma", least=0)
        if self.snr_gamma == 0:
            raise FieldError(self, "snr_gamma", "must be above 0, because all weights would be 0")
        if self.prediction == "epsilon" and self.schedule.alpha_bars[-1] == 0:
            raise FieldError(
                self,
                "prediction",
                "x_T is pure noise under this schedule (zero terminal SNR), and a prediction of the noise says nothing about the "
                "image there: choose v or sample",
            )

    @property
    def T(self) -> int:
        return self.schedule.T

    @property
    def log_snr(self) -> np.ndarray:
        bars = self.schedule.alpha_bars[1:]
        with np.errstate(divide="ignore"):
            return np.log(bars) - np.log1p(-bars)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal, scale = self._coefficients(t, x0)
        return signal * x0 + scale * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        match self.prediction:
            case "epsilon":
                return noise
            case "v":
                signal, scale = self._coefficients(t, x0)
                return signal * noise - scale * x0
            case "sample":
                return x0

    def weight(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.weighting == "constant":
            return torch.ones_like(t, dtype=dtype)
        return lookup(self._min_snr, t, dtype)

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    def network_time(self, t: Tensor) -> Tensor:
        return t - 1

    def epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return output
        signal, scale = self._coefficients(t, x_t)
        return signal * output + scale * x_t if self.prediction == "v" else (x_t - signal * output) / scale

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``(x_t - √(1-ᾱ_t) ε) / √ᾱ_t`` (Ho et al. 2020, eq. 15), or ``√ᾱ_t x_t - √(1-ᾱ_t) v``, or the output itself."""
        if self.prediction == "sample":
            return output
        signal, scale = self._coefficients(t, x_t)
        return signal * x_t - scale * output if self.prediction == "v" else (x_t - scale * output) / signal

    @cached_property
    def image_error(self) -> np.ndarray:
        """k_t, by which an error of the output becomes one of the image: ``x0(output) - x_0 = k_t (target - output)``.

        For t = 0..T as float64 ``[T + 1]``.
        """
        bars = self.schedule.alpha_bars
        match self.prediction:
            case "epsilon":
                return np.sqrt(1 / bars - 1)
            case "v":
                return np.sqrt(1 - bars)
            case "sample":
                return np.full_like(bars, -1.0)

    @cached_property
    def _min_snr(self) -> np.ndarray:
        """The weights for t = 0..T as float64 ``[T + 1]``; index 0 is not used."""
        bars = self.schedule.alpha_bars[1:]
        snr = bars / (1 - bars)
        divisor = {"epsilon": snr, "v": snr + 1, "sample": 1.0}[self.prediction]
        return np.append(0, np.minimum(snr, self.snr_gamma) / divisor)

    def _coefficients(self, t: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1-ᾱ_t), ``[B, 1, 1, 1]``, computed in float64, in the dtype of ``images``."""
        signal, scale = (lookup(table, t, images.dtype).view(-1, *[1] * (images.dim() - 1)) for table in self.schedule.scales)
        return signal, scale


def as_ddpm(process: Process, user: str) -> DDPM:
    """``process``, if it is the DDPM that ``user`` needs.

    Raises:
        ValueError: another process.
    """
    if not isinstance(process, DDPM):
        raise ValueError(f"{user} needs a DDPM process with its noise schedule, not {type(process).__name__}")
    return process
