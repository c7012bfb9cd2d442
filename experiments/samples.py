"""Samples of a trained model as a store node."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attribution import philox
from attribution.diffusion.samplers import Sampler
from attribution.estimators import Execution
from attribution.estimators.passes import ranges
from attribution.images import Images, ImageSet
from attribution.node import Cost, Get, Node, execution
from attribution.training import Recorded


@dataclass(frozen=True, kw_only=True)
class SampleShard(ImageSet):
    """Samples ``rows[0]..rows[1]-1``."""

    TRANSIENT = True

    record: Recorded
    sampler: Sampler
    shape: tuple[int, int, int]
    seed: int
    rows: tuple[int, int]
    execution: Execution = execution(default=Execution())

    @property
    def count(self) -> int:
        return self.rows[1] - self.rows[0]

    def cost(self) -> Cost:
        steps = len(self.sampler.timesteps(self.record.schedule.T))
        return Cost(passes=self.count * steps / 3)  # a forward pass is about a third of forward and backward

    def compute(self, get: Get) -> Images:
        device = self.execution.torch_device()
        network = self.record.network(get).to(device)
        index = np.arange(*self.rows)
        seeds = torch.tensor([_seed(self.seed, int(i)) for i in index], device=device)
        x0 = self.sampler.sample(network, self.record.schedule, self.shape, seeds)
        return Images(x0.float().cpu().numpy(), index, np.full(len(index), -1))


@dataclass(frozen=True, kw_only=True)
class Samples(ImageSet):
    """``n`` images that the trained model generates, each from its own noise: sample i is the same whatever ``n`` is."""

    record: Recorded
    sampler: Sampler
    shape: tuple[int, int, int]
    n: int
    seed: int
    execution: Execution = execution(default=Execution())

    @property
    def count(self) -> int:
        return self.n

    def parts(self, get: Get) -> Sequence[Node]:
        return [
            SampleShard(
                record=self.record, sampler=self.sampler, shape=self.shape, seed=self.seed, rows=rows, execution=self.execution
            )
            for rows in ranges(0, self.n, self.execution.shard)
        ]

    def cost(self) -> Cost:
        steps = len(self.sampler.timesteps(self.record.schedule.T))
        return Cost(passes=self.n * steps / 3)

    def compute(self, get: Get) -> Images:
        shards = get.many(self.parts(get))
        pixels, index, label = (np.concatenate([getattr(s, name) for s in shards]) for name in ("pixels", "index", "label"))
        return Images(pixels, index, label)


def _seed(seed: int, index: int) -> int:
    low, high = philox.key(seed, "sample", index)
    return low | (high >> 1) << 32  # 63 bits: torch's integers are signed
