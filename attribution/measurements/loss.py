"""The training loss, at all timesteps or at given ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from attribution.checks import FieldError, number
from attribution.diffusion import Denoiser
from attribution.diffusion.schedule import lookup
from attribution.images.draws import Draws
from attribution.images.proposals import Proposal
from attribution.measurements.base import Measure
from attribution.nodes import added

SHARED = ("attribution.measurements.base",)


@dataclass(frozen=True)
class Loss(Measure):
    """``weight(t)`` times the mean over pixels of (target - output)², with weight and target of the process.

    For a DDPM that predicts the noise, with constant weighting, this is the mean of (ε - ε_θ(x_t, t))² (Ho et al. 2020, eq. 14).

    ``condition_dropout``: the probability with which training drops the condition of an image (Ho & Salimans 2022, algorithm 1).
    The loss of a training image is the expectation over that as well; draws of queries keep their conditions.

    Raises:
        ValueError: ``condition_dropout`` outside 0..1.
    """

    NAME = "Loss"
    VERSION = 1

    condition_dropout: float = added(default=0.0)  # pyright: ignore[reportIncompatibleMethodOverride] (a property of the base class)

    def __post_init__(self):
        number(self, "condition_dropout", least=0, most=1)

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        output = self.output(denoise, self.process.add_noise(x0, t, noise), t, condition)
        error = (self.process.target(x0, t, noise) - output).square().flatten(1).mean(1)
        return self.process.weight(t, error.dtype) * error


@dataclass(frozen=True)
class LossAtT(Measure):
    """The training loss at one timestep, or its mean over a list of n timesteps, for any draws (K-FAC influence, figs. 11 and 12).

    A drawn timestep only selects an entry of the list: 1..T is divided into n stretches; the j-th begins at
    ``1 + ⌊jT/n⌋``. Uniform draws select all entries equally often, as do even draws if their number is a multiple of n. Where n
    does not divide T, an entry with a longer stretch has a smaller weight in proportion, so that the expectation is exactly the
    mean over the list.

    Raises:
        ValueError: no timestep, more than T, or one outside 1..T.
    """

    NAME = "LossAtT"
    VERSION = 1

    t: int | Sequence[int]

    def __post_init__(self):
        # A number and a list of one number are the same measure and have the same identity.
        timesteps = (self.t,) if isinstance(self.t, int) else tuple(self.t)
        object.__setattr__(self, "t", timesteps)
        T = self.process.T
        if not 1 <= len(timesteps) <= T or not all(1 <= t <= T for t in timesteps):
            raise FieldError(self, "t", f"give at least one and at most {T} of the timesteps 1..{T}")

    def proposal(self) -> Proposal:
        """All entries of the list alike."""
        return Proposal(self._by_drawn_timestep[1][1:])

    def timesteps(self, draws: Draws) -> Tensor:
        return lookup(self._by_drawn_timestep[0], draws.timestep, draws.timestep.dtype)

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        timesteps, weights = self._by_drawn_timestep
        loss = Loss(self.process)(denoise, x0, lookup(timesteps, t, t.dtype), noise, condition)
        return lookup(weights, t, loss.dtype) * loss

    @cached_property
    def _by_drawn_timestep(self) -> tuple[np.ndarray, np.ndarray]:
        """The entry for each drawn timestep and its weight there, ``[T + 1]``; index 0 is not used."""
        entries, T = np.atleast_1d(self.t), self.process.T
        stretch = np.maximum(np.arange(T + 1) * len(entries) - 1, 0) // T
        lengths = np.bincount(stretch[1:])
        return entries[stretch], T / (len(entries) * lengths[stretch])
