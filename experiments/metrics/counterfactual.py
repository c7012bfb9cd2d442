"""What removing training images did to queries, and how sure that is: pure functions.

Q queries, R removals (1, or several random ones), K training seeds, M sets of removed images of which 0 is empty. An *effect*
``[Q, R, K]`` is a number for each query after each removal under each seed: a change of the measurement, a distance of images.
"""

from dataclasses import dataclass

import numpy as np

from experiments.metrics.common import Estimate, interval


@dataclass(frozen=True)
class Resamples:
    """The share that each query ``[B, Q]``, random removal ``[B, R]`` and seed ``[B, K]`` has in a resample.

    One for all estimators, so that they pair.
    """

    queries: np.ndarray
    removals: np.ndarray
    seeds: np.ndarray

    @classmethod
    def draw(cls, queries: int, removals: int, seeds: int, count: int, seed: int) -> "Resamples":
        """Uniform with replacement, each independently of the others."""
        random = np.random.default_rng([seed, 0xC0F])
        return cls(*(random.multinomial(n, np.full(n, 1 / n), size=count) / n for n in (queries, removals, seeds)))


def changes(measured: np.ndarray) -> np.ndarray:
    """m(q | without a set, seed) - m(q | all, the same seed): ``[K, Q, M] -> [K, Q, M]``; larger: removal made the query worse."""
    return measured - measured[..., :1]


def effect(values: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Of each query's own removals: ``values [K, Q, M]`` at ``sets [Q, R]`` are ``[Q, R, K]``."""
    return np.moveaxis(np.take_along_axis(values, sets[None], 2), 0, 2)


def of_others(sets: np.ndarray) -> np.ndarray:
    """For each query the sets that were removed for the other queries: ``[Q] -> [Q, Q-1]``."""
    return np.stack([np.delete(sets, q) for q in range(len(sets))])


def mean(of: np.ndarray, resamples: Resamples) -> Estimate:
    """Mean of an effect ``[Q, R, K]`` with its 95 % bootstrap interval over queries, random removals and seeds.

    NaN where nothing is repeated. What is there once (R = 1, or a single seed) adds nothing to the interval, known or not.
    """
    value = float(of.mean())
    if of.size == 1:
        return Estimate(value, np.nan, np.nan)
    full = np.broadcast_to(of, (of.shape[0], resamples.removals.shape[1], of.shape[2]))
    per_seed = np.einsum("bq,br,qrk->bk", resamples.queries, resamples.removals, full, optimize=True)
    return Estimate(value, *interval((per_seed * resamples.seeds).sum(1)))


def pixel_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """ℓ2 norm of the difference of images ``[.., C, H, W]`` in [-1, 1], as shown: clipped, and with pixels from 0 to 1."""
    a, b = ((np.clip(side.astype(np.float64), -1, 1) + 1) / 2 for side in (first, second))
    return np.sqrt(np.square(a - b).sum((-3, -2, -1)))


def cosine_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 - cosine of embeddings ``[.., d]``."""
    a, b = (side.astype(np.float64) for side in (first, second))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return 1 - (a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)
