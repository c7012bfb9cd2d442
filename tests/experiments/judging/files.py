"""Scores and measurements that fit each other, and what the command line says of files of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

Q, N, M, K = 4, 20, 12, 2


@dataclass(frozen=True, eq=False)
class World:
    """Scores ``[Q, N]``, masks ``[M, N]`` and costs ``[K, M, Q]`` that are linear in them, with noise that differs by run."""

    scores: np.ndarray
    masks: np.ndarray
    measurements: np.ndarray


def world(seed: int = 0, noise: float = 0.5) -> World:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(Q, N)).astype(np.float32)
    masks = np.zeros((M, N), bool)
    for mask in masks:
        mask[random.permutation(N)[: N // 2]] = True
    costs = (~masks).astype(float) @ scores.T.astype(float)
    return World(scores, masks, costs + noise * random.normal(size=(K, M, Q)))


def saved(folder: Path, **arrays: np.ndarray) -> dict[str, str]:
    """Save each array as NAME.npy, and return the paths."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: str(folder / f"{name}.npy") for name in arrays}
