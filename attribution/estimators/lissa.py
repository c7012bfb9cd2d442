"""Influence functions by LiSSA (Agarwal et al. 2017; Koh & Liang 2017), the baseline of ReTrac (appendix C).

    τ[q, z] = ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z),      (H + λI)⁻¹ v ≈ r_J/σ,      r_j = v + (I - (H_batch + λI)/σ) r_{j-1}

H is the curvature of the mean training loss over *all* parameters in one block. The only approximations are mini-batches and the
truncation after J steps, which acts like extra damping of about σ/J: directions with a smaller curvature have not converged.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError, number, positive, whole
from attribution.curvature.vector_products import CurvatureProduct, GaussNewton
from attribution.estimators.lissa_recursion import Recursion
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import (
    BlockProducts,
    QueryBlock,
    QueryVectors,
    ShardedEstimator,
    ShardedScores,
    TrainingBlock,
    with_query_blocks,
)
from attribution.execution import FLOAT32_BYTES, ranges
from attribution.gradients.inner_products import dot
from attribution.gradients.layer_check import find_layers
from attribution.gradients.network_cache import engine
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.gradients.training_inputs import training_inputs
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, SharingNode, execution, key

SHARED = (
    "attribution.gradients.training_inputs",
    "attribution.estimators.lissa_recursion",
    "attribution.estimators.sharded",
    "attribution.gradients.network_cache",
    "attribution.gradients.inner_products",
)


@dataclass(frozen=True, kw_only=True)
class LiSSA(ShardedEstimator):
    """Inverse-curvature products by the recursion above, for all queries at once.

    ``product``: ``Hessian``, of the training loss by double backward as in the paper, or ``GaussNewton``, which is sampled anew in
    every step, has no negative eigenvalues and costs the same for any number of queries. ``scale``: σ, at least half of the largest
    eigenvalue of H_batch + λI. ``depth``: J; ``repeats``: recursions with different batches, which are averaged; ``batch_size``:
    draws (an image at a timestep with a noise) in a batch, taken from the ``draws`` of every training image. ``draws`` also define
    the draws of each side; the two sides have independent draws. ``flips``: mirror training images at random, as training did.
    ``query_batch``: the largest number of queries of a pool that share a recursion; all queries are held as whole gradients during
    the pass over the training set.
    """

    NAME = "LiSSA"
    VERSION = 1

    product: CurvatureProduct = field(default_factory=GaussNewton)
    damping: float = 1e-3
    scale: float = 100.0
    depth: int = 400
    repeats: int = 1
    batch_size: int = 32
    flips: bool = False
    query_batch: int = execution(default=64)

    def __post_init__(self):
        for name in ("depth", "repeats", "batch_size", "query_batch"):
            whole(self, name, least=1)
        number(self, "damping", least=0)
        positive(self, "scale")
        self.draws.refuse_lists(type(self).__name__)

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        find_layers(trained.outline)  # raises if a layer has no per-example gradients
        self.draws.check(trained.process.T)
        draws = self.draws.side("train").count
        if self.batch_size > train.count * draws:
            available = f"there are only {train.count} training images × {draws} draws"
            raise FieldError(self, "batch_size", f"{available}; lower it, or take more draws")
        return LissaScores(self, train, queries, trained)

    @property
    def recursion(self) -> Recursion:
        """The recursion that multiplies with the inverse curvature."""
        shared = {setting.name: getattr(self, setting.name) for setting in fields(Recursion)}
        return Recursion(**{**shared, "draws": self.draws.side("train")})

    def preconditioner(self, trained: Trained, train: ImageSet) -> Node[Any] | None:
        """A node that the recursion needs, or None."""
        return None

    def inverse(
        self, per_example: PerExampleGradients, trained: Trained, train: ImageSet, v: LayerGradients, get: Get
    ) -> LayerGradients:
        """Return ``(H + λI)⁻¹ v`` for all vectors ``[Q, ..]`` in ``v``."""
        return self.recursion(per_example, trained, get(train), v)


@dataclass(frozen=True)
class LissaQueryBlock(QueryBlock[QueryVectors], SharingNode[QueryVectors]):
    """``(H + λI)⁻¹ ∇m(q)`` of a block of queries. Up to ``query_batch`` queries of each pool share the mini-batches."""

    NAME = "LissaQueryBlock"
    VERSION = 1
    TITLE = "inverse-curvature products of the queries"
    ARTIFACT = QueryVectors

    estimator: LiSSA
    train: ImageSet

    def together(self) -> Hashable:
        preconditioner = self.estimator.preconditioner(self.trained, self.train)
        return key(self.trained, self.train, self.estimator.recursion, preconditioner, self.rows[0] // self.estimator.query_batch)

    def parents(self) -> list[Node]:
        preconditioner = self.estimator.preconditioner(self.trained, self.train)
        return [*super().parents(), *([] if preconditioner is None else [preconditioner])]

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        estimator, queries = nodes[0].estimator, sum(node.count for node in nodes)
        passes = sum(node.count * node.estimator.draws.side("query").count for node in nodes) + estimator.recursion.passes(queries)
        gradient = FLOAT32_BYTES * nodes[0].trained.parameter_count
        held = estimator.recursion.held(queries, estimator.execution.examples_at_once(nodes[0].trained.parameter_count))
        of_queries = max(node.count * node.estimator.draws.side("query").count for node in nodes)
        at_once = max(estimator.batch_size, of_queries)
        preconditioner = estimator.preconditioner(nodes[0].trained, nodes[0].train)
        # With a basis, its eigenvalues again, and vectors and products in both coordinates.
        beside = 0.0 if preconditioner is None else 2 * preconditioner.cost().disk + 4 * queries * gradient
        return Cost(passes=passes, memory=held * gradient + beside, disk=queries * gradient, at_once=at_once)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[QueryVectors]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        per_example = engine(first.trained, None, first.estimator.execution, get)
        gradients = [node._gradients(per_example, get) for node in nodes]
        v = {layer: torch.cat([block.pop(layer) for block in gradients]) for layer in list(gradients[0])}  # frees them on the way
        products = first.estimator.inverse(per_example, first.trained, first.train, v, get)
        blocks = {layer: vectors.cpu().split([node.count for node in nodes]) for layer, vectors in products.items()}
        return [QueryVectors({layer: vectors[i] for layer, vectors in blocks.items()}) for i in range(len(nodes))]

    def _gradients(self, per_example: PerExampleGradients, get: Get) -> LayerGradients:
        """∇m(q), the mean over the query's draws."""
        return per_example.capture(self.estimator.measurement, *self.inputs(get)).mean()


@dataclass(frozen=True)
class LissaTrainingBlock(TrainingBlock, SharingNode[BlockProducts]):
    """τ of a block of training examples, ``[Q, n]``. Estimators with other settings of the recursion share the pass."""

    NAME = "LissaTrainingBlock"
    VERSION = 1
    TITLE = "LiSSA scores of the training images"

    estimator: LiSSA

    def together(self) -> Hashable:
        return key(self.trained, self.train, self.rows, self.estimator.draws.side("train"), self.estimator.flips)

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, queries = nodes[0], sum(node.queries.count for node in nodes)
        parameters = first.trained.parameter_count
        at_once = min(first.count, first.estimator.execution.examples_at_once(parameters))
        return Cost(
            passes=first.count * first.estimator.draws.side("train").count,
            products=first.count * queries * parameters,
            memory=FLOAT32_BYTES * (queries + at_once) * parameters,
            at_once=at_once * first.estimator.draws.side("train").count,
        )

    def query_blocks(self) -> list[LissaQueryBlock]:
        batch = self.estimator.query_batch
        size = math.gcd(batch, min(self.estimator.execution.query_shard, batch))  # no block lies in two batches of queries
        subject = self.estimator.measurement.subject(self.queries)
        return [
            LissaQueryBlock(self.estimator, self.trained, subject, rows, self.train) for rows in ranges(0, self.queries.count, size)
        ]

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[BlockProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, estimator = nodes[0], nodes[0].estimator
        device, images, objective = estimator.execution.torch_device(), get(first.train), first.trained.objective
        per_example = engine(first.trained, None, estimator.execution, get)
        queries, scheme = [get.many(node.query_blocks()) for node in nodes], estimator.draws.side("train")
        products: list[list[Tensor]] = [[] for _ in nodes]
        for start, stop in ranges(*first.rows, estimator.execution.examples_at_once(first.trained.parameter_count)):
            inputs = training_inputs(images, slice(start, stop), scheme, objective, estimator.flips, device)
            gradients = per_example.capture(objective, *inputs).mean()
            for blocks, vectors in zip(products, queries, strict=True):
                blocks.append(torch.cat([dot(block.layers, gradients) for block in vectors]).cpu())
            del gradients  # before those of the next images are made
        return [BlockProducts(torch.cat(blocks, 1).float().numpy()) for blocks in products]


@dataclass(frozen=True)
class LissaScores(ShardedScores):
    """The scores ``[Q, N]``."""

    NAME = "LissaScores"
    VERSION = 1
    TITLE = "LiSSA scores"

    estimator: LiSSA
    trained: Trained

    def parts(self, get: Get) -> list[Node]:
        return with_query_blocks(self.training_blocks)

    def cost(self) -> Cost:
        estimator, size = self.estimator, FLOAT32_BYTES * self.pairs
        batches = -(-self.queries.count // estimator.query_batch)
        passes = self.queries.count * estimator.draws.side("query").count
        passes += self.train.count * estimator.draws.side("train").count
        passes += batches * estimator.recursion.passes(min(self.queries.count, estimator.query_batch))
        return Cost(passes=passes, memory=2 * size, disk=size)

    def passes(self, get: Get) -> float:
        """The blocks of a batch share its recursion."""
        return self.cost().passes

    def compute(self, get: Get) -> Scores:
        return self.assembled(np.concatenate([block.values for block in get.many(self.training_blocks)], axis=-1), get)

    @property
    def training_blocks(self) -> list[LissaTrainingBlock]:
        """The products with all training examples."""
        return [
            LissaTrainingBlock(self.estimator, self.trained, self.train, self.queries, rows)
            for rows in ranges(0, self.train.count, self.estimator.execution.shard)
        ]
