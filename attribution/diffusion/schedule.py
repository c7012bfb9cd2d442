"""Noise schedules: the variances β_t of the forward process of a DDPM. Timesteps are 1..T."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError, whole


@dataclass(frozen=True)
class NoiseSchedule:
    """β_1..β_T: ``linear`` from ``beta_start`` to ``beta_end`` (Ho et al. 2020) or ``cosine`` (Nichol & Dhariwal 2021, eq. 17).

    The cosine schedule has no end points to set: ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + 0.008)/1.008 · π/2), β_t ≤ 0.999.

    Raises:
        ValueError: an unknown kind, or values that are not a schedule.
    """

    NAME = "NoiseSchedule"
    VERSION = 1

    T: int = 1000
    kind: Literal["linear", "cosine"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self):
        if self.kind not in ("linear", "cosine"):
            raise FieldError(self, "kind", "choose linear or cosine")
        whole(self, "T", least=1)
        if not 0 < self.beta_start < 1:
            raise FieldError(self, "beta_start", "must be between 0 and 1")
        if not self.beta_start <= self.beta_end < 1:
            raise FieldError(self, "beta_end", f"must be at least beta_start={self.beta_start} and below 1")

    @cached_property
    def betas(self) -> np.ndarray:
        """β_1..β_T as float64 ``[T]``; β_t is at position t - 1."""
        if self.kind == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.T)
        f = np.cos((np.arange(self.T + 1) / self.T + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)

    @cached_property
    def alpha_bars(self) -> np.ndarray:
        """ᾱ_0 = 1, ᾱ_1, .., ᾱ_T as float64 ``[T + 1]``, so that ``alpha_bars[t]`` is ᾱ_t."""
        return np.concatenate([[1.0], np.cumprod(1 - self.betas)])

    @cached_property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """The scales of the image and of the noise in x_t, √ᾱ_t and √(1-ᾱ_t), for t = 0..T as float64 ``[T + 1]``."""
        return np.sqrt(self.alpha_bars), np.sqrt(1 - self.alpha_bars)


def lookup(table: np.ndarray, t: Tensor, dtype: torch.dtype) -> Tensor:
    """``table[t]`` for timesteps of any shape. Tables that have been used on a device other than the CPU stay there."""
    if t.device.type == "cpu":
        return torch.from_numpy(table).to(dtype)[t]
    return _on_device(table.tobytes(), table.dtype.str, dtype, t.device)[t]


@lru_cache(maxsize=64)
def _on_device(content: bytes, kind: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The table, cast before it is moved, because some devices have no float64."""
    with torch.inference_mode(False):  # it may be used for gradients later
        return torch.from_numpy(np.frombuffer(content, kind).copy()).to(dtype).to(device)
