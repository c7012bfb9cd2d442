"""The training images in the order of ``attribution.training.order``, as Lightning reads them."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from attribution.images import Images
from attribution.training.order import Batch, batch_rows
from attribution.transfers import ASYNCHRONOUS

SHARED = ("attribution.images.images", "attribution.training.order")


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
        reader, pinned = BatchReader(images), order.trainer.strategy.root_device.type in ASYNCHRONOUS
        super().__init__(reader, batch_sampler=order, collate_fn=_as_read, pin_memory=pinned)  # pyright: ignore[reportArgumentType]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the loader has no state."""


class Batches(L.LightningDataModule):
    """The training images in their order. Each process builds its own loader, because its rank is known only there."""

    def __init__(self, images: Images, seed: int, batch_size: int):
        super().__init__()
        self.images, self.seed, self.batch_size = images, seed, batch_size

    def train_dataloader(self) -> StepLoader:
        assert self.trainer is not None
        return StepLoader(self.images, BatchOrder(self.seed, len(self.images), self.batch_size, self.trainer))


def _as_read(batch: Batch) -> Batch:
    return batch
