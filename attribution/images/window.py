"""A window of timesteps: independent draws that leave out the lowest ones, whose gradients are the largest and noisiest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attribution.checks import FieldError, whole
from attribution.images.draws import Draws, TwoSided, random_draws
from attribution.nodes.identity import added

SHARED = ("attribution.images.draws",)


@dataclass(frozen=True)
class Window(TwoSided):
    """``n`` independent draws, t ~ U{low..high}. The first k of n are the draws of ``Window(k)``; noises are those of ``Uniform``.

    Scores from a window explain the loss at its timesteps. ``n``, ``train`` and ``replicates`` are as in ``Uniform``. ``bins``
    divide all timesteps 1..T, as in other schemes; bins outside the window have scores of 0.
    """

    NAME = "Window"
    VERSION = 1
    LISTS = True

    n: int | Sequence[int]
    low: int = 100
    high: int = 500
    seed: int = 0
    bins: int = 1
    train: int | Sequence[int] | None = added(default=None)
    replicates: int | Literal["auto"] = added(default=1)  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        super().__post_init__()
        whole(self, "low", least=1)
        whole(self, "high", least=1)
        if self.high < self.low:
            raise FieldError(self, "high", f"the window begins at low={self.low}: set high >= {self.low}")

    def check(self, T: int) -> None:
        super().check(T)
        if self.high > T:
            raise FieldError(self, "high", f"there are T={T} timesteps: set high <= {T}")

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        self.check(T)
        number = torch.arange(self.count, device=example.device)
        draws = random_draws(self.seed, role, example[:, None], number, self.high - self.low + 1, flips, dropout)
        return replace(draws, timestep=draws.timestep + self.low - 1)
