"""Bins that divide the timesteps 1..T into equal stretches: for scores by (query bin, training bin), and for weights and norms."""

import itertools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

ALL = "all"
"""The label of all timesteps."""


def bin_of(timestep: Tensor, bins: int, T: int) -> Tensor:
    """The bin (0..bins-1) of timesteps of any shape: ``⌊(t-1) · bins / T⌋``."""
    return (timestep - 1) * bins // T


def labels(bins: int, T: int) -> list[str]:
    """The label ``all``, then one label ``first-last`` for each bin."""
    edges = [-(-b * T // bins) for b in range(bins + 1)]
    return [ALL, *(f"{low + 1}-{high}" for low, high in itertools.pairwise(edges))]


def with_sums(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """``values`` with the sum over each of ``axes`` inserted before its entries, in the order of ``labels``."""
    for axis in axes:
        values = np.concatenate([values.sum(axis, keepdims=True), values], axis)
    return values
