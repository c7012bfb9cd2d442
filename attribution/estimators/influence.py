"""Influence functions with an eigendecomposed curvature (Mlodozeniec et al. 2024, K-FAC influence for diffusion models).

``τ[q, z] = ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z)`` at the trained model. H is block diagonal over layers, and its eigenbasis is known. The
gradients of each layer are rotated into it once, g̃ = Q_Bᵀ g Q_A, and

    τ[q, z] = Σ_layers Σ_{o,i} q̃_{o,i} z̃_{o,i} / (Λ_{o,i} + λ)        (exact damping; one eigendecomposition serves every λ)

Each side is a mean over its own number of draws. A list of numbers of draws (``draws.n=[16,64]``) takes prefixes of the same draws.
All dampings, the requested ones and those of ``GRID``, share everything but the last product.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch

from attribution.checks import whole
from attribution.curvature import Basis
from attribution.estimators.balance import Balance, TimestepNorms
from attribution.estimators.base import as_tuple, check_dampings
from attribution.estimators.draw_means import Mean, prefix_means
from attribution.estimators.held_queries import HeldQueries, QueryCoefficients, refuse_unstable, unstable_layer
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import (
    BlockProducts,
    QueryBlock,
    ShardedEstimator,
    ShardedScores,
    TrainingBlock,
    with_query_blocks,
)
from attribution.execution import FLOAT32_BYTES, ranges
from attribution.gradients.compression import Compression, Uncompressed
from attribution.gradients.layer_check import find_layers
from attribution.gradients.network_cache import engine
from attribution.gradients.per_example import LayerGradients
from attribution.images import ImageSet, bins
from attribution.images.draws import Side
from attribution.nodes import Cost, Get, Node, execution, key
from attribution.training import Recorded

SHARED = (
    "attribution.estimators.draw_means",
    "attribution.estimators.held_queries",
    "attribution.estimators.sharded",
    "attribution.gradients.network_cache",
    "attribution.images.bins",
)

GRID = tuple(10.0**e for e in range(-12, 0))
"""Dampings that every score artifact holds. A sweep over these costs one pass."""


class Curvature(Protocol):
    """Anything that has an eigenbasis: ``KFAC``, ``EKFAC``, ``ExactGGN``."""

    def basis(self, trained: Recorded, train: ImageSet, flips: bool = False) -> Node[Basis]: ...


@dataclass(frozen=True, kw_only=True)
class KFACInfluence(ShardedEstimator):
    """Influence with the curvature that ``curvature`` defines, such as K-FAC or EK-FAC.

    ``damping``: λ, added to the curvature of the mean loss; one value or a list. ``draws``: the draws of each side; the two sides
    have independent draws. ``balance``: how single draws are weighted. ``flips``: mirror training images at random, as training did
    (queries are never mirrored). ``compression``: how the queries' coefficients are stored. ``query_batch``: the largest number of
    queries held during a pass over the training set; more queries take another pass.
    """

    NAME = "KFACInfluence"
    VERSION = 1
    DRAW_LISTS = True
    DRAW_BINS = True

    curvature: Curvature
    damping: float | Sequence[float] = 1e-8
    balance: Balance | None = None
    flips: bool = False
    compression: Compression = field(default_factory=Uncompressed)
    query_batch: int = execution(default=256)

    def __post_init__(self):
        check_dampings(self)
        whole(self, "query_batch", least=1)

    @property
    def dampings(self) -> tuple[float, ...]:
        """The dampings as a tuple."""
        return as_tuple(self.damping)

    def scores(self, trained: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        find_layers(trained.outline)  # raises if a layer has no per-example gradients
        self.draws.check(trained.process.T)
        # Scores are stored at the whole grid, so their identity does not depend on which of its dampings were requested.
        return InfluenceScores(replace(self, damping=tuple(sorted({*GRID, *self.dampings}))), train, queries, trained)

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return {"damping": self.dampings, "draws": self.draws.prefixes}

    def basis(self, trained: Recorded, train: ImageSet) -> Node[Basis]:
        """The eigenbasis of the curvature."""
        return self.curvature.basis(trained, train, self.flips)

    def norms(self, trained: Recorded, train: ImageSet) -> TimestepNorms:
        """The mean gradient norms that balance timesteps."""
        return TimestepNorms(trained, train, self.draws.seed, execution=self.execution)

    def balance_of(self, side: Side) -> Balance | None:
        """How the gradients of ``side`` ("query" or "train") are balanced."""
        return self.balance if self.balance is not None and self.balance.side == side else None

    def mean_of(self, side: Side, trained: Recorded, train: ImageSet, get: Get) -> Mean:
        """The mean over draws on ``side``."""
        balance = self.balance_of(side)
        if balance is None:
            return lambda captured, draws: captured.mean()
        norms, measure = self.norms(trained, train), self.measurement if side == "query" else trained.objective
        return lambda captured, draws: captured.mean(balance.weights(measure.timesteps(draws), norms, get))

    def gradient_bytes(self, side: Side, trained: Recorded) -> float:
        """The size of all prefixes and bins of the gradient of one image on ``side``, uncompressed."""
        return FLOAT32_BYTES * len(self.draws.side(side).prefixes) * self.draws.bins * trained.parameter_count


@dataclass(frozen=True)
class InfluenceQueryBlock(QueryBlock[QueryCoefficients]):
    """The coefficients of a block of queries in the basis. Estimators with other curvatures or compressions share the gradients."""

    NAME = "InfluenceQueryBlock"
    VERSION = 1
    TITLE = "gradients of the queries"
    ARTIFACT = QueryCoefficients

    estimator: KFACInfluence  # without dampings, with the draws of queries only
    train: ImageSet

    def together(self) -> Hashable:
        return key(self.trained, self.train, self.queries, self.rows, self.estimator.measurement, self.estimator.draws)

    def cost(self) -> Cost:
        size = self.count * self.estimator.gradient_bytes("query", self.trained)
        return Cost(passes=self.count * self.estimator.draws.count, memory=3 * size, disk=size)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[QueryCoefficients]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, estimator = nodes[0], nodes[0].estimator
        x0, draws, condition = first.inputs(get)
        per_example = engine(first.trained, None, estimator.execution, get)
        means, position = _means(nodes, "query", get)
        gradients = prefix_means(per_example, estimator.measurement, x0, draws, condition, estimator.draws, means)
        return [node._coefficients(gradients[p], get, x0.device) for node, p in zip(nodes, position, strict=True)]

    def _coefficients(self, means: Sequence[LayerGradients], get: Get, device: torch.device) -> QueryCoefficients:
        basis = get(self.estimator.basis(self.trained, self.train)).to(device)
        return QueryCoefficients.of(means, basis, self.estimator.compression)


@dataclass(frozen=True)
class InfluenceTrainingBlock(TrainingBlock):
    """τ of a block of training examples: ``[D, P, query bins, training bins, Q, n]`` for D dampings and P numbers of draws."""

    NAME = "InfluenceTrainingBlock"
    VERSION = 1
    TITLE = "influence of the training images"

    estimator: KFACInfluence

    def together(self) -> Hashable:
        estimator = self.estimator
        return key(self.trained, self.train, self.rows, estimator.draws.side("train"), estimator.flips, estimator.query_batch)

    def cost(self) -> Cost:
        estimator, batches = self.estimator, -(-self.queries.count // self.estimator.query_batch)
        held = min(self.queries.count, estimator.query_batch) * estimator.gradient_bytes("query", self.trained)
        gradients = 3 * self._examples_at_once * estimator.gradient_bytes("train", self.trained)
        axes = len(estimator.dampings) * len(estimator.draws.pairs) * estimator.draws.bins**2
        products = FLOAT32_BYTES * axes * self.queries.count * self.count
        return Cost(
            passes=batches * self.count * estimator.draws.side("train").count,
            memory=held + gradients + 2 * products,
        )

    def query_blocks(self) -> list[InfluenceQueryBlock]:
        # Neither dampings nor the draws of training images enter the coefficients.
        estimator = replace(self.estimator, damping=(), draws=self.estimator.draws.side("query"))
        subject = estimator.measurement.subject(self.queries)
        return [
            InfluenceQueryBlock(estimator, self.trained, subject, rows, self.train)
            for rows in ranges(0, self.queries.count, min(estimator.execution.query_shard, estimator.query_batch))
        ]

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[BlockProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, estimator = nodes[0], nodes[0].estimator
        device, images = estimator.execution.torch_device(), get(first.train)
        for node in nodes:
            refuse_unstable(get(node.basis), set(node.estimator.dampings) - set(GRID))
        per_example = engine(first.trained, None, estimator.execution, get)
        scheme = estimator.draws.side("train")
        means, position = _means(nodes, "train", get)
        products: list[list[np.ndarray]] = [[] for _ in nodes]
        for batch in _batches(nodes, estimator.query_batch):
            held = [_held(nodes[i], blocks, get, device) for i, blocks in batch]
            bases = [nodes[i].basis.fingerprint for i, _ in batch]
            for start, stop in ranges(*first.rows, first._examples_at_once):
                rows = slice(start, stop)
                draws = scheme.draw("attribution", images.ids(rows).to(device), first.trained.process.T, estimator.flips)
                x0, condition = images.x0(rows).to(device), images.conditions(rows)
                gradients = prefix_means(per_example, first.trained.objective, x0, draws, condition, scheme, means)
                for prefix, number in enumerate(scheme.prefixes):
                    rotated: dict[tuple[str, int], LayerGradients] = {}
                    for (i, _), queries, basis in zip(batch, held, bases, strict=True):
                        mean = basis, position[i]
                        if mean not in rotated:
                            rotated[mean] = queries.basis.rotate(gradients[position[i]][prefix])
                        for pair, (_, train) in enumerate(nodes[i].estimator.draws.pairs):
                            if train == number:
                                queries.add(pair, rotated[mean])
            for (i, _), queries in zip(batch, held, strict=True):
                products[i].append(queries.products())
        return [BlockProducts(np.concatenate(batches, axis=-2)) for batches in products]

    @property
    def basis(self) -> Node[Basis]:
        """The eigenbasis of the curvature."""
        return self.estimator.basis(self.trained, self.train)

    @property
    def _examples_at_once(self) -> int:
        """The number of training examples whose gradients are held at a time."""
        draws = self.estimator.draws.side("train")
        return self.estimator.execution.examples_at_once(len(draws.prefixes) * draws.bins * self.trained.parameter_count)


def _means(
    nodes: Sequence[InfluenceQueryBlock] | Sequence[InfluenceTrainingBlock], side: Side, get: Get
) -> tuple[list[Mean], list[int]]:
    """The different means over draws of nodes that share their passes, and the position of each node's mean among them."""
    names = [key(node.estimator.balance_of(side)) for node in nodes]
    distinct = dict(zip(names, nodes, strict=True))
    means = [node.estimator.mean_of(side, node.trained, node.train, get) for node in distinct.values()]
    return means, [list(distinct).index(name) for name in names]


def _batches(nodes: Sequence[InfluenceTrainingBlock], most: int) -> Iterator[list[tuple[int, list[InfluenceQueryBlock]]]]:
    """Yield the query blocks of all nodes in batches of at most ``most`` queries: pairs of a node's index and its blocks."""
    batch: dict[int, list[InfluenceQueryBlock]] = {}
    held = 0
    for i, node in enumerate(nodes):
        for block in node.query_blocks():
            if held + block.count > most:
                yield list(batch.items())
                batch, held = {}, 0
            batch.setdefault(i, []).append(block)
            held += block.count
    yield list(batch.items())


def _held(node: InfluenceTrainingBlock, queries: Sequence[InfluenceQueryBlock], get: Get, device: torch.device) -> HeldQueries:
    basis = get(node.basis).to(device)
    return HeldQueries.joined(basis, get.many(queries), node.estimator.dampings, node.estimator.compression)


@dataclass(frozen=True)
class InfluenceScores(ShardedScores):
    """The scores under all stored dampings, except those that are too small for the curvature."""

    NAME = "InfluenceScores"
    VERSION = 2
    TITLE = "influence scores"

    estimator: KFACInfluence
    trained: Recorded

    def parts(self, get: Get) -> list[Node]:
        return with_query_blocks(self.training_blocks)

    def parents(self) -> list[Node]:
        estimator = self.estimator
        balanced = estimator.balance is not None and estimator.balance.by == "timestep"
        norms = [estimator.norms(self.trained, self.train)] if balanced else []
        return [*super().parents(), estimator.basis(self.trained, self.train), *norms]

    def cost(self) -> Cost:
        estimator, batches = self.estimator, -(-self.queries.count // self.estimator.query_batch)
        draws = estimator.draws
        bin_pairs = (draws.bins + (draws.bins > 1)) ** 2
        size = FLOAT32_BYTES * len(estimator.dampings) * len(draws.pairs) * bin_pairs * self.pairs
        passes = self.queries.count * draws.side("query").count + batches * self.train.count * draws.side("train").count
        return Cost(passes=passes, memory=2 * size, disk=size)

    def at_draws(self, query: int, train: int) -> "InfluenceScores":
        """The scores with one of the pairs of numbers of draws alone."""
        return replace(self, estimator=replace(self.estimator, draws=self.estimator.draws.at(query, train)))

    def compute(self, get: Get) -> Scores:
        draws, basis = self.estimator.draws, get(self.estimator.basis(self.trained, self.train))
        stable = [unstable_layer(basis, damping) is None for damping in self.estimator.dampings]
        values = np.concatenate([block.values[stable] for block in get.many(self.training_blocks)], axis=-1)
        dampings = [damping for damping, kept in zip(self.estimator.dampings, stable, strict=True) if kept]
        axes: dict[str, Sequence[Any]] = {"damping": dampings, "draws": draws.prefixes}
        if draws.bins > 1:
            values = bins.with_sums(values, (2, 3))
            names = bins.labels(draws.bins, self.trained.process.T)
            axes |= {"query_bin": names, "train_bin": names}
        else:
            values = values[:, :, 0, 0]
        return self.assembled(values, get, axes)

    @property
    def training_blocks(self) -> list[InfluenceTrainingBlock]:
        """The products with all training examples."""
        return [
            InfluenceTrainingBlock(self.estimator, self.trained, self.train, self.queries, rows)
            for rows in ranges(0, self.train.count, self.estimator.execution.shard)
        ]
