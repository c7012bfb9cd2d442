"""Self-influence A(z, z): how much training on an example lowered the loss of the same example (ReTrac §6, §6.3)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from attribution.estimators.training_trajectory import TrajectoryEstimator, refuse_zero_rates
from attribution.estimators.training_trajectory_blocks import CheckpointEstimator
from attribution.execution import ranges
from attribution.gradients.inner_products import rowwise_dot
from attribution.gradients.network_cache import engine
from attribution.images import ImageSet
from attribution.images.draws import Draws
from attribution.nodes import Arrays, Cost, Get, Node, SharingNode, key
from attribution.training import Recorded
from attribution.training.checkpoints import at_least, select
from attribution.transfers import to_device

SHARED = (
    "attribution.estimators.training_trajectory",
    "attribution.gradients.inner_products",
    "attribution.gradients.network_cache",
)


@dataclass(frozen=True, eq=False)
class Influence(Arrays):
    """The self-influence of each training example, ``values`` float32 ``[N]``, and the ids of the examples, ``train_index [N]``."""

    values: np.ndarray
    train_index: np.ndarray


@dataclass(frozen=True)
class SelfInfluenceShard(SharingNode[Influence]):
    """``⟨Q_k(z), G_k(z)⟩`` at one checkpoint for the training examples ``rows[0]..rows[1]-1``."""

    NAME = "SelfInfluenceShard"
    VERSION = 2
    TITLE = "self-influence, in shards"
    ARTIFACT = Influence
    TRANSIENT = True

    estimator: CheckpointEstimator
    trained: Recorded
    train: ImageSet
    rows: tuple[int, int]
    step: int

    def together(self) -> Hashable:
        return key(self.trained, self.train, self.rows, self.step, self.estimator.measurement, self.estimator.draws)

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        return Cost(passes=(first.rows[1] - first.rows[0]) * (1 + first.estimator.draws.count))

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[Influence]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, estimator = nodes[0], nodes[0].estimator
        device, execution = estimator.execution.torch_device(), estimator.execution
        per_example = engine(first.trained, first.step, execution, get)
        record, train = get(first.trained), get(first.train)
        products: list[list[torch.Tensor]] = [[] for _ in nodes]
        estimator.measurement.subject(first.train)  # raises if the training images cannot be measured

        def inputs(rows: slice) -> tuple[torch.Tensor, Draws, torch.Tensor | None]:
            draws = estimator.draws.draw("query", to_device(train.ids(rows), device), first.trained.process.T)
            return to_device(train.x0(rows), device), draws, train.conditions(rows)

        # A block holds both sides of its examples, and its query draws should fill a pass.
        start, stop = first.rows
        size = per_example.inputs_per_pass(estimator.measurement, *inputs(slice(start, min(start + 2, stop))))
        block = min(execution.examples_at_once(2 * first.trained.parameter_count), size // estimator.draws.count)
        for start, stop in ranges(*first.rows, max(1, block)):
            rows = slice(start, stop)
            x0, draws, condition = inputs(rows)
            query = per_example.capture(estimator.measurement, x0, draws, condition)
            visited = record.latest_draws(first.step, train.index[rows]).to(device)
            trained = per_example.capture(first.trained.objective, x0, visited, condition)
            for blocks, node in zip(products, nodes, strict=True):
                blocks.append(rowwise_dot(node.estimator.query_side(query), node.estimator.train_side(trained)))
        index = np.array(train.index[slice(*first.rows)])
        return [Influence(torch.cat(blocks).float().numpy(), index) for blocks in products]


@dataclass(frozen=True)
class SelfInfluence(Node[Influence]):
    """``A(z, z) = Σ_k η_k ⟨Q_k(z), G_k(z)⟩``: the query side over the estimator's draws, the training side at z's recorded draw."""

    NAME = "SelfInfluence"
    VERSION = 2
    TITLE = "self-influence"
    ARTIFACT = Influence

    estimator: TrajectoryEstimator
    trained: Recorded
    train: ImageSet

    def cost(self) -> Cost:
        steps = at_least(self.estimator.checkpoints)
        return Cost(passes=steps * self.train.count * (1 + self.estimator.draws.count), disk=12 * self.train.count)

    def parts(self, get: Get) -> list[SelfInfluenceShard]:
        record = get(self.trained)
        return [
            SelfInfluenceShard(self.estimator.at_checkpoint(step), self.trained, self.train, rows, step)
            for step in select(self.estimator.checkpoints, record.steps, record.losses)
            for rows in ranges(0, self.train.count, self.estimator.execution.shard)
        ]

    def compute(self, get: Get) -> Influence:
        record, train = get(self.trained), get(self.train)
        shards = self.parts(get)
        refuse_zero_rates({shard.step: record.learning_rate(shard.step) for shard in shards})
        total: dict[tuple[int, int], Any] = {}
        for shard, influence in zip(shards, get.many(shards), strict=True):
            rate = record.learning_rate(shard.step)
            total[shard.rows] = total.get(shard.rows, 0) + rate * influence.values.astype(np.float64)
        return Influence(np.concatenate(list(total.values())).astype(np.float32), np.array(train.index))
