"""The blocks of SOURCE's scores: the gradient of queries carried back through the segments of training, and its products."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from attribution.curvature.basis import Basis, KroneckerBasis
from attribution.curvature.kfac import KroneckerCurvature
from attribution.estimators.base import as_tuple
from attribution.estimators.batch_squares import BatchSquares
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
from attribution.gradients.per_example import LayerGradients
from attribution.gradients.resident import batches_within, resident
from attribution.gradients.training_inputs import training_inputs
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, SharingNode, key
from attribution.training import Recorded
from attribution.training.segments import Segment

SHARED = (
    "attribution.gradients.training_inputs",
    "attribution.curvature.basis",
    "attribution.estimators.sharded",
    "attribution.gradients.inner_products",
    "attribution.gradients.network_cache",
    "attribution.gradients.resident",
    "attribution.estimators.batch_squares",
    "attribution.training.segments",
)

EPSILON = 1e-8
"""ε of Adam, which divides a step by √v + ε: PyTorch's default."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings(ShardedEstimator):
    """The settings of SOURCE that a segment needs; ``Source`` explains them."""

    curvature: KroneckerCurvature
    optimizer: Literal["adam", "sgd"] = "adam"
    horizon: float | Sequence[float] = 1.0
    flips: bool = False

    @property
    def horizons(self) -> tuple[float, ...]:
        """The horizons as a tuple."""
        return as_tuple(self.horizon)

    def query_bytes(self, trained: Trained) -> float:
        """The size of the side of one query in one segment."""
        return FLOAT32_BYTES * len(self.horizons) * trained.parameter_count

    def basis(self, trained: Recorded, segment: Segment, train: ImageSet) -> Node[Basis]:
        """The eigenbasis of the segment's curvature."""
        return self.curvature.checkpoint_basis(trained, segment.checkpoints, train, self.flips)

    def squares(self, trained: Recorded, segment: Segment, train: ImageSet) -> list[BatchSquares]:
        """The squares of batch gradients at the segment's checkpoints, if Adam needs them."""
        checkpoints = segment.checkpoints if self.optimizer == "adam" else ()
        return [BatchSquares(trained, train, step, execution=self.execution) for step in checkpoints]

    def curvatures(self, trained: Recorded, segments: Sequence[Segment], train: ImageSet) -> list[Node]:
        """What carries queries back through the segments."""
        bases: list[Node] = [self.basis(trained, segment, train) for segment in segments]
        return [*bases, *(square for segment in segments for square in self.squares(trained, segment, train))]

    def kappas(self, trained: Recorded, segment: Segment, train: ImageSet, get: Get) -> dict[str, np.ndarray]:
        """Layer → κ at each horizon, float64: c η K, with Adam divided by √v of the layer."""
        base = np.array(self.horizons, np.float64) * segment.summed_rates(get(trained), clipped=self.optimizer == "sgd")
        layers, squares = gradient_shapes(trained), self.squares(trained, segment, train)
        if not squares:
            return dict.fromkeys(layers, base)
        means = np.mean([square.values for square in get.many(squares)], axis=0)
        return {layer: base / (np.sqrt(mean) + EPSILON) for layer, mean in zip(layers, means, strict=True)}


@dataclass(frozen=True)
class SourceQueryBlock(QueryBlock[QueryVectors], SharingNode[QueryVectors]):
    """∇m(q)ᵀ [Π_{l'>l} exp(-κ_l' H_l')] F(H_l) of a block of queries, ``[horizons, Q, out, in]``.

    ``segments``: l and all later ones. The blocks of all segments share the gradient.
    """

    NAME = "SourceQueryBlock"
    VERSION = 1
    TITLE = "queries carried back through training"
    ARTIFACT = QueryVectors

    estimator: SourceSettings
    trained: Recorded
    train: ImageSet
    segments: tuple[Segment, ...]

    def together(self) -> Hashable:
        return key(self.trained, self.queries, self.rows, self.estimator.measurement, self.estimator.draws)

    def parents(self) -> list[Node]:
        return [*super().parents(), *self.estimator.curvatures(self.trained, self.segments, self.train)]

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, shapes = nodes[0], gradient_shapes(nodes[0].trained).values()
        sides = [node.count * node.estimator.query_bytes(node.trained) for node in nodes]
        rotation = 2 * sum(rows * columns * (rows + columns) for rows, columns in shapes)  # into the basis and back
        vectors = sum(node.count * len(node.estimator.horizons) * len(node.segments) for node in nodes)
        basis = max(node.estimator.basis(node.trained, node.segments[0], node.train).cost().disk for node in nodes)
        gradient = FLOAT32_BYTES * first.count * first.trained.parameter_count
        return Cost(
            passes=first.count * first.estimator.draws.count,
            products=vectors * rotation,
            memory=gradient + basis + 2 * max(sides) + sum(sides),
            disk=sum(sides),
        )

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[QueryVectors]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        per_example = engine(first.trained, None, first.estimator.execution, get)
        gradients = per_example.capture(first.estimator.measurement, *first.inputs(get)).mean()
        return [node._carried(gradients, get) for node in nodes]

    def _carried(self, gradients: LayerGradients, get: Get) -> QueryVectors:
        # Later segments lie nearer to the query. Each but the first only lets differences of parameters decay.
        count = len(self.estimator.horizons)
        vectors = {layer: g.expand(count, *g.shape) for layer, g in gradients.items()}
        for place, segment in reversed(list(enumerate(self.segments))):
            arguments = (self.trained, segment, self.train)
            basis, kappas = get(self.estimator.basis(*arguments)), self.estimator.kappas(*arguments, get)
            assert isinstance(basis, KroneckerBasis)
            refuse_unstable(basis, kappas, self.estimator.horizons)
            basis, function = basis.to(next(iter(vectors.values())).device), decayed if place else summed
            scaled: LayerGradients = {}
            for layer, rotated in basis.rotations(vectors):
                kappa = torch.from_numpy(kappas[layer]).to(basis.values[layer])[:, None, None]
                scaled[layer] = rotated * function(basis.values[layer], kappa).to(rotated)[:, None]
            vectors = basis.restored(scaled)
        return QueryVectors({layer: tensor.cpu() for layer, tensor in vectors.items()})


def decayed(eigenvalues: Tensor, kappa: Tensor) -> Tensor:
    """exp(-κ σ)."""
    return torch.exp(-kappa * eigenvalues)


def summed(eigenvalues: Tensor, kappa: Tensor) -> Tensor:
    """F(σ) = (1 - exp(-κ σ)) / σ, and κ at σ = 0."""
    x = kappa * eigenvalues
    return torch.where(x > 0, -torch.expm1(-x) / eigenvalues, kappa)


def refuse_unstable(basis: Basis, kappas: dict[str, np.ndarray], horizons: Sequence[float]) -> None:
    """Check that no horizon amplifies rounding errors to the size of the scores, as small dampings do: F acts as damping 1/κ.

    Raises:
        FloatingPointError: a horizon is too large for a layer. The message names both.
    """
    epsilon = torch.finfo(torch.float32).eps
    for layer, eigenvalues in basis.values.items():
        low, high = float(eigenvalues.min()), float(eigenvalues.max())
        for horizon, kappa in zip(horizons, kappas[layer], strict=True):
            if low * kappa + 1 <= epsilon**2 * high * kappa:
                values = f"whose eigenvalues go from {low:.2g} to {high:.2g}"
                raise FloatingPointError(f"horizon={horizon:g} is too large for layer {layer}, {values}: lower it")


@dataclass(frozen=True)
class SourceTrainingBlock(TrainingBlock, SharingNode[BlockProducts]):
    """The products of the queries ``query_rows`` with a block of training images at checkpoint ``step``: ``[horizons, Q, n]``."""

    NAME = "SourceTrainingBlock"
    VERSION = 1
    TITLE = "products with the training images at each checkpoint"

    estimator: SourceSettings
    trained: Recorded
    segments: tuple[Segment, ...]
    step: int
    query_rows: tuple[int, int]

    def parents(self) -> list[Node]:
        # As those of the query blocks, which then come first and share their gradients.
        return [*super().parents(), *self.estimator.curvatures(self.trained, self.segments, self.train)]

    def together(self) -> Hashable:
        estimator = self.estimator
        return key(
            self.trained, self.train, self.rows, self.step, estimator.draws.side("train"), estimator.flips, self.query_rows[0]
        )

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, blocks = nodes[0], [block for node in nodes for block in node.query_blocks()]
        draws, limit, sizes = first.estimator.draws.side("train").count, cls._limit(nodes), [b.cost().disk for b in blocks]
        return Cost(
            passes=first.count * draws * len(batches_within(blocks, limit)),
            products=first.count * sum(sizes) / FLOAT32_BYTES,
            memory=min(limit, sum(sizes)) + first._gradient_bytes,
            at_once=first._examples_at_once * draws,
        )

    @property
    def _gradient_bytes(self) -> float:
        return 2 * FLOAT32_BYTES * self._examples_at_once * self.trained.parameter_count

    @classmethod
    def _limit(cls, nodes: Sequence[Self]) -> float:
        """The bytes of the device that the queries of all nodes may take."""
        return nodes[0].estimator.execution.resident_bytes(nodes[0]._gradient_bytes)

    def query_blocks(self) -> list[SourceQueryBlock]:
        estimator = replace(self.estimator, draws=self.estimator.draws.side("query"))
        subject = estimator.measurement.subject(self.queries)
        return [
            SourceQueryBlock(estimator, self.trained, subject, rows, self.train, self.segments)
            for rows in ranges(*self.query_rows, estimator.execution.query_shard)
        ]

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[BlockProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, estimator = nodes[0], nodes[0].estimator
        device, images, objective = estimator.execution.torch_device(), get(first.train), first.trained.objective
        per_example = engine(first.trained, first.step, estimator.execution, get)
        blocks = [(place, block) for place, node in enumerate(nodes) for block in node.query_blocks()]
        products: list[list[Tensor]] = [[] for _ in blocks]
        scheme = estimator.draws.side("train").at_checkpoint(first.step)
        for batch in batches_within([block for _, block in blocks], cls._limit(nodes)):
            sides = resident(per_example, [blocks[at][1] for at in batch], get)
            for start, stop in ranges(*first.rows, first._examples_at_once):
                inputs = training_inputs(images, slice(start, stop), scheme, objective, estimator.flips, device)
                gradients = per_example.capture(objective, *inputs).mean()
                for at, side in zip(batch, sides, strict=True):
                    products[at].append(dot(side.layers, {layer: gradients[layer] for layer in side.layers}))
                del gradients  # before those of the next images are made
        return joined(len(nodes), [place for place, _ in blocks], products)


@dataclass(frozen=True)
class SourceBatch(QueryBatch):
    """The products of a batch of queries with all training images at checkpoint ``step``: ``[horizons, Q, N]``."""

    NAME = "SourceBatch"
    VERSION = 1
    TITLE = "products at each checkpoint, joined"

    estimator: SourceSettings
    trained: Recorded
    segments: tuple[Segment, ...]
    step: int

    def cost(self) -> Cost:
        size = FLOAT32_BYTES * len(self.estimator.horizons) * (self.rows[1] - self.rows[0]) * self.train.count
        return Cost(memory=2 * size, disk=size)

    def parts(self, get: Get) -> list[Node]:
        later = [replace(self, segments=self.segments[place:]) for place in range(len(self.segments))]
        blocks = [batch.training_block((0, 1)).query_blocks() for batch in later]
        return [*(block for of_rows in zip(*blocks, strict=True) for block in of_rows), *super().parts(get)]

    def training_block(self, rows: tuple[int, int]) -> SourceTrainingBlock:
        place = (self.trained, self.train, self.queries, rows)
        return SourceTrainingBlock(self.estimator, *place, self.segments, self.step, self.rows)
