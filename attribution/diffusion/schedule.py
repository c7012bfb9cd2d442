"""Noise schedules: the variances β_t of the forward process of a DDPM. Timesteps are 1..T."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError, whole
from attribution.nodes import added


def _linear(T: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start, end, T)


def _scaled_linear(T: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, T) ** 2


def _sigmoid(T: int, start: float, end: float) -> np.ndarray:
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, T)))


def _cosine(T: int, start: float, end: float) -> np.ndarray:
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


_KINDS: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": _linear,
    "cosine": _cosine,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
}


@dataclass(frozen=True)
class NoiseSchedule:
    """β_1..β_T, with the names of diffusers' schedulers, where ``cosine`` is ``squaredcos_cap_v2``.

    - ``linear``: from ``beta_start`` to ``beta_end`` (Ho et al. 2020)
    - ``scaled_linear``: √β_t is linear (Rombach et al. 2022)
    - ``sigmoid``: from ``beta_start`` to ``beta_end`` along the logistic function on [-6, 6]
    - ``cosine``: ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + 0.008)/1.008 · π/2), β_t ≤ 0.999, without end points to set (Nichol &
      Dhariwal 2021, eq. 17)
    - ``trained_betas``: the T values themselves, instead of ``kind``

    ``rescale_zero_terminal_snr`` shifts and scales √ᾱ_t so that ᾱ_T = 0 while ᾱ_1 stays (Lin et al. 2024, algorithm 1): x_T is
    then pure noise.

    Raises:
        ValueError: an unknown kind, or values that are not a schedule.
    """

    NAME = "NoiseSchedule"
    VERSION = 1

    T: int = 1000
    kind: Literal["linear", "cosine", "scaled_linear", "sigmoid"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    trained_betas: Sequence[float] | None = added(default=None)
    rescale_zero_terminal_snr: bool = added(default=False)

    def __post_init__(self):
        if self.kind not in _KINDS:
            raise FieldError(self, "kind", f"choose one of {', '.join(_KINDS)}")
        whole(self, "T", least=2 if self.rescale_zero_terminal_snr else 1)
        if not 0 < self.beta_start < 1:
            raise FieldError(self, "beta_start", "must be between 0 and 1")
        if not self.beta_start <= self.beta_end < 1:
            raise FieldError(self, "beta_end", f"must be at least beta_start={self.beta_start} and below 1")
        if self.trained_betas is not None:
            object.__setattr__(self, "trained_betas", tuple(self.trained_betas))
            self._check_given(self.trained_betas)

    def _check_given(self, betas: Sequence[float]) -> None:
        if len(betas) != self.T:
            raise FieldError(self, "T", f"trained_betas lists {len(betas)}: set T={len(betas)}")
        for i, beta in enumerate(betas):
            if not (0 < beta < 1 or (beta == 1 and i == self.T - 1 > 0)):
                raise FieldError(self, f"trained_betas[{i}]", "must be between 0 and 1; only the last of several may be 1")

    @cached_property
    def betas(self) -> np.ndarray:
        """β_1..β_T as float64 ``[T]``; β_t is at position t - 1."""
        given = self.trained_betas
        betas = _KINDS[self.kind](self.T, self.beta_start, self.beta_end) if given is None else np.array(given, np.float64)
        return _zero_terminal_snr(betas) if self.rescale_zero_terminal_snr else betas

    @cached_property
    def alpha_bars(self) -> np.ndarray:
        """ᾱ_0 = 1, ᾱ_1, .., ᾱ_T as float64 ``[T + 1]``, so that ``alpha_bars[t]`` is ᾱ_t."""
        return np.concatenate([[1.0], np.cumprod(1 - self.betas)])

    @cached_property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """The scales of the image and of the noise in x_t, √ᾱ_t and √(1-ᾱ_t), for t = 0..T as float64 ``[T + 1]``."""
        return np.sqrt(self.alpha_bars), np.sqrt(1 - self.alpha_bars)


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    signal = np.sqrt(np.cumprod(1 - betas))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    bars = np.concatenate([[1.0], signal**2])
    return 1 - bars[1:] / bars[:-1]


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
