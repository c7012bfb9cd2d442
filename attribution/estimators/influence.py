"""Influence functions with an eigendecomposed curvature (Mlodozeniec et al. 2024, K-FAC influence for diffusion models).

``τ[q, z] = ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z)`` at the trained model. H is block diagonal over layers, and its eigenbasis is known. The
gradients of each layer are rotated into it once, g̃ = Q_Bᵀ g Q_A, and

    τ[q, z] = Σ_layers Σ_{o,i} q̃_{o,i} z̃_{o,i} / (Λ_{o,i} + λ)        (exact damping; one eigendecomposition serves every λ)

Each side is a mean over its own number of draws. A list of numbers of draws (``draws.n=[16,64]``) takes prefixes of the same draws.
All dampings, the requested ones and those of ``GRID``, share everything but the last product.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch

from attribution.checks import FieldError
from attribution.curvature import Basis
from attribution.curvature.factors import with_factors
from attribution.curvature.kfac import KroneckerCurvature
from attribution.estimators.balance import Balance, TimestepNorms, check_balance
from attribution.estimators.base import as_tuple, check_dampings
from attribution.estimators.draw_means import Mean, prefix_means
from attribution.estimators.held_queries import HeldQueries, QueryCoefficients, multiply, refuse_unstable, unstable_layer
from attribution.estimators.layer_weights import with_layers
from attribution.estimators.layers import AllLayers, Layers
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import (
    BlockProducts,
    QueryBatch,
    QueryBlock,
    ShardedEstimator,
    ShardedScores,
    TrainingBlock,
)
from attribution.execution import FLOAT32_BYTES, ranges
from attribution.gradients.compression import Compression, Uncompressed
from attribution.gradients.network_cache import engine, gradient_shapes
from attribution.gradients.per_example import LayerGradients
from attribution.gradients.resident import batches_within, resident
from attribution.gradients.training_inputs import training_inputs
from attribution.images import ImageSet, bins
from attribution.images.draws import Side
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, SharingNode, added, key

SHARED = (
    "attribution.gradients.training_inputs",
    "attribution.curvature.factors",
    "attribution.estimators.balance",
    "attribution.estimators.draw_means",
    "attribution.estimators.held_queries",
    "attribution.estimators.layer_weights",
    "attribution.estimators.sharded",
    "attribution.gradients.network_cache",
    "attribution.gradients.resident",
    "attribution.images.bins",
)

GRID = tuple(10.0**e for e in range(-12, 0))
"""Dampings that every score artifact holds. A sweep over these costs one pass."""


class Curvature(Protocol):
    """Anything that has an eigenbasis: ``KFAC``, ``EKFAC``, ``ExactGGN``."""

    def basis(self, trained: Trained, train: ImageSet, flips: bool = False) -> Node[Basis]: ...


@dataclass(frozen=True, kw_only=True)
class KFACInfluence(ShardedEstimator):
    """Influence with the curvature that ``curvature`` defines, such as K-FAC or EK-FAC.

    ``damping``: λ, added to the curvature of the mean loss; one value or a list. ``draws``: the draws of each side; the two sides
    have independent draws. ``balance``: how single draws are weighted. ``flips``: mirror training images at random, as training did
    (queries are never mirrored). ``compression``: how the queries' coefficients are stored, and held during the passes over the
    training set; see ``Execution.scratch`` and ``Execution.memory``. ``layers``: the layers that scores are sums over, or learned
    weights of groups of them; needs a curvature that is block diagonal over layers.
    """

    NAME = "KFACInfluence"
    VERSION = 1
    DRAW_LISTS = True
    DRAW_BINS = True
    REPLICATED = ("query", "train")

    curvature: Curvature
    damping: float | Sequence[float] = 1e-8
    balance: Balance | None = None
    flips: bool = False
    compression: Compression = field(default_factory=Uncompressed)
    layers: Layers = added(default=AllLayers())

    def __post_init__(self):
        check_dampings(self)
        check_balance(self)

    @property
    def dampings(self) -> tuple[float, ...]:
        """The dampings as a tuple."""
        return as_tuple(self.damping)

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        gradient_shapes(trained)  # raises if a layer has no per-example gradients
        self.draws.check(trained.process.T)
        # Scores are stored at the whole grid, so their identity does not depend on which of its dampings were requested.
        stored = replace(self, damping=tuple(sorted({*GRID, *self.dampings})))
        if not isinstance(self.layers, AllLayers) and not isinstance(self.curvature, KroneckerCurvature):
            raise FieldError(self, "layers", "all layers are in one block of this curvature: choose K-FAC or EK-FAC")
        return with_layers(self, InfluenceScores(stored, train, queries, trained), with_factors(trained))

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return {"damping": self.dampings, "draws": self.draws.prefixes}

    def basis(self, trained: Trained, train: ImageSet) -> Node[Basis]:
        """The eigenbasis of the curvature."""
        return self.curvature.basis(trained, train, self.flips)

    def norms(self, trained: Trained, train: ImageSet) -> TimestepNorms:
        """The mean gradient norms that balance timesteps."""
        return TimestepNorms(trained, train, self.draws.seed, execution=self.execution)

    def balance_of(self, side: Side) -> Balance | None:
        """How the gradients of ``side`` ("query" or "train") are balanced."""
        return None if self.balance is None else self.balance.on(side)

    def mean_of(self, side: Side, trained: Trained, train: ImageSet, get: Get) -> Mean:
        """The mean over draws on ``side``."""
        balance = self.balance_of(side)
        if balance is None:
            return lambda captured, draws: captured.mean()
        norms, measure = self.norms(trained, train), self.measurement if side == "query" else trained.objective
        return lambda captured, draws: captured.mean(balance.weights(measure.timesteps(draws), norms, get))

    def gradient_bytes(self, side: Side, trained: Trained) -> float:
        """The size of all prefixes and bins of the gradient of one image on ``side``, uncompressed."""
        return FLOAT32_BYTES * len(self.draws.side(side).prefixes) * self.draws.bins * trained.parameter_count

    def rotation_products(self, side: Side, trained: Trained) -> float:
        """The multiply-adds of the rotation of one image's gradients on ``side`` into a Kronecker-factored basis."""
        draws, shapes = self.draws.side(side), gradient_shapes(trained).values()
        return len(draws.prefixes) * draws.bins * sum(rows * columns * (rows + columns) for rows, columns in shapes)

    @property
    def score_bytes(self) -> int:
        """The size of the scores of one pair, at all dampings, numbers of draws and pairs of bins with their sums."""
        bin_pairs = (self.draws.bins + (self.draws.bins > 1)) ** 2
        return FLOAT32_BYTES * len(self.dampings) * len(self.draws.pairs) * bin_pairs

    def query_bytes(self, trained: Trained) -> float:
        """The size of the coefficients of one query."""
        size = sum(map(self.compression.size, self.layers.part(gradient_shapes(trained)).values()))
        return len(self.draws.side("query").prefixes) * self.draws.bins * size


@dataclass(frozen=True)
class InfluenceQueryBlock(QueryBlock[QueryCoefficients], SharingNode[QueryCoefficients]):
    """The coefficients of a block of queries in the basis. Estimators with other curvatures or compressions share the gradients."""

    NAME = "InfluenceQueryBlock"
    VERSION = 1
    TITLE = "gradients of the queries"
    ARTIFACT = QueryCoefficients

    estimator: KFACInfluence  # without dampings, with the draws of queries only
    train: ImageSet

    def together(self) -> Hashable:
        return key(self.trained, self.train, self.queries, self.rows, self.estimator.measurement, self.estimator.draws)

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, means = nodes[0], len({key(node.estimator.balance_of("query")) for node in nodes})
        gradients = first.count * first.estimator.gradient_bytes("query", first.trained)
        basis = max(node._basis.cost().disk for node in nodes)
        disk = sum(node.count * node.estimator.query_bytes(node.trained) for node in nodes)
        return Cost(
            passes=first.count * first.estimator.draws.count,
            products=sum(node.count * node.estimator.rotation_products("query", node.trained) for node in nodes),
            memory=basis + (1 + means) * gradients + disk,  # a pass has as many gradients as the sums over passes
            disk=disk,
        )

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[QueryCoefficients]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, estimator = nodes[0], nodes[0].estimator
        x0, draws, condition = first.inputs(get)
        per_example = engine(first.trained, None, estimator.execution, get)
        means, position = _means(nodes, "query", get)
        gradients = prefix_means(per_example, estimator.measurement, x0, draws, condition, estimator.draws, means)
        return [node._coefficients(gradients[p], get, x0.device) for node, p in zip(nodes, position, strict=True)]

    @property
    def _basis(self) -> Node[Basis]:
        return self.estimator.basis(self.trained, self.train)

    def _coefficients(self, means: Sequence[LayerGradients], get: Get, device: torch.device) -> QueryCoefficients:
        basis = get(self._basis).to(device)
        return QueryCoefficients.of([self.estimator.layers.part(mean) for mean in means], basis, self.estimator.compression)


@dataclass(frozen=True)
class InfluenceTrainingBlock(TrainingBlock, SharingNode[BlockProducts]):
    """τ of the queries ``query_rows`` and a block of training examples: ``[D, P, query bins, training bins, Q, n]``.

    D is the number of dampings, P that of numbers of draws.
    """

    NAME = "InfluenceTrainingBlock"
    VERSION = 2
    TITLE = "influence of the training images"

    estimator: KFACInfluence
    query_rows: tuple[int, int]

    def together(self) -> Hashable:
        estimator = self.estimator
        return key(self.trained, self.train, self.rows, estimator.draws.side("train"), estimator.flips, self.query_rows[0])

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, blocks, working = nodes[0], [block for node in nodes for block in node.query_blocks()], cls._working_bytes(nodes)
        limit = first.estimator.execution.resident_bytes(working)
        held = min(limit, sum(block.cost().disk for block in blocks))
        passes = len(batches_within(blocks, limit)) * first.count * first.estimator.draws.side("train").count
        rotated = len({(node.basis.fingerprint, key(node.estimator.balance_of("train"))) for node in nodes})
        products = rotated * first.count * first.estimator.rotation_products("train", first.trained)
        shapes = gradient_shapes(first.trained)
        products += sum(node._score_bytes / FLOAT32_BYTES * node.estimator.layers.size(shapes) for node in nodes)
        at_once = first._examples_at_once * first.estimator.draws.side("train").count
        return Cost(passes=passes, products=products, memory=held + working, at_once=at_once)

    def query_blocks(self) -> list[InfluenceQueryBlock]:
        # Neither dampings nor the draws of training images enter the coefficients.
        estimator = replace(self.estimator, damping=(), draws=self.estimator.draws.side("query"))
        subject = estimator.measurement.subject(self.queries)
        return [
            InfluenceQueryBlock(estimator, self.trained, subject, rows, self.train)
            for rows in ranges(*self.query_rows, estimator.execution.query_shard)
        ]

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[BlockProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, estimator = nodes[0], nodes[0].estimator
        device, images, objective = estimator.execution.torch_device(), get(first.train), first.trained.objective
        for node in nodes:
            refuse_unstable(get(node.basis), set(node.estimator.dampings) - set(GRID))
        per_example = engine(first.trained, None, estimator.execution, get)
        scheme = estimator.draws.side("train")
        means, position = _means(nodes, "train", get)
        bases = {node.basis.fingerprint: get(node.basis).to(device) for node in nodes}
        blocks = [(node, place, block) for node, place in zip(nodes, position, strict=True) for block in node.query_blocks()]
        products: list[np.ndarray] = []
        limit = estimator.execution.resident_bytes(cls._working_bytes(nodes))
        for batch in batches_within([block for *_, block in blocks], limit):
            sides = resident(per_example, [blocks[at][2] for at in batch], get)
            held = [blocks[at][0].held(side, bases) for at, side in zip(batch, sides, strict=True)]
            for start, stop in ranges(*first.rows, first._examples_at_once):
                inputs = training_inputs(images, slice(start, stop), scheme, objective, estimator.flips, device)
                gradients = prefix_means(per_example, objective, *inputs, scheme, means)
                for prefix, number in enumerate(scheme.prefixes):
                    sharing: dict[tuple[str, int], list[tuple[HeldQueries, list[int]]]] = {}
                    for at, queries in zip(batch, held, strict=True):
                        node, place, _ = blocks[at]
                        pairs = [pair for pair, (_, train) in enumerate(node.estimator.draws.pairs) if train == number]
                        sharing.setdefault((node.basis.fingerprint, place), []).append((queries, pairs))
                    for (_, place), of_mean in sharing.items():
                        multiply(of_mean, gradients[place][prefix])
                del gradients  # before those of the next images are made
            products += [queries.products() for queries in held]
        of_nodes: dict[str, list[np.ndarray]] = {node.fingerprint: [] for node in nodes}
        for (node, *_), values in zip(blocks, products, strict=True):
            of_nodes[node.fingerprint].append(values)
        return [BlockProducts(np.concatenate(values, axis=-2)) for values in of_nodes.values()]

    def held(self, side: QueryCoefficients, bases: Mapping[str, Basis]) -> HeldQueries:
        """A block of queries, ready to be multiplied; ``bases`` by fingerprint."""
        basis = bases[self.basis.fingerprint]
        coefficients = {layer: side.at(layer) for layer in self.estimator.layers.part(basis.values)}
        return HeldQueries(basis, coefficients, self.estimator.dampings, self.estimator.compression)

    @property
    def basis(self) -> Node[Basis]:
        """The eigenbasis of the curvature."""
        return self.estimator.basis(self.trained, self.train)

    @classmethod
    def _working_bytes(cls, nodes: Sequence[Self]) -> float:
        """The bytes beside queries and activations: bases, gradients summed over passes, those of one pass, and products."""
        first, means = nodes[0], len({key(node.estimator.balance_of("train")) for node in nodes})
        at_once, draws = first._examples_at_once, first.estimator.draws.side("train")
        in_pass = min(at_once, max(1, first.estimator.execution.batch_size // draws.count))
        size = first.estimator.gradient_bytes("train", first.trained)
        gradients = means * at_once * size + in_pass * FLOAT32_BYTES * first.trained.parameter_count
        bases = {node.basis.fingerprint: node.basis for node in nodes}.values()
        return sum(basis.cost().disk for basis in bases) + gradients + 2 * sum(node._score_bytes for node in nodes)

    @property
    def _score_bytes(self) -> int:
        """The bytes of the products."""
        return self.count * (self.query_rows[1] - self.query_rows[0]) * self.estimator.score_bytes

    @property
    def _examples_at_once(self) -> int:
        """The number of training examples whose gradients are held at a time."""
        draws = self.estimator.draws.side("train")
        at_once = self.estimator.execution.examples_at_once(len(draws.prefixes) * draws.bins * self.trained.parameter_count)
        return min(self.count, at_once)


def _means(
    nodes: Sequence[InfluenceQueryBlock] | Sequence[InfluenceTrainingBlock], side: Side, get: Get
) -> tuple[list[Mean], list[int]]:
    """The different means over draws of nodes that share their passes, and the position of each node's mean among them."""
    names = [key(node.estimator.balance_of(side)) for node in nodes]
    distinct = dict(zip(names, nodes, strict=True))
    means = [node.estimator.mean_of(side, node.trained, node.train, get) for node in distinct.values()]
    return means, [list(distinct).index(name) for name in names]


@dataclass(frozen=True)
class InfluenceBatch(QueryBatch):
    """τ of a batch of queries and all training examples: ``[D, P, query bins, training bins, Q, N]``."""

    NAME = "InfluenceBatch"
    VERSION = 1
    TITLE = "influence, joined"

    estimator: KFACInfluence

    def cost(self) -> Cost:
        size = (self.rows[1] - self.rows[0]) * self.train.count * self.estimator.score_bytes
        return Cost(memory=2 * size, disk=size)

    def training_block(self, rows: tuple[int, int]) -> InfluenceTrainingBlock:
        return InfluenceTrainingBlock(self.estimator, self.trained, self.train, self.queries, rows, self.rows)


@dataclass(frozen=True)
class InfluenceScores(ShardedScores):
    """The scores under all stored dampings, except those that are too small for the curvature."""

    NAME = "InfluenceScores"
    VERSION = 2
    TITLE = "influence scores"

    estimator: KFACInfluence
    trained: Trained

    def parts(self, get: Get) -> list[Node]:
        return list(self.batches)

    def parents(self) -> list[Node]:
        estimator = self.estimator
        balanced = estimator.balance is not None and estimator.balance.by == "timestep"
        norms = [estimator.norms(self.trained, self.train)] if balanced else []
        return [*super().parents(), estimator.basis(self.trained, self.train), *norms]

    def cost(self) -> Cost:
        draws, batches = self.estimator.draws, len(self.batches)
        size = self.pairs * self.estimator.score_bytes
        passes = self.queries.count * draws.side("query").count + batches * self.train.count * draws.side("train").count
        return Cost(passes=passes, memory=2 * size, disk=size)

    def at_draws(self, query: int, train: int) -> "InfluenceScores":
        """The scores with one of the pairs of numbers of draws alone."""
        return replace(self, estimator=replace(self.estimator, draws=self.estimator.draws.at(query, train)))

    def compute(self, get: Get) -> Scores:
        draws, basis = self.estimator.draws, get(self.estimator.basis(self.trained, self.train))
        stable = [unstable_layer(basis, damping) is None for damping in self.estimator.dampings]
        values = np.concatenate([batch.values[stable] for batch in get.many(self.batches)], axis=-2)
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
    def batches(self) -> list[InfluenceBatch]:
        """The products of all queries with all training examples."""
        estimator = self.estimator
        size = replace(estimator, layers=AllLayers()).query_bytes(self.trained)  # parts of the layers lie on disk together
        return [
            InfluenceBatch(estimator, self.trained, self.train, self.queries, rows)
            for rows in estimator.execution.query_batches(self.queries.count, size)
        ]
