"""Proposals: the distributions from which the timesteps of a measurement are drawn (importance sampling).

A cost f(t) of very different size at different timesteps is estimated best by draws from a probability p(t) that resembles it, each
with the weight 1 / (T p(t)): the mean of weighted costs has the expectation (1/T) Σ_t f(t) for every p that is positive everywhere.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

UNIFORM_SHARE = 0.1
"""The share of uniform draws in a weighted proposal. It bounds the weight of a draw by 1/0.1."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """``size``: relative probabilities of the timesteps 1..T, positive float64 ``[T]``.

    With ``first_apart`` t = 1 is a stratum of its own: a whole number of draws lies there, at least one, and the others elsewhere.

    Raises:
        ValueError: a probability is not positive and finite.
    """

    size: np.ndarray
    first_apart: bool = False

    def __post_init__(self):
        if not (np.isfinite(self.size).all() and (self.size > 0).all()):
            raise ValueError("draws of a timestep with probability 0 have no weight: give every timestep a positive, finite size")

    @classmethod
    def uniform(cls, T: int) -> Self:
        """All timesteps alike: the draws need no weights."""
        return cls(np.ones(T))

    @classmethod
    def weighted(cls, weights: np.ndarray, first_apart: bool = False) -> Self:
        """In proportion to the ``weights [T]`` of a cost, mixed with 10 % uniform draws."""
        return cls((1 - UNIFORM_SHARE) * weights / weights.sum() + UNIFORM_SHARE / len(weights), first_apart)

    @property
    def T(self) -> int:
        """The number of timesteps."""
        return len(self.size)

    @cached_property
    def is_uniform(self) -> bool:
        """Whether all timesteps are equally probable."""
        return not self.first_apart and bool((self.size == self.size[0]).all())

    def counts(self, n: int) -> np.ndarray:
        """The expected number of ``n`` draws at each timestep, float64 ``[T]``."""
        counts = n * self.size / self.size.sum()
        if self.first_apart and n > 1 and self.T > 1:
            first = min(max(round(counts[0]), 1), n - 1)
            counts = np.append(first, (n - first) * self.size[1:] / self.size[1:].sum())
        return counts
