"""Balanced timesteps: ReTrac's cure inside influence functions [ours].

Gradient norms differ by orders of magnitude between timesteps, so that a mean over draws is one over the few timesteps with the
largest. Dividing every draw's gradient by its norm (ReTrac eq. 9, query side), or by the usual norm at its timestep, weighs
timesteps equally.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attribution.estimators.retrac import inverse
from attribution.execution import Execution
from attribution.gradients.gradient_sets import GradientsAtScheme
from attribution.gradients.norms import GradientNorms, NormShard
from attribution.gradients.per_example import Weights
from attribution.images import ImageSet
from attribution.images.bins import bin_of
from attribution.images.draws import Uniform
from attribution.nodes import Arrays, Cost, Get, Node, execution
from attribution.training import Recorded

MOST_STRETCHES = 50
DRAWS_IN_A_STRETCH = 40
"""On average, at least."""


@dataclass(frozen=True)
class Balance:
    """How gradients of single draws are weighed. ``side``: whose, "query" or "train".

    ``by`` "draw": 1/‖∇‖ of each draw; "timestep": 1 over the training set's mean norm there; or a list of weights, one for each of
    as many equal stretches of timesteps.
    """

    NAME = "Balance"
    VERSION = 1

    by: Literal["draw", "timestep"] | Sequence[float] = "draw"
    side: Literal["query", "train"] = "query"

    def __post_init__(self):
        if self.side not in ("query", "train"):
            raise ValueError(f"estimator.balance.side={self.side}: choose query or train")
        listed = isinstance(self.by, Sequence) and not isinstance(self.by, str)
        weights = listed and all(isinstance(w, int | float) and math.isfinite(w) for w in self.by) and any(self.by)
        if self.by not in ("draw", "timestep") and not weights:
            raise ValueError(f"estimator.balance.by={self.by}: choose draw, timestep, or a list of weights that are not all zero")

    def weights(self, timestep: Tensor, norms: "TimestepNorms", get: Get) -> Weights:
        """Of draws at ``timestep [B, K]``."""
        if self.by == "draw":
            return inverse
        if self.by == "timestep":
            return inverse(get(norms).at(timestep))
        weights = torch.tensor(list(self.by), dtype=torch.float32, device=timestep.device)
        return weights[bin_of(timestep, len(weights), norms.record.process.T)]


@dataclass(frozen=True, eq=False)
class NormTable(Arrays):
    """``norms [T]``: the training set's mean gradient norm at timestep t stands at t - 1."""

    norms: np.ndarray

    def at(self, timestep: Tensor) -> Tensor:
        """The norms at timesteps of any shape."""
        return torch.from_numpy(self.norms).to(timestep.device)[timestep - 1].float()


@dataclass(frozen=True)
class TimestepNorms(Node[NormTable]):
    """Mean norm of the training loss's gradient in each of 50 equal stretches of timesteps (or at each, where there are fewer)."""

    NAME = "TimestepNorms"
    VERSION = 2
    TITLE = "gradient norms by timestep"
    ARTIFACT = NormTable

    record: Recorded
    train: ImageSet
    seed: int
    execution: Execution = execution(default=Execution())

    def cost(self) -> Cost:
        return Cost(passes=self.train.count * self.draws)

    @property
    def draws(self) -> int:
        """Of each example: four, and more where these would be few in a stretch."""
        return max(4, -(-MOST_STRETCHES * DRAWS_IN_A_STRETCH // self.train.count))

    def parts(self, get: Get) -> list[NormShard]:
        return self._norms.parts(get)

    def compute(self, get: Get) -> NormTable:
        T, found = self.record.process.T, self._norms.compute(get)
        bins = min(MOST_STRETCHES, T)
        stretch = bin_of(torch.from_numpy(found.timestep), bins, T).numpy().ravel()
        total, count = np.bincount(stretch, found.norms.ravel(), bins), np.bincount(stretch, minlength=bins)
        return NormTable((total / count)[np.arange(T) * bins // T])

    @property
    def _norms(self) -> GradientNorms:
        """Of every draw; not stored, its shards are."""
        scheme = Uniform(self.draws, self.seed)
        settings = {"images": self.train, "record": self.record, "execution": self.execution}
        return GradientNorms(GradientsAtScheme(step=None, scheme=scheme, role="norms", **settings))
