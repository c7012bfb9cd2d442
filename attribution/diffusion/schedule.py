"""The forward process q(x_t | x_0) and the convention by which networks are called.

Timesteps are 1..T everywhere in this package; networks and diffusers' schedulers, which count from 0, get t - 1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``ε_θ(x_t [B, C, H, W], t [B]) -> [B, C, H, W]``, t in 1..T."""


@dataclass(frozen=True)
class NoiseSchedule:
    """β_1..β_T: ``linear`` from ``beta_start`` to ``beta_end`` (Ho et al. 2020) or ``cosine`` (Nichol & Dhariwal 2021, eq. 17).

    The cosine schedule has no end points to set: ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + 0.008)/1.008 · π/2), β_t ≤ 0.999.
    """

    NAME = "NoiseSchedule"
    VERSION = 1

    T: int = 1000
    kind: Literal["linear", "cosine"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self):
        if self.kind not in ("linear", "cosine"):
            raise ValueError(f"diffusion.schedule.kind={self.kind!r}: choose linear or cosine")
        if self.T < 1 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError("diffusion.schedule: needs T >= 1 and 0 < beta_start <= beta_end < 1")

    @cached_property
    def betas(self) -> np.ndarray:
        """β_1..β_T as float64 ``[T]``; β_t stands at position t - 1."""
        if self.kind == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.T)
        f = np.cos((np.arange(self.T + 1) / self.T + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)

    @cached_property
    def alpha_bars(self) -> np.ndarray:
        """ᾱ_0 = 1, ᾱ_1, .., ᾱ_T as float64 ``[T + 1]``, so that ``alpha_bars[t]`` is ᾱ_t."""
        return np.concatenate([[1.0], np.cumprod(1 - self.betas)])

    def alpha_bar(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """ᾱ_t for timesteps of any shape."""
        return torch.from_numpy(self.alpha_bars).to(t.device, dtype)[t]

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε`` for ``x0, noise [B, C, H, W]`` and ``t [B]``."""
        alpha_bar = torch.from_numpy(self.alpha_bars).to(t.device)[t].view(-1, *[1] * (x0.dim() - 1))
        return alpha_bar.sqrt().to(x0.dtype) * x0 + (1 - alpha_bar).sqrt().to(x0.dtype) * noise


def denoiser(model: nn.Module) -> Denoiser:
    """``ε_θ`` from a network called as ``model(x_t, t - 1)`` that returns a tensor or (diffusers) has ``.sample``."""

    def epsilon(x_t: Tensor, t: Tensor) -> Tensor:
        output = model(x_t, t - 1)
        return output if isinstance(output, Tensor) else output.sample

    return epsilon


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is back in its own mode."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
