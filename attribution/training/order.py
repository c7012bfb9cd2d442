"""The order of training batches: a function of (seed, step), so that a run can continue, or be replayed, from any step."""

import functools

import numpy as np
from torch import Tensor

from attribution.images import philox

Batch = tuple[Tensor, Tensor, Tensor | None]
"""``(ids [B], x0 [B, C, H, W], condition [B, ...] or None)``."""

SHARED = ("attribution.images.philox",)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """The number of batches in which an epoch visits every example once; the last one may be smaller."""
    return -(-n // batch_size)


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of 0..n-1 in which an epoch visits the rows."""
    return np.random.Generator(np.random.Philox(key=philox.key(seed, "order", epoch))).permutation(n)


def batch_rows(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """The rows (0..n-1) in the batch of ``step`` (0-based): a slice of the order of its epoch."""
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    return epoch_order(seed, epoch, n)[position * batch_size : (position + 1) * batch_size]
