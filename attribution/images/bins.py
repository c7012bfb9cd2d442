"""Timesteps 1..T cut into equal stretches: scores by (query bin, training bin), weights and norms by timestep."""

import itertools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

ALL = "all"


def bin_of(timestep: Tensor, bins: int, T: int) -> Tensor:
    """Which stretch (0..bins-1) timesteps of any shape lie in: ``⌊(t-1) · bins / T⌋``."""
    return (timestep - 1) * bins // T


def labels(bins: int, T: int) -> list[str]:
    """``all``, then each stretch as ``first-last``."""
    edges = [-(-b * T // bins) for b in range(bins + 1)]
    return [ALL, *(f"{low + 1}-{high}" for low, high in itertools.pairwise(edges))]


def with_sums(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """``values`` with the sum over each of ``axes`` put before its entries: what ``labels`` says, in order."""
    for axis in axes:
        values = np.concatenate([values.sum(axis, keepdims=True), values], axis)
    return values
