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

SHARED = ("attribution.images.philox",)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """An epoch visits every example once; its last batch may be smaller."""
    return -(-n // batch_size)


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of 0..n-1 in which an epoch visits the rows."""
    return np.random.Generator(np.random.Philox(key=philox.key(seed, "order", epoch))).permutation(n)


def batch_rows(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """Rows (0..n-1) of the batch of ``step`` (0-based): a slice of the order of its epoch."""
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    return epoch_order(seed, epoch, n)[position * batch_size : (position + 1) * batch_size]


class BatchOrder(Sampler[list[int]]):
    """Batches from where the trainer stands to its last step; each of W processes takes every W-th row of a batch."""

    def __init__(self, seed: int, n: int, batch_size: int, trainer: L.Trainer):
        self.seed, self.n, self.batch_size, self.trainer = seed, n, batch_size, trainer

    def __len__(self) -> int:
        return self.trainer.max_steps

    def __iter__(self) -> Iterator[list[int]]:
        mine = slice(self.trainer.global_rank, None, self.trainer.world_size)
        for step in range(self.trainer.global_step, self.trainer.max_steps):
            yield batch_rows(self.seed, step, self.n, self.batch_size)[mine].tolist()


class BatchReader(Dataset[tuple[Tensor, Tensor]]):
    """Images by lists of rows: ``(ids [B], x0 [B, C, H, W])`` in one read."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.images.ids([row])[0], self.images.x0([row])[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.images.ids(rows), self.images.x0(torch.tensor(rows))


class StepLoader(DataLoader):
    """Yields the batches of a ``BatchOrder``; resumable, as Lightning understands it, because the order knows where to start."""

    def __init__(self, images: Images, order: BatchOrder):
        super().__init__(BatchReader(images), batch_sampler=order, collate_fn=_as_read)  # pyright: ignore[reportArgumentType]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Batches(L.LightningDataModule):
    """The training images in their order; made in each process, since only there its rank is known."""

    def __init__(self, images: Images, seed: int, batch_size: int):
        super().__init__()
        self.images, self.seed, self.batch_size = images, seed, batch_size

    def train_dataloader(self) -> StepLoader:
        assert self.trainer is not None
        return StepLoader(self.images, BatchOrder(self.seed, len(self.images), self.batch_size, self.trainer))


def _as_read(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
