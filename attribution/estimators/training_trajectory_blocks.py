"""The blocks of a trajectory estimator's scores at one checkpoint: Q_k of queries, and ⟨Q_k, G_k⟩ with training examples.

Both come as sums over the bins of timesteps (``draws.bins``; one bin by default). Estimators that differ only in how they weight
the draws of the same passes are computed together (``Node.together``).
"""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from attribution.estimators.layers import AllLayers, Layers
from attribution.estimators.sharded import (
    BlockProducts,
    QueryBatch,
    QueryBlock,
    QueryVectors,
    ShardedEstimator,
    TrainingBlock,
    joined,
)
from attribution.execution import FLOAT32_BYTES, ranges
from attribution.gradients.inner_products import dot
from attribution.gradients.network_cache import engine, gradient_shapes
from attribution.gradients.per_example import Captured, LayerGradients
from attribution.gradients.resident import batches_within, resident
from attribution.images.bins import bin_of
from attribution.images.draws import DrawScheme
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, SharingNode, added, key
from attribution.transfers import to_device

SHARED = (
    "attribution.estimators.layers",
    "attribution.estimators.sharded",
    "attribution.gradients.inner_products",
    "attribution.gradients.network_cache",
    "attribution.gradients.resident",
    "attribution.images.bins",
    "attribution.training.record",
)

HALVES = 2
"""The query draws are split into two interleaved halves. The agreement of the halves is the reliability of the scores."""


@dataclass(frozen=True, kw_only=True)
class CheckpointEstimator(ShardedEstimator):
    """An estimator that compares a query and a training example at a checkpoint k: ``⟨Q_k(q), G_k(z)⟩``.

    ``layers``: the layers that the inner product is a sum over, or learned weights of groups of them.
    """

    SCALES_GRADIENTS: ClassVar[bool] = False
    """Whether ``train_side`` makes a second copy of the gradients."""

    layers: Layers = added(default=AllLayers())

    @abstractmethod
    def query_side(self, captured: Captured) -> LayerGradients:
        """Return Q(q) of each query from the gradients at its draws. Must be linear in them, up to weights of single draws."""

    @abstractmethod
    def train_side(self, captured: Captured) -> LayerGradients:
        """Return G(z) of each training example from the gradient at its recorded draw."""

    def query_bytes(self, trained: Trained) -> float:
        """The size of the side of one query: its gradient, for every half of the draws and every bin of timesteps."""
        parameters = self.layers.size(gradient_shapes(trained))
        return FLOAT32_BYTES * min(HALVES, self.draws.count) * self.draws.bins * parameters

    def side_key(self) -> str:
        """A key of estimators whose sides are the same before layers are chosen."""
        return key(replace(self, layers=AllLayers()))


@dataclass(frozen=True)
class TrajectoryQueryBlock(QueryBlock[QueryVectors], SharingNode[QueryVectors]):
    """Q_k of a block of queries at checkpoint ``step``, as the mean over each half of the draws: ``[bins, 2, Q, out, in]``."""

    NAME = "TrajectoryQueryBlock"
    VERSION = 1
    TITLE = "gradients of the queries"
    ARTIFACT = QueryVectors

    estimator: CheckpointEstimator
    step: int

    def together(self) -> Hashable:
        estimator = self.estimator
        return key(self.trained, self.queries, self.rows, self.step, estimator.measurement, estimator.draws)

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        size = sum(node.count * node.estimator.query_bytes(node.trained) for node in nodes)
        of_pass = 2 * FLOAT32_BYTES * first.count * first.trained.parameter_count  # gradients, and one query side of them
        return Cost(passes=first.count * first.estimator.draws.count, memory=size + of_pass, disk=size)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[QueryVectors]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        measurement, scheme, T = first.estimator.measurement, first.estimator.draws, first.trained.process.T
        per_example = engine(first.trained, first.step, first.estimator.execution, get)
        x0, draws, condition = first.inputs(get)
        size = per_example.inputs_per_pass(measurement, x0, draws, condition)
        halves, vectors = half_columns(scheme), [LayerGradients() for _ in nodes]
        for half, columns in enumerate(halves):
            # As many queries at a time as one pass holds, so that estimators and bins share it.
            for start, stop in ranges(0, len(x0), max(1, size // len(columns))):
                batch = draws.rows(slice(start, stop)).columns(columns.to(x0.device))
                given = None if condition is None else condition[start:stop]
                captured = per_example.capture(measurement, x0[start:stop], batch, given)
                if len(nodes) > 1 or scheme.bins > 1:
                    captured.keep_calls()
                bins = bin_of(measurement.timesteps(batch), scheme.bins, T)
                for b in range(scheme.bins):
                    inside = captured if scheme.bins == 1 else captured.where(bins == b)
                    sides: dict[str, LayerGradients] = {}
                    for node, into in zip(nodes, vectors, strict=True):
                        if (name := node.estimator.side_key()) not in sides:
                            sides[name] = node.estimator.query_side(inside)
                        for layer, side in node.estimator.layers.part(sides[name]).items():
                            if layer not in into:
                                into[layer] = side.new_empty(scheme.bins, len(halves), len(x0), *side.shape[1:])
                            into[layer][b, half, start:stop] = side
        return [QueryVectors({layer: side.float().cpu() for layer, side in into.items()}) for into in vectors]


@dataclass(frozen=True)
class TrajectoryTrainingBlock(TrainingBlock, SharingNode[BlockProducts]):
    """``⟨Q_k, G_k⟩`` of the queries ``query_rows`` with a block of training examples at checkpoint ``step``: ``[bins, 2, Q, n]``.

    The leading axes are the bins of the query draws' timesteps, and the halves of the query draws.
    """

    NAME = "TrajectoryTrainingBlock"
    VERSION = 2
    TITLE = "scores at each checkpoint"

    estimator: CheckpointEstimator
    step: int
    query_rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(self.trained, self.train, self.rows, self.step, self.query_rows[0])

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, blocks = nodes[0], [block for node in nodes for block in node.query_blocks()]
        limit, held = cls._limit(nodes), sum(block.cost().disk for block in blocks)
        return Cost(
            passes=first.count * len(batches_within(blocks, limit)),
            at_once=first._examples_at_once,
            products=first.count * held / FLOAT32_BYTES,
            memory=min(limit, held) + cls._working_bytes(nodes),
        )

    @classmethod
    def _limit(cls, nodes: Sequence[Self]) -> float:
        """The bytes of the device that the queries of nodes with a common key may take together."""
        return nodes[0].estimator.execution.resident_bytes(cls._working_bytes(nodes))

    @classmethod
    def _working_bytes(cls, nodes: Sequence[Self]) -> float:
        """The bytes of the gradients of a pass, and of the same after ``train_side`` of one node if it makes new ones."""
        first = nodes[0]
        gradients = first._examples_at_once * first.trained.parameter_count * FLOAT32_BYTES
        return (1 + any(node.estimator.SCALES_GRADIENTS for node in nodes)) * gradients

    def query_blocks(self) -> list[TrajectoryQueryBlock]:
        subject = self.estimator.measurement.subject(self.queries)
        return [
            TrajectoryQueryBlock(self.estimator, self.trained, subject, rows, self.step)
            for rows in ranges(*self.query_rows, self.estimator.execution.query_shard)
        ]

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[BlockProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, execution = nodes[0], nodes[0].estimator.execution
        device = execution.torch_device()
        per_example = engine(first.trained, first.step, execution, get)
        record, train = get(first.trained), get(first.train)
        blocks = [(i, block) for i, node in enumerate(nodes) for block in node.query_blocks()]
        products: list[list[Tensor]] = [[] for _ in blocks]
        for batch in batches_within([block for _, block in blocks], cls._limit(nodes)):
            sides = resident(per_example, [blocks[at][1] for at in batch], get)
            for start, stop in ranges(*first.rows, first._examples_at_once):
                rows = slice(start, stop)
                draws = record.latest_draws(first.step, train.index[rows]).to(device)
                captured = per_example.capture(
                    first.trained.objective, to_device(train.x0(rows), device), draws, train.conditions(rows)
                )
                gradients: LayerGradients = {}
                scaled_for = None
                for at, side in zip(batch, sides, strict=True):
                    estimator = nodes[blocks[at][0]].estimator
                    if (name := estimator.side_key()) != scaled_for:
                        gradients = {}  # frees the memory of one node's side before the next
                        gradients, scaled_for = estimator.train_side(captured), name
                    products[at].append(dot(side.layers, estimator.layers.part(gradients)))
        return joined(len(nodes), [i for i, _ in blocks], products)


@dataclass(frozen=True)
class TrajectoryBatch(QueryBatch):
    """``⟨Q_k, G_k⟩`` of a batch of queries with all training examples at checkpoint ``step``: ``[bins, 2, Q, N]``."""

    NAME = "TrajectoryBatch"
    VERSION = 1
    TITLE = "scores at each checkpoint, joined"

    estimator: CheckpointEstimator
    step: int

    def training_block(self, rows: tuple[int, int]) -> TrajectoryTrainingBlock:
        return TrajectoryTrainingBlock(self.estimator, self.trained, self.train, self.queries, rows, self.step, self.rows)


def half_columns(scheme: DrawScheme) -> list[Tensor]:
    """Return the indices of the draws in each half: even and odd ones, or a single half if there is only one draw."""
    return [torch.arange(first, scheme.count, HALVES) for first in range(min(HALVES, scheme.count))]
