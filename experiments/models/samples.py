"""Generated images of a trained model as store nodes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attribution.diffusion.samplers import Sampler
from attribution.execution import FLOAT32_BYTES, FORWARD_ACTIVATIONS, Execution, ranges
from attribution.images import Images, ImageSet, Trajectories, philox
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, added, execution
from experiments.datasets.source import Decoder
from experiments.models.sample_conditions import SampleConditions, conditions_of, on_device
from experiments.store.progress import track

SHARED = ("attribution.images.images", "attribution.images.philox", "experiments.models.sample_conditions")


@dataclass(frozen=True, kw_only=True)
class SampleShard(ImageSet):
    """Samples ``rows[0]`` to ``rows[1] - 1``."""

    NAME = "SampleShard"
    VERSION = 1
    TITLE = "generated images, in shards"
    TRANSIENT = True

    trained: Trained
    sampler: Sampler
    shape: tuple[int, int, int]
    seed: int
    rows: tuple[int, int]
    conditions: SampleConditions | None = added(default=None)
    display: float = execution(default=1.0)
    decoder: Decoder | None = added(default=None)
    execution: Execution = execution(default=Execution())

    @property
    def count(self) -> int:
        return self.rows[1] - self.rows[0]

    def cost(self) -> Cost:
        return sampling_cost(self.trained, self.sampler, self.count, self.count)

    def compute(self, get: Get) -> Images:
        device = self.execution.torch_device()
        network = self.trained.network(get).float().to(device)
        index = np.arange(*self.rows)
        seeds = torch.tensor([_seed(self.seed, int(i)) for i in index], device=device)
        condition, label = conditions_of(self.conditions, index, self.seed, get)
        x0 = self.sampler.sample(
            network, self.trained.process, self.shape, seeds, progress=_bar(), condition=on_device(condition, device)
        )
        pictures = None if self.decoder is None else self.decoder.pictures(x0)
        return Images(x0.float().cpu().numpy(), index, label, condition=condition, display=self.display, pictures=pictures)


@dataclass(frozen=True, kw_only=True)
class Samples(ImageSet):
    """``n`` images that the trained model generates. Sample i has its own noise and condition, so it does not depend on ``n``.

    ``conditions``: the conditions that the network gets; None: nothing.
    ``display``: how figures draw them (:class:`Images`). ``decoder``: what turns them into pictures, if they are latents.
    """

    NAME = "Samples"
    VERSION = 1
    TITLE = "generated images"

    trained: Trained
    sampler: Sampler
    shape: tuple[int, int, int]
    n: int
    seed: int
    conditions: SampleConditions | None = added(default=None)
    display: float = execution(default=1.0)
    decoder: Decoder | None = added(default=None)
    execution: Execution = execution(default=Execution())

    @property
    def count(self) -> int:
        return self.n

    @property
    def trajectories(self) -> "SampleTrajectories":
        return SampleTrajectories(self)

    def parts(self, get: Get) -> Sequence[Node]:
        return [
            SampleShard(
                trained=self.trained,
                sampler=self.sampler,
                shape=self.shape,
                seed=self.seed,
                rows=rows,
                conditions=self.conditions,
                execution=self.execution,
                display=self.display,
                decoder=self.decoder,
            )
            for rows in ranges(0, self.n, self.execution.shard)
        ]

    def cost(self) -> Cost:
        size = FLOAT32_BYTES * self.n * math.prod(self.shape)
        return sampling_cost(self.trained, self.sampler, self.n, min(self.n, self.execution.shard), size)

    def compute(self, get: Get) -> Images:
        shards = get.many(self.parts(get))
        pixels, index, label = (np.concatenate([getattr(s, name) for s in shards]) for name in ("pixels", "index", "label"))
        condition, pictures = (
            None if getattr(shards[0], name) is None else np.concatenate([getattr(s, name) for s in shards])
            for name in ("condition", "pictures")
        )
        return Images(pixels, index, label, condition=condition, display=self.display, pictures=pictures).named("generated")


@dataclass(frozen=True)
class SampleTrajectories(Node[Trajectories]):
    """The trajectories of ``samples``: every state of the same sampling run."""

    NAME = "SampleTrajectories"
    VERSION = 2
    TITLE = "sampling trajectories"
    ARTIFACT = Trajectories

    samples: Samples

    def cost(self) -> Cost:
        s = self.samples
        states = len(s.sampler.levels(s.trained.process)) + 1
        size = FLOAT32_BYTES * s.n * states * math.prod(s.shape)
        return sampling_cost(s.trained, s.sampler, s.n, min(s.n, s.execution.batch_size), size)

    def compute(self, get: Get) -> Trajectories:
        s = self.samples
        device = s.execution.torch_device()
        network = s.trained.network(get).float().to(device)
        condition, _ = conditions_of(s.conditions, np.arange(s.n), s.seed, get)
        states = []
        for start, stop in ranges(0, s.n, s.execution.batch_size):
            seeds = torch.tensor([_seed(s.seed, i) for i in range(start, stop)], device=device)
            given = None if condition is None else on_device(condition[start:stop], device)
            trajectory = s.sampler.sample(network, s.trained.process, s.shape, seeds, True, progress=_bar(), condition=given)
            states.append(trajectory.states.cpu().numpy())
        return Trajectories(np.concatenate(states), np.arange(s.n), condition)


def sampling_cost(trained: Trained, sampler: Sampler, n: int, together: int, disk: float = 0.0) -> Cost:
    """The cost of ``n`` samples, ``together`` at a time, that take ``disk`` bytes."""
    evaluations = len(sampler.levels(trained.process)) * sampler.inputs_per_step
    at_once = FORWARD_ACTIVATIONS * together * sampler.inputs_per_step
    return Cost(passes=n * evaluations / 3, inputs=at_once, disk=disk)  # a forward pass is about a third of forward and backward


def _bar() -> Callable[[int, int], None]:
    """Return a callback that shows the steps of a sampler and the time left."""
    bars: list[Iterator[int]] = []

    def progress(done: int, total: int) -> None:
        if not bars:
            bars.append(iter(track(range(total + 1), "sampling", total)))
            next(bars[0])
        next(bars[0])
        if done == total:
            next(bars[0], None)

    return progress


def _seed(seed: int, index: int) -> int:
    low, high = philox.key(seed, "sample", index)
    return low | (high >> 1) << 32  # 63 bits, because torch's integers are signed
