"""Attribution by unlearning (AbU; Wang et al., NeurIPS 2024, "Data Attribution for Text-to-Image Models by Unlearning").

A query is unlearned: J steps that raise its cost, preconditioned by the curvature of the training loss so that they disturb the
rest as little as possible. The training images whose loss rises most were the most influential for it:

    θ_{j+1} = θ_j + s/(N J) (H + λI)⁻¹ ∇m(q; θ_j),   j = 0..J-1,      τ[q, z] = N/s (ℓ(z; θ_J) - ℓ(z; θ_0))

s = ``amount`` is the weight with which q is removed, in training images. With s → 0 this is influence ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z),
scale included, whatever J; larger s see the curvature of the losses along the step. Losses are float32, and the rounding of their
differences bounds s from below: on a tiny U-Net with damping 1e-3 the relative distance to influence is 0.83, 0.067, 0.0014, 0.11
at s = 1, 1e-2, 1e-4, 1e-6. Losses before and after are taken at the same draws. H is K-FAC or EK-FAC, over the layers that these
cover; the paper takes the diagonal of the Fisher matrix and one step.

Every query needs a forward pass over the training set at its own parameters, which no other query shares.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError, positive, whole
from attribution.curvature.basis import Basis, KroneckerBasis
from attribution.curvature.kfac import KroneckerCurvature
from attribution.diffusion import denoiser
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import (
    BlockProducts,
    QueryBatch,
    QueryBlock,
    QueryVectors,
    ShardedEstimator,
    ShardedScores,
    TrainingBlock,
    with_all_queries,
)
from attribution.execution import FLOAT32_BYTES, ranges
from attribution.gradients.forward_passes import at_draws, forward_cost
from attribution.gradients.network_cache import engine, gradient_shapes
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.images import ImageSet
from attribution.measurements import Inputs
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, key

SHARED = (
    "attribution.curvature.basis",
    "attribution.estimators.sharded",
    "attribution.gradients.forward_passes",
    "attribution.gradients.network_cache",
)


@dataclass(frozen=True, kw_only=True)
class Unlearning(ShardedEstimator):
    """The rise of the loss of each training image when the query is unlearned.

    ``curvature``: K-FAC or EK-FAC; ``damping``: λ, added to the curvature of the mean loss; ``steps``: J; ``amount``: s. The
    draws of the two sides are independent. ``flips``: mirror training images at random, as training did.
    """

    NAME = "Unlearning"
    VERSION = 1

    curvature: KroneckerCurvature
    damping: float = 1e-8
    amount: float = 1.0
    steps: int = 1
    flips: bool = False

    def __post_init__(self):
        positive(self, "damping")
        positive(self, "amount")
        whole(self, "steps", least=1)
        self.draws.refuse_lists("unlearning")
        if not isinstance(self.curvature, KroneckerCurvature):
            raise FieldError(self, "curvature", "steps are preconditioned by Kronecker factors: choose kfac or ekfac")

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        gradient_shapes(trained)  # raises if a layer has no per-example gradients
        self.draws.check(trained.process.T)
        return UnlearningScores(self, train, queries, trained)


@dataclass(frozen=True)
class UnlearningQueryBlock(QueryBlock[QueryVectors]):
    """θ_J - θ_0 of a block of queries: ``[Q, rows, columns]`` per layer."""

    NAME = "UnlearningQueryBlock"
    VERSION = 1
    TITLE = "unlearning of the queries"
    ARTIFACT = QueryVectors

    estimator: Unlearning
    train: ImageSet

    def parents(self) -> list[Node]:
        return [*super().parents(), self._basis]

    def together(self) -> Hashable:
        return key(self)  # alone: the parameters move

    def cost(self) -> Cost:
        size = FLOAT32_BYTES * self.count * self.trained.parameter_count
        passes = self.count * self.estimator.draws.side("query").count * self.estimator.steps
        return Cost(passes=passes, memory=3 * size, disk=size)

    @classmethod
    def compute_together(cls, nodes: Sequence["UnlearningQueryBlock"], get: Get) -> list[QueryVectors]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return [node._moves(get) for node in nodes]

    def _moves(self, get: Get) -> QueryVectors:
        estimator = self.estimator
        x0, draws, condition = self.inputs(get)
        per_example, basis = engine(self.trained, None, estimator.execution, get), get(self._basis).to(x0.device)
        assert isinstance(basis, KroneckerBasis)
        size = estimator.amount / (self.train.count * estimator.steps)
        moves: list[LayerGradients] = []
        for q in range(self.count):
            one = slice(q, q + 1)
            given = None if condition is None else condition[one]
            move: LayerGradients = {}
            for _ in range(estimator.steps):
                with moved(per_example, move):
                    gradient = per_example.capture(estimator.measurement, x0[one], draws.rows(one), given).mean()
                rotated = {layer: g / (basis.values[layer] + estimator.damping).to(g) for layer, g in basis.rotations(gradient)}
                for layer, step in basis.restored(rotated).items():
                    move[layer] = move[layer] + size * step[0] if layer in move else size * step[0]
            moves.append(move)
        return QueryVectors({layer: torch.stack([move[layer] for move in moves]).cpu() for layer in moves[0]})

    @property
    def _basis(self) -> Node[Basis]:
        return self.estimator.curvature.basis(self.trained, self.train, self.estimator.flips)


@dataclass(frozen=True)
class UnlearningTrainingBlock(TrainingBlock):
    """τ of the queries ``query_rows`` and a block of training examples, ``[Q, n]``. One query's parameters are loaded at a time."""

    NAME = "UnlearningTrainingBlock"
    VERSION = 1
    TITLE = "rises of the training images' loss"

    estimator: Unlearning
    query_rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(self)

    def cost(self) -> Cost:
        inputs, execution = self.count * self.estimator.draws.side("train").count, self.estimator.execution
        queries = self.query_rows[1] - self.query_rows[0]
        held = 2 * min(queries, execution.query_shard) * self.trained.parameter_count
        return replace(forward_cost(inputs, execution, queries + 1), memory=FLOAT32_BYTES * held)

    def query_blocks(self) -> list[UnlearningQueryBlock]:
        subject = self.estimator.measurement.subject(self.queries)
        return [
            UnlearningQueryBlock(self.estimator, self.trained, subject, rows, self.train)
            for rows in ranges(*self.query_rows, self.estimator.execution.query_shard)
        ]

    @classmethod
    def compute_together(cls, nodes: Sequence["UnlearningTrainingBlock"], get: Get) -> list[BlockProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return [node._rises(get) for node in nodes]

    def _rises(self, get: Get) -> BlockProducts:
        per_example = engine(self.trained, None, self.estimator.execution, get)
        before, rises = self._losses(per_example, get), []
        for block in self.query_blocks():
            vectors = get(block).to(per_example.parameters[0].device).layers
            for q in range(block.count):
                with moved(per_example, {layer: tensor[q] for layer, tensor in vectors.items()}):
                    rises.append(self._losses(per_example, get) - before)
        values = np.stack(rises) * self.train.count / self.estimator.amount
        if not np.isfinite(values).all():
            raise FloatingPointError("losses after unlearning are not finite: lower amount, or raise damping")
        return BlockProducts(values.astype(np.float32))

    def _losses(self, per_example: PerExampleGradients, get: Get) -> np.ndarray:
        """The loss of each training image, a mean over its draws, float64 ``[n]``."""
        estimator, objective = self.estimator, self.trained.objective

        def value(network: torch.nn.Module, inputs: Inputs) -> Tensor:
            return objective(denoiser(network), *inputs)

        images, scheme = get(self.train), estimator.draws.side("train")
        return at_draws(value, per_example, objective, images, self.rows, scheme, "attribution", estimator.flips).mean(1).numpy()


@contextmanager
def moved(per_example: PerExampleGradients, move: Mapping[str, Tensor]) -> Iterator[None]:
    """Add ``move``, layer → block ``[rows, columns]``, to the parameters, and put the old values back in the end."""
    parts = [
        (layer.parameters[name], part)
        for of_layer, block in move.items()
        for layer in [per_example.layers[of_layer]]
        for name, part in layer.split(block)
    ]
    before = [parameter.detach().clone() for parameter, _ in parts]
    try:
        with torch.no_grad():
            for parameter, part in parts:
                parameter.add_(part.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), old in zip(parts, before, strict=True):
                parameter.copy_(old)


@dataclass(frozen=True)
class UnlearningBatch(QueryBatch):
    """τ of a batch of queries and all training examples, ``[Q, N]``."""

    NAME = "UnlearningBatch"
    VERSION = 1
    TITLE = "unlearning scores, joined"

    estimator: Unlearning

    def cost(self) -> Cost:
        size = FLOAT32_BYTES * (self.rows[1] - self.rows[0]) * self.train.count
        return Cost(memory=2 * size, disk=size)

    def training_block(self, rows: tuple[int, int]) -> UnlearningTrainingBlock:
        return UnlearningTrainingBlock(self.estimator, self.trained, self.train, self.queries, rows, self.rows)


@dataclass(frozen=True)
class UnlearningScores(ShardedScores):
    """The scores ``[Q, N]``."""

    NAME = "UnlearningScores"
    VERSION = 1
    TITLE = "unlearning scores"

    estimator: Unlearning
    trained: Trained

    def parts(self, get: Get) -> list[Node]:
        return list(self.batches)

    def cost(self) -> Cost:
        return Cost(memory=2 * FLOAT32_BYTES * self.pairs, disk=FLOAT32_BYTES * self.pairs)

    def compute(self, get: Get) -> Scores:
        return self.assembled(with_all_queries(get.many(self.batches)), get)

    @property
    def batches(self) -> list[UnlearningBatch]:
        """The scores of all queries, in batches whose moved parameters lie on disk together."""
        size = FLOAT32_BYTES * self.trained.parameter_count
        return [
            UnlearningBatch(self.estimator, self.trained, self.train, self.queries, rows)
            for rows in self.estimator.execution.query_batches(self.queries.count, size)
        ]
