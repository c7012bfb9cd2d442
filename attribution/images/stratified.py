"""Stratified draws, which spread over the timesteps and stay unbiased. Measurements of retrained models are averaged over them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from attribution.images.draws import Draws, TwoSided, random_draws
from attribution.images.proposals import Proposal

SHARED = ("attribution.images.draws", "attribution.images.proposals")

_RESOLUTION = 2**31
"""The number of positions within a stretch."""


@dataclass(frozen=True)
class Stratified(TwoSided):
    """One draw in each of ``n`` stretches of the timesteps that are equally probable under a :class:`Proposal`.

    Without a proposal the stretches are equally long: draw k is uniform in ``(kT/n, (k+1)T/n]``, and a timestep that two stretches
    share is drawn in each in proportion to its part there. With a proposal p every draw has the weight ``1 / (T p(t))``, so that
    the mean of weighted costs has the mean over all timesteps as its expectation, for every ``n``.

    ``train``: the number of draws of training images (None: as many).
    """

    NAME = "Stratified"
    VERSION = 1

    n: int
    seed: int = 0
    bins: int = 1
    train: int | None = None

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        return self._draw(Proposal.uniform(T), role, example, flips, dropout)

    def draw_for(self, proposal: Proposal, role: str, example: Tensor) -> Draws:
        return self._draw(proposal, role, example, flips=False, dropout=0.0)

    def _draw(self, proposal: Proposal, role: str, example: Tensor, flips: bool, dropout: float) -> Draws:
        number = torch.arange(self.n)  # on the CPU, because some devices have no float64
        random = random_draws(self.seed, role, example.cpu()[:, None], number, _RESOLUTION, flips, dropout)
        within = (random.timestep.double() - 0.5) / _RESOLUTION
        timestep, weight = timesteps(proposal, self.n, number + within)
        return replace(random, timestep=timestep, weight=None if proposal.is_uniform else weight).to(example.device)


def timesteps(proposal: Proposal, n: int, position: Tensor) -> tuple[Tensor, Tensor]:
    """The timestep at each ``position`` (float64, 0..n) in the cumulative expected counts of n draws, and its weight (float64)."""
    counts = proposal.counts(n)
    ends = counts.cumsum()
    timestep = 1 + torch.searchsorted(torch.from_numpy(ends[:-1]), position, right=True)
    weights = n / (proposal.T * counts)
    return timestep, torch.from_numpy(np.append(0, weights))[timestep]
