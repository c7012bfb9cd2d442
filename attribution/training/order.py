"""The order of training batches: a function of (seed, step), so that a run can go on, or be replayed, from any step."""

import functools
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from attribution.images import Images, philox

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


class BatchOrder(Sampler[list[int]]):
    """Batches from the trainer's current step to its last; each of W processes takes every W-th row of a batch."""

    def __init__(self, seed: int, n: int, batch_size: int, trainer: L.Trainer):
        self.seed, self.n, self.batch_size, self.trainer = seed, n, batch_size, trainer

    def __len__(self) -> int:
        return self.trainer.max_steps

    def __iter__(self) -> Iterator[list[int]]:
        shard = slice(self.trainer.global_rank, None, self.trainer.world_size)
        for step in range(self.trainer.global_step, self.trainer.max_steps):
            yield batch_rows(self.seed, step, self.n, self.batch_size)[shard].tolist()


class BatchReader(Dataset[Batch]):
    """Images as a data set that reads the batch of a list of rows at once."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> Batch:
        return self.images.ids(rows), self.images.x0(torch.tensor(rows)), self.images.conditions(rows)


class StepLoader(DataLoader):
    """A loader of the batches of a ``BatchOrder``, which Lightning can resume because the order knows where to start."""

    def __init__(self, images: Images, order: BatchOrder):
        super().__init__(BatchReader(images), batch_sampler=order, collate_fn=_as_read)  # pyright: ignore[reportArgumentType]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the loader has no state."""


class Batches(L.LightningDataModule):
    """The training images in their order. Each process builds its own loader, because only there its rank is known."""

    def __init__(self, images: Images, seed: int, batch_size: int):
        super().__init__()
        self.images, self.seed, self.batch_size = images, seed, batch_size

    def train_dataloader(self) -> StepLoader:
        assert self.trainer is not None
        return StepLoader(self.images, BatchOrder(self.seed, len(self.images), self.batch_size, self.trainer))


def _as_read(batch: Batch) -> Batch:
    return batch
