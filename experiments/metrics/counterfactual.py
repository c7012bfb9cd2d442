"""What removing training images did to queries: pure functions.

Q queries, R removals (1, or several random ones), K training seeds, M sets of removed images, the first of which is empty. An
*effect* ``[Q, R, K]`` is a number for each query after each removal under each seed: a change of the measurement, or a distance
between images.
"""

import numpy as np

AXES = ("queries", "removals", "seeds")
"""The axes of an effect in a bootstrap."""


def changes(measured: np.ndarray) -> np.ndarray:
    """m(q | without a set, seed) − m(q | all, same seed), ``[K, Q, M] -> [K, Q, M]``. Positive: removal made the query worse."""
    return measured - measured[..., :1]


def effect(values: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """The effect ``[Q, R, K]`` of the ``sets [Q, R]`` that are removed for each query, from ``values [K, Q, M]``."""
    return np.moveaxis(np.take_along_axis(values, sets[None], 2), 0, 2)


def of_others(sets: np.ndarray) -> np.ndarray:
    """For each query, the sets that are removed for the other queries: ``[Q] -> [Q, Q-1]``."""
    return np.stack([np.delete(sets, q) for q in range(len(sets))])


def pixel_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The ℓ2 norm of the difference of images ``[.., C, H, W]`` in [-1, 1], clipped and scaled to [0, 1] as they are shown."""
    a, b = ((np.clip(side.astype(np.float64), -1, 1) + 1) / 2 for side in (first, second))
    return np.sqrt(np.square(a - b).sum((-3, -2, -1)))


def cosine_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 − the cosine of embeddings ``[.., d]``."""
    a, b = (side.astype(np.float64) for side in (first, second))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return 1 - (a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)
