"""The training loss, at all timesteps or at some."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from attribution.diffusion import Denoiser
from attribution.images.draws import Draws
from attribution.measurements.base import Measure, lookup

SHARED = ("attribution.diffusion.schedule", "attribution.measurements.base")


@dataclass(frozen=True)
class Loss(Measure):
    """ℓ_t(θ, ε, x) = mean over pixels of (ε - ε_θ(x_t, t))², the training loss (Ho et al. 2020, eq. 14)."""

    NAME = "Loss"
    VERSION = 1

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        predicted = denoise(self.schedule.add_noise(x0, t, noise), t)
        return (noise - predicted).square().flatten(1).mean(1)


@dataclass(frozen=True)
class LossAtT(Measure):
    """ℓ_t at one timestep, or its mean over a list of n, whatever timesteps are drawn (K-FAC paper, figs. 11 and 12).

    A drawn timestep only chooses an entry of the list: 1..T is cut into n stretches, of which the j-th begins at ``1 + ⌊jT/n⌋``.
    Uniform draws serve all entries alike, as do even draws whose number is a multiple of n. Where n does not divide T, an entry
    with a longer stretch counts for less in the same proportion: the expectation is the mean over the list exactly.

    Raises:
        ValueError: no timestep, more than T, or one outside 1..T.
    """

    NAME = "LossAtT"
    VERSION = 1

    t: int | Sequence[int]

    def __post_init__(self):
        # One number and a list of it are one measure and have one identity.
        timesteps = (self.t,) if isinstance(self.t, int) else tuple(self.t)
        object.__setattr__(self, "t", timesteps)
        T = self.schedule.T
        if not 1 <= len(timesteps) <= T or not all(1 <= t <= T for t in timesteps):
            raise ValueError(f"measurement.t={list(timesteps)}: give at least one and at most {T} of the timesteps 1..{T}")

    def timesteps(self, draws: Draws) -> Tensor:
        return lookup(self._by_drawn_timestep[0], draws.timestep, draws.timestep.dtype)

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        timesteps, weights = self._by_drawn_timestep
        loss = Loss(self.schedule)(denoise, x0, lookup(timesteps, t, t.dtype), noise)
        return lookup(weights, t, loss.dtype) * loss

    @cached_property
    def _by_drawn_timestep(self) -> tuple[np.ndarray, np.ndarray]:
        """The entry for each drawn timestep and what it counts there, ``[T + 1]``; nothing is drawn at 0."""
        entries, T = np.atleast_1d(self.t), self.schedule.T
        stretch = np.maximum(np.arange(T + 1) * len(entries) - 1, 0) // T
        lengths = np.bincount(stretch[1:])
        return entries[stretch], T / (len(entries) * lengths[stretch])
