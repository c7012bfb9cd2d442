"""Draws that differ between checkpoints (ReTrac, table 4: one random timestep per checkpoint)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attribution.checks import whole
from attribution.images.draws import Draws, DrawScheme, random_draws
from attribution.nodes.identity import added

SHARED = ("attribution.images.draws",)


@dataclass(frozen=True)
class UniformAtCheckpoints(DrawScheme):
    """``n`` independent draws, t ~ U{1..T}, drawn anew for every checkpoint.

    ``step``: the checkpoint of these draws, which estimators that replay training set. None: draws for a single model.
    """

    NAME = "UniformAtCheckpoints"
    VERSION = 1

    n: int = 1
    seed: int = 0
    bins: int = 1
    step: int | None = added(default=None)

    def __post_init__(self):
        for name in ("n", "bins"):
            whole(self, name, least=1)

    @property
    def count(self) -> int:
        return self.n

    def at_checkpoint(self, step: int) -> "UniformAtCheckpoints":
        return replace(self, step=step)

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        number = torch.arange(self.n, device=example.device)
        role = role if self.step is None else f"{role} at {self.step}"
        return random_draws(self.seed, role, example[:, None], number, T, flips, dropout)
