"""The shards of a trajectory estimator's scores: query sides, and products with ranges of training examples, at one checkpoint.

Q and G come as sums over the bins of timesteps (``draws.bins``; one bin unless asked for more).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.execution import ranges
from attribution.gradients.engine import engine
from attribution.gradients.inner_products import dot
from attribution.gradients.per_example import LayerGradients
from attribution.images import ImageSet
from attribution.images.bins import bin_of
from attribution.nodes import Arrays, Artifact, Cost, Get, JointNode, Node, key
from attribution.training import Recorded

SHARED = ("attribution.gradients.engine", "attribution.gradients.inner_products", "attribution.images.bins")

if TYPE_CHECKING:
    from attribution.estimators.trajectory import TrajectoryEstimator

FLOAT = 4
HALVES = 2
"""The query draws are kept as two interleaved halves, whose agreement is the reliability of the scores."""


@dataclass(frozen=True, eq=False)
class QueryGradients(Artifact):
    """``sides``: layer name → ``[bins, 2, Q, out, in]``, the mean over either half of the draws; ``weights [2]``: their shares."""

    sides: LayerGradients
    weights: Tensor

    def save(self, folder: Path) -> None:
        save_file({**self.sides, "": self.weights}, folder / "gradients.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        tensors = load_file(folder / "gradients.safetensors")
        weights = tensors.pop("")
        return cls(tensors, weights)


@dataclass(frozen=True)
class QuerySide(JointNode[QueryGradients]):
    """Q_k of the queries ``rows[0]..rows[1]-1`` at one checkpoint. ``queries``: what the measurement is of."""

    NAME = "QuerySide"
    VERSION = 2
    TITLE = "gradients of the queries"
    ARTIFACT = QueryGradients
    TRANSIENT = True

    estimator: "TrajectoryEstimator"  # at one checkpoint
    record: Recorded
    queries: Node
    rows: tuple[int, int]

    def together(self) -> Hashable:
        e = self.estimator
        return key(self.record, self.queries, self.rows, e.checkpoints, e.measurement, e.draws)

    def cost(self) -> Cost:
        queries, draws = self.rows[1] - self.rows[0], self.estimator.draws
        size = draws.bins * HALVES * queries * self.record.parameter_count * FLOAT
        return Cost(passes=queries * draws.count, memory=2 * size, disk=size)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[QueryGradients]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        device, T = first.estimator.execution.torch_device(), first.record.process.T
        per_example = engine(first.record, step_of(first.estimator), first.estimator.execution, get)
        images, rows, scheme = get(first.queries), slice(*first.rows), first.estimator.draws
        x0 = images.x0(rows).to(device)
        draws = scheme.draw("query", images.ids(rows).to(device), T)
        columns = [torch.arange(i, scheme.count, HALVES, device=device) for i in range(min(HALVES, scheme.count))]
        sides: list[list[LayerGradients]] = [[] for _ in nodes]
        for half in columns:
            # As many queries at a time as one pass holds: estimators and bins then share it.
            blocks: list[list[LayerGradients]] = [[] for _ in nodes]
            for start, stop in ranges(0, len(x0), max(1, first.estimator.execution.batch_size // len(half))):
                some = draws.rows(slice(start, stop)).columns(half)
                condition = images.conditions(slice(first.rows[0] + start, first.rows[0] + stop))
                captured = per_example.capture(first.estimator.measurement, x0[start:stop], some, condition)
                if len(nodes) > 1 or scheme.bins > 1:
                    captured.hold()
                bins = bin_of(first.estimator.measurement.timesteps(some), scheme.bins, T)
                for block, node in zip(blocks, nodes, strict=True):
                    if scheme.bins == 1:
                        parts = [node.estimator.query_side(captured)]
                    else:
                        parts = [node.estimator.query_side(captured.where(bins == b)) for b in range(scheme.bins)]
                    block.append({layer: torch.stack([part[layer] for part in parts]) for layer in parts[0]})
            for side, block in zip(sides, blocks, strict=True):
                side.append({layer: torch.cat([part[layer] for part in block], 1) for layer in block[0]})
        weights = torch.tensor([len(half) / scheme.count for half in columns], dtype=torch.float64)
        return [
            QueryGradients({layer: torch.stack([half[layer] for half in side], 1).float().cpu() for layer in side[0]}, weights)
            for side in sides
        ]


@dataclass(frozen=True, eq=False)
class Products(Arrays):
    """``values`` are ``⟨Q_k, G_k⟩`` by bin and half of the query draws, float32 ``[bins, 2, Q, n]``.

    ``weights [2]``: the halves' shares; ``train_bin [n]``: in which bin the training example's draw lies.
    """

    values: np.ndarray
    weights: np.ndarray
    train_bin: np.ndarray


@dataclass(frozen=True)
class CheckpointScores(JointNode[Products]):
    """The products of all queries with the training examples ``rows[0]..rows[1]-1`` at one checkpoint."""

    NAME = "CheckpointScores"
    VERSION = 2
    TITLE = "scores at each checkpoint"
    ARTIFACT = Products
    TRANSIENT = True

    estimator: "TrajectoryEstimator"  # at one checkpoint
    record: Recorded
    train: ImageSet
    queries: ImageSet
    rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(self.record, self.train, self.rows, self.estimator.checkpoints)

    def cost(self) -> Cost:
        examples = self.rows[1] - self.rows[0]
        block = self.estimator.execution.examples_at_once(self.record.parameter_count)
        held = 2 * block + self.estimator.draws.bins * HALVES * self.queries.count
        return Cost(passes=examples, memory=held * self.record.parameter_count * FLOAT)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[Products]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        device = first.estimator.execution.torch_device()
        per_example = engine(first.record, step_of(first.estimator), first.estimator.execution, get)
        record, train = get(first.record), get(first.train)
        queries = [get.many(query_sides(node.estimator, node.record, node.queries)) for node in nodes]
        blocks: list[list[Tensor]] = [[] for _ in nodes]
        for start, stop in ranges(*first.rows, first.estimator.execution.examples_at_once(first.record.parameter_count)):
            rows = slice(start, stop)
            draws = record.latest_draws(step_of(first.estimator), train.index[rows]).to(device)
            captured = per_example.capture(first.record.objective, train.x0(rows).to(device), draws, train.conditions(rows))
            for products, node, sides in zip(blocks, nodes, queries, strict=True):
                gradients = node.estimator.train_side(captured)
                products.append(torch.cat([dot(side.sides, gradients) for side in sides], dim=2).cpu())
        visited = record.latest_draws(step_of(first.estimator), train.index[slice(*first.rows)]).timestep[:, 0]
        return [
            Products(
                torch.cat(products, dim=3).float().numpy(),
                sides[0].weights.numpy(),
                bin_of(visited, node.estimator.draws.bins, first.record.process.T).numpy(),
            )
            for node, products, sides in zip(nodes, blocks, queries, strict=True)
        ]


def query_sides(estimator: "TrajectoryEstimator", record: Recorded, queries: ImageSet) -> list[QuerySide]:
    """The query sides of an estimator at one checkpoint, in order of the queries."""
    blocks = ranges(0, queries.count, estimator.execution.query_shard)
    return [QuerySide(estimator, record, estimator.measurement.subject(queries), rows) for rows in blocks]


def step_of(estimator: "TrajectoryEstimator") -> int:
    """The step of an estimator that is ``at`` one checkpoint."""
    assert isinstance(estimator.checkpoints, tuple)
    (step,) = estimator.checkpoints
    return step
