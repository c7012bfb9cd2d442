"""Balanced timesteps: the normalization of ReTrac inside influence functions (introduced here).

Gradient norms differ by orders of magnitude between timesteps, so the few timesteps with the largest norms dominate a mean over
draws. Dividing the gradient of every draw by its norm (ReTrac eq. 9, query side), or by the mean norm at its timestep, gives all
timesteps the same weight.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError
from attribution.estimators.retrac import inverse
from attribution.execution import Execution
from attribution.gradients.gradient_sets import GradientsAtDraws
from attribution.gradients.norms import GradientNorms, NormShard
from attribution.gradients.per_example import Weights
from attribution.images import ImageSet
from attribution.images.bins import bin_of
from attribution.images.draws import Side, Uniform
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, Node, execution

SHARED = ("attribution.estimators.retrac", "attribution.gradients.norms", "attribution.images.bins")

INTERVALS = 50
"""The largest number of equal intervals of timesteps in which norms are averaged."""
DRAWS_PER_INTERVAL = 40
"""The smallest average number of draws in an interval."""


@dataclass(frozen=True)
class Balance:
    """How the gradients of single draws are weighted.

    ``side``: the side whose draws are weighted, "query", "train" or "both". ``by``: "draw" weights each draw by 1/‖∇‖; "timestep"
    by 1 over the mean norm of the training set at its timestep; a list of n weights is for n equal intervals of timesteps.
    """

    NAME = "Balance"
    VERSION = 1

    by: Literal["draw", "timestep"] | Sequence[float] = "draw"
    side: Literal["query", "train", "both"] = "query"

    def __post_init__(self):
        if self.side not in ("query", "train", "both"):
            raise FieldError(self, "side", "choose query, train or both")
        if self.by not in ("draw", "timestep") and not _are_weights(self.by):
            raise FieldError(self, "by", "choose draw, timestep, or a list of finite weights that are not all zero")

    def on(self, side: Side) -> "Balance | None":
        """This balance, if it weights the draws of ``side``, else None."""
        return self if self.side in (side, "both") else None

    def weights(self, timestep: Tensor, norms: "TimestepNorms", get: Get) -> Weights:
        """The weights of draws at ``timestep [B, K]``: a tensor, or a function of the gradient norms."""
        if self.by == "timestep":
            return inverse(get(norms).at(timestep))
        return self.of_draws(timestep, norms.trained.process.T)

    def of_draws(self, timestep: Tensor, T: int) -> Weights:
        """The same where they need no norms of the training set, ``by`` draw or a list."""
        if self.by == "draw":
            return inverse
        assert self.by != "timestep"
        weights = torch.tensor(list(self.by), dtype=torch.float32, device=timestep.device)
        return weights[bin_of(timestep, len(weights), T)]


def _are_weights(by: object) -> bool:
    """Whether this is a list of finite numbers that are not all zero."""
    if isinstance(by, str) or not isinstance(by, Sequence):
        return False
    numbers = all(isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight) for weight in by)
    return numbers and any(by)


def check_balance(owner: Any) -> None:
    """Raise :class:`FieldError` unless the field ``balance`` is a :class:`Balance` or None."""
    if owner.balance is not None and not isinstance(owner.balance, Balance):
        raise FieldError(owner, "balance", 'give a Balance, as Balance(by="draw", side="both"), or None')


@dataclass(frozen=True, eq=False)
class NormTable(Arrays):
    """``norms [T]``: the mean gradient norm of the training set at timestep t, in entry t - 1."""

    norms: np.ndarray

    def at(self, timestep: Tensor) -> Tensor:
        """Return the norms at ``timestep``, a tensor of any shape."""
        return torch.from_numpy(self.norms).float().to(timestep.device)[timestep - 1]


@dataclass(frozen=True)
class TimestepNorms(Node[NormTable]):
    """The mean norm of the training loss's gradient in each of 50 equal intervals of timesteps, or at each timestep if T < 50."""

    NAME = "TimestepNorms"
    VERSION = 2
    TITLE = "gradient norms by timestep"
    ARTIFACT = NormTable

    trained: Trained
    train: ImageSet
    seed: int
    execution: Execution = execution(default=Execution())

    def cost(self) -> Cost:
        return Cost(passes=self.train.count * self.draws)

    @property
    def draws(self) -> int:
        """The number of draws of each example: at least four, and enough for every interval."""
        return max(4, -(-INTERVALS * DRAWS_PER_INTERVAL // self.train.count))

    def parts(self, get: Get) -> list[NormShard]:
        return self._norms.parts(get)

    def compute(self, get: Get) -> NormTable:
        T, single = self.trained.process.T, self._norms.compute(get)
        bins = min(INTERVALS, T)
        interval = bin_of(torch.from_numpy(single.timestep), bins, T).numpy().ravel()
        total, count = np.bincount(interval, single.norms.ravel(), bins), np.bincount(interval, minlength=bins)
        return NormTable((total / count)[np.arange(T) * bins // T])

    @property
    def _norms(self) -> GradientNorms:
        """The norm of every draw. Only its shards are stored."""
        scheme = Uniform(self.draws, self.seed)
        settings = {"images": self.train, "trained": self.trained, "execution": self.execution}
        return GradientNorms(GradientsAtDraws(step=None, scheme=scheme, role="norms", **settings))
