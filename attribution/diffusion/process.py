"""Forward processes: how an image becomes noise, what the network predicts, and how the training loss weights noise levels.

Shapes: images ``x0``, ``x_t``, ``noise`` and network outputs ``[B, C, H, W]``; noise levels t int64 ``[B]``, in 1..T.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attribution.checks import FieldError
from attribution.diffusion.schedule import NoiseSchedule, lookup
from attribution.nodes import added

SHARED = ("attribution.diffusion.schedule",)


class Process(ABC):
    """A forward process q(x_t | x_0) and the parameterization of the network that reverses it.

    A network f_θ is trained to minimize the mean over t ~ U{1..T}, noise and pixels of ``weight(t) · (target - output)²``, where
    ``output = f_θ(network_input(x_t, t), t)``. Subclasses are frozen dataclasses: their fields are their identity.
    """

    VERSION: ClassVar[int] = 1

    @property
    @abstractmethod
    def T(self) -> int:
        """The number of noise levels."""

    @abstractmethod
    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The noisy image x_t, for standard normal ``noise``."""

    @abstractmethod
    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network is trained to predict at x_t."""

    @abstractmethod
    def weight(self, t: Tensor) -> Tensor:
        """The weight of the squared error at each noise level, ``[B]``, in a dtype that the device of ``t`` has."""

    @abstractmethod
    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The input of the network at x_t."""

    @abstractmethod
    def epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a network's ``output`` at x_t predicts."""

    @abstractmethod
    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The image that a network's ``output`` at x_t predicts, not clipped."""


@dataclass(frozen=True)
class DDPM(Process):
    """``x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε`` (Ho et al. 2020, eq. 4) with ᾱ_t of ``schedule``.

    ``prediction="epsilon"``: the network predicts the noise ε; ``weighting="constant"``: every t has weight 1 (eq. 14).

    Raises:
        ValueError: another prediction or weighting.
    """

    NAME = "DDPM"
    VERSION = 1

    schedule: NoiseSchedule
    prediction: Literal["epsilon"] = added(default="epsilon")
    weighting: Literal["constant"] = added(default="constant")

    def __post_init__(self):
        for name, known in (("prediction", "epsilon"), ("weighting", "constant")):
            if getattr(self, name) != known:
                raise FieldError(self, name, f"not available, set it to {known}")

    @property
    def T(self) -> int:
        return self.schedule.T

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal, scale = self._coefficients(t, x0)
        return signal * x0 + scale * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return noise

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float32)

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    def epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return output

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``(x_t - √(1-ᾱ_t) ε) / √ᾱ_t`` (Ho et al. 2020, eq. 15)."""
        signal, scale = self._coefficients(t, x_t)
        return (x_t - scale * self.epsilon(output, x_t, t)) / signal

    def _coefficients(self, t: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1-ᾱ_t), ``[B, 1, 1, 1]``, computed in float64, in the dtype of ``images``."""
        signal, scale = (lookup(table, t, images.dtype).view(-1, *[1] * (images.dim() - 1)) for table in self.schedule.scales)
        return signal, scale


def noise_schedule(process: Process, user: str) -> NoiseSchedule:
    """The noise schedule of a DDPM ``process``, which ``user`` is defined by.

    Raises:
        ValueError: another process.
    """
    if not isinstance(process, DDPM):
        raise ValueError(f"{user} needs a DDPM process with its noise schedule, not {type(process).__name__}")
    return process.schedule
