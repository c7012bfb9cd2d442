"""Balanced timesteps: ReTrac's cure inside influence functions [ours].

Gradient norms differ by orders of magnitude between timesteps, so that a mean over draws is one over the few timesteps with the
largest. Dividing every draw's gradient by its norm (ReTrac eq. 9, query side), or by the usual norm at its timestep, weighs
timesteps equally.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from attribution.draws import Draws, Uniform
from attribution.estimators.retrac import inverse
from attribution.execution import Execution, ranges
from attribution.gradients import Captured, LayerGradients
from attribution.images import ImageSet
from attribution.node import Artifact, Cost, Get, Node, execution
from attribution.passes import engine
from attribution.training import Recorded


@dataclass(frozen=True)
class Balance:
    """``by`` draw: 1/‖∇‖ of each draw; ``by`` timestep: 1 over the training set's mean norm there. ``side``: whose gradients."""

    by: Literal["draw", "timestep"] = "draw"
    side: Literal["query", "train"] = "query"

    def __post_init__(self):
        for name, choices in (("by", ("draw", "timestep")), ("side", ("query", "train"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"estimator.balance.{name}={getattr(self, name)}: choose {' or '.join(choices)}")

    def mean(self, captured: Captured, draws: Draws, norms: "TimestepNorms", get: Get) -> LayerGradients:
        """The balanced mean over ``draws [B, K]`` of the gradients captured there."""
        if self.by == "draw":
            return captured.mean(weights=inverse)
        return captured.mean(weights=inverse(get(norms).at(draws.timestep)))


@dataclass(frozen=True, eq=False)
class NormTable(Artifact):
    """``norms [T]``: the training set's mean gradient norm at timestep t stands at t - 1."""

    norms: np.ndarray

    def at(self, timestep: Tensor) -> Tensor:
        """The norms at timesteps of any shape."""
        return torch.from_numpy(self.norms).to(timestep.device)[timestep - 1].float()

    def save(self, folder: Path) -> None:
        np.save(folder / "norms.npy", self.norms)

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(np.load(folder / "norms.npy"))


@dataclass(frozen=True)
class TimestepNorms(Node[NormTable]):
    """Mean norm of the training loss's gradient in each of ``bins`` equal stretches of timesteps, over draws of all examples."""

    ARTIFACT = NormTable

    record: Recorded
    train: ImageSet
    seed: int
    draws: int = 4
    bins: int = 50
    execution: Execution = execution(default=Execution())

    def cost(self) -> Cost:
        return Cost(passes=self.train.count * self.draws)

    def compute(self, get: Get) -> NormTable:
        T, device, images = self.record.schedule.T, self.execution.torch_device(), get(self.train)
        bins = min(self.bins, T)
        per_example = engine(self.record, None, self.execution, get)
        total, count = np.zeros(bins), np.zeros(bins)
        for start, stop in ranges(0, len(images), max(1, self.execution.batch_size // self.draws)):
            rows = slice(start, stop)
            draws = Uniform(self.draws, self.seed).draw("norms", images.ids(rows).to(device), T)
            norms = per_example.capture(self.record.objective, images.x0(rows).to(device), draws).norms()
            bin_of = ((draws.timestep - 1) * bins // T).cpu().numpy().ravel()
            total += np.bincount(bin_of, norms.double().cpu().numpy().ravel(), bins)
            count += np.bincount(bin_of, minlength=bins)
        if (count == 0).any():
            raise ValueError(f"too few training images ({len(images)}) for a norm in each of {bins} stretches: use balance.by=draw")
        return NormTable((total / count)[np.arange(T) * bins // T])
