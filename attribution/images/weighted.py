"""Weights per timestep: independent draws, some stretches of the timesteps more often than others, on either side of a score.

The mean over draws of t in proportion to weights has the expectation of a weighted mean over uniform draws of t, with less noise:
no draw is spent where the weight is small. It needs no weights in means of gradients, so every estimator that draws can use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError, listed, number
from attribution.images.draws import Draws, Side, TwoSided

SHARED = ("attribution.images.draws",)

_RESOLUTION = 2**31
"""The number of positions that are divided among the timesteps."""


@dataclass(frozen=True, kw_only=True)
class Weighted(TwoSided):
    """``n`` independent draws of t in proportion to ``weights`` of equal stretches of 1..T. The first k of n are those of k draws.

    ``weights``: of the draws of queries, at least 0; only their ratios count. ``train_weights``: of those of training images (None:
    the same). Weights of 1 and 0 give windows, which may differ between the sides. The other fields are as in ``Uniform``. Scores
    explain the loss with these weights.
    """

    NAME = "Weighted"
    VERSION = 1
    LISTS = True

    n: int | Sequence[int]
    weights: Sequence[float]
    train_weights: Sequence[float] | None = None
    train: int | Sequence[int] | None = None
    seed: int = 0
    bins: int = 1
    replicates: int | Literal["auto"] = 1  # pyright: ignore[reportIncompatibleVariableOverride]
    shared: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("weights", "train_weights") if self.train_weights is not None else ("weights",):
            listed(self, name, partial(number, least=0))
            if not any(getattr(self, name)):
                raise FieldError(self, name, "nothing would be drawn: give at least one weight above 0")
        if self.train_weights is not None and list(self.train_weights) == list(self.weights):
            object.__setattr__(self, "train_weights", None)

    def check(self, T: int) -> None:
        super().check(T)
        for name in ("weights", "train_weights"):
            if len(getattr(self, name) or ()) > T:
                raise FieldError(self, name, f"there are T={T} timesteps: give at most as many weights")

    def side(self, side: Side) -> Self:
        scheme = super().side(side)
        if self.train_weights is None:
            return scheme
        return replace(scheme, weights=self.weights if side == "query" else self.train_weights, train_weights=None)

    def refuse_sides(self, why: str) -> None:
        if self.train_weights is not None:
            raise FieldError(self, "train_weights", f"{why}: leave it null")
        super().refuse_sides(why)

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        self.check(T)
        draws = self.random(role, example, _RESOLUTION, flips, dropout)
        ends = torch.from_numpy(_ends(self.weights, T)).to(example.device)
        return replace(draws, timestep=1 + torch.searchsorted(ends[:-1], draws.timestep - 1, right=True))


def _ends(weights: Sequence[float], T: int) -> np.ndarray:
    """The position after the last one of each timestep, int64 ``[T]``; timesteps of weight 0 have no position."""
    of_timesteps = np.array(weights, dtype=np.float64)[np.arange(T) * len(weights) // T]
    cumulative = of_timesteps.cumsum()
    return np.rint(cumulative / cumulative[-1] * _RESOLUTION).astype(np.int64)
