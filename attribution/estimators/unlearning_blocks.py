"""Estimators that unlearn a query: steps from the trained parameters, and the losses of the training images before and after.

An estimator (``unlearning``, ``mirrored_unlearning``) defines the gradient of a step, in which directions steps are taken, and how
losses become scores. Steps are preconditioned by K-FAC or EK-FAC, over the layers that these cover.
"""

from abc import ABC, abstractmethod
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
from attribution.images.draws import Draws
from attribution.measurements import Inputs
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, key

SHARED = (
    "attribution.curvature.basis",
    "attribution.estimators.sharded",
    "attribution.gradients.forward_passes",
    "attribution.gradients.network_cache",
)


QueryAtDraws = tuple[Tensor, Draws, Tensor | None]
"""One query ``[1, C, H, W]``, its draws ``[1, K]``, and its condition: the arguments of ``PerExampleGradients.capture``."""

TRAINED = 0
"""The sign of no step: losses under the trained model."""


@dataclass(frozen=True, kw_only=True)
class UnlearningEstimator(ShardedEstimator, ABC):
    """Scores from losses of the training images after steps ``θ_{j+1} = θ_j ± s/(N J) (H + λI)⁻¹ ∇m(q; θ_j)``, j = 0..J-1.

    ``curvature``: H, K-FAC or EK-FAC; ``damping``: λ, added to the curvature of the mean loss; ``steps``: J; ``amount``: s, the
    weight with which the query is removed, in training images. The draws of the two sides are independent. ``flips``: mirror
    training images at random, as training did.
    """

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

    @property
    @abstractmethod
    def signs(self) -> tuple[int, ...]:
        """The directions in which steps are taken: 1 raises the query's cost, -1 lowers it."""

    @property
    @abstractmethod
    def passes_of_ascent(self) -> float:
        """The passes that ``ascent`` takes for each draw."""

    @abstractmethod
    def ascent(self, per_example: PerExampleGradients, query: QueryAtDraws) -> LayerGradients:
        """Return the gradient of the query's cost at the current parameters, ``[1, rows, columns]`` per layer."""

    def no_gradient(self, query: int) -> ValueError:
        """The error that the query with this number has a gradient of 0."""
        return FieldError(self, "draws", f"query {query} has no gradient at any of its draws: take more draws")

    @abstractmethod
    def scores_of(self, losses: Mapping[int, np.ndarray], size: float) -> np.ndarray:
        """Return τ ``[n]`` from the losses ``[n, K]`` of training images at their draws, float64.

        ``losses`` has those after steps in each of ``signs`` and, at 0, those of the trained model if -1 is not among ``signs``.
        ``size``: s/N.
        """

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        gradient_shapes(trained)  # raises if a layer has no per-example gradients
        self.draws.check(trained.process.T)
        return UnlearningScores(self, train, queries, trained)


@dataclass(frozen=True)
class UnlearningQueryBlock(QueryBlock[QueryVectors]):
    """θ_J - θ_0 of a block of queries, for each direction of the steps: ``[signs, Q, rows, columns]`` per layer."""

    NAME = "UnlearningQueryBlock"
    VERSION = 2
    TITLE = "unlearning of the queries"
    ARTIFACT = QueryVectors

    estimator: UnlearningEstimator
    train: ImageSet

    def parents(self) -> list[Node]:
        return [*super().parents(), self._basis]

    def together(self) -> Hashable:
        return key(self)  # alone: the parameters move

    def cost(self) -> Cost:
        signs = len(self.estimator.signs)
        size = signs * FLOAT32_BYTES * self.count * self.trained.parameter_count
        # The first step is the same in all directions, up to its sign.
        gradients = 1 + signs * (self.estimator.steps - 1)
        passes = self.count * self.estimator.draws.side("query").count * gradients
        return Cost(passes=self.estimator.passes_of_ascent * passes, memory=3 * size, disk=size)

    @classmethod
    def compute_together(cls, nodes: Sequence["UnlearningQueryBlock"], get: Get) -> list[QueryVectors]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return [node._moves(get) for node in nodes]

    def _moves(self, get: Get) -> QueryVectors:
        estimator = self.estimator
        x0, draws, condition = self.inputs(get)
        per_example, basis = engine(self.trained, None, estimator.execution, get), get(self._basis).to(x0.device)
        assert isinstance(basis, KroneckerBasis)
        size = estimator.amount / (self.train.count * estimator.steps)
        moves: list[list[LayerGradients]] = [[] for _ in estimator.signs]
        for q in range(self.count):
            one = slice(q, q + 1)
            query = (x0[one], draws.rows(one), None if condition is None else condition[one])
            first = self._step(per_example, basis, query)
            if not any(step.any() for step in first.values()):
                raise estimator.no_gradient(self.rows[0] + q)
            for sign, of_sign in zip(estimator.signs, moves, strict=True):
                move = {layer: sign * size * step for layer, step in first.items()}
                for _ in range(estimator.steps - 1):
                    with moved(per_example, move):
                        step = self._step(per_example, basis, query)
                    move = {layer: move[layer] + sign * size * step[layer] for layer in move}
                of_sign.append(move)
        return QueryVectors(
            {layer: torch.stack([torch.stack([m[layer] for m in own]) for own in moves]).cpu() for layer in moves[0][0]}
        )

    def _step(self, per_example: PerExampleGradients, basis: KroneckerBasis, query: QueryAtDraws) -> LayerGradients:
        """(H + λI)⁻¹ ∇m at the current parameters, ``[rows, columns]`` per layer."""
        gradient = self.estimator.ascent(per_example, query)
        damping = self.estimator.damping
        rotated = {layer: g / (basis.values[layer] + damping).to(g) for layer, g in basis.rotations(gradient)}
        return {layer: step[0] for layer, step in basis.restored(rotated).items()}

    @property
    def _basis(self) -> Node[Basis]:
        return self.estimator.curvature.basis(self.trained, self.train, self.estimator.flips)


@dataclass(frozen=True)
class UnlearningTrainingBlock(TrainingBlock):
    """τ of the queries ``query_rows`` and a block of training examples, ``[Q, n]``. One query's parameters are loaded at a time."""

    NAME = "UnlearningTrainingBlock"
    VERSION = 1
    TITLE = "rises of the training images' loss"

    estimator: UnlearningEstimator
    query_rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(self)

    def cost(self) -> Cost:
        inputs, execution = self.count * self.estimator.draws.side("train").count, self.estimator.execution
        queries = self.query_rows[1] - self.query_rows[0]
        signs = self.estimator.signs
        held = 2 * len(signs) * min(queries, execution.query_shard) * self.trained.parameter_count
        times = queries * len(signs) + (-1 not in signs)
        return replace(forward_cost(inputs, execution, times), memory=FLOAT32_BYTES * held)

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
        estimator, per_example = self.estimator, engine(self.trained, None, self.estimator.execution, get)
        size, losses, rises = estimator.amount / self.train.count, {}, []
        if -1 not in estimator.signs:
            losses[TRAINED] = self._losses(per_example, get)
        for block in self.query_blocks():
            vectors = get(block).to(per_example.parameters[0].device).layers
            for q in range(block.count):
                for i, sign in enumerate(estimator.signs):
                    with moved(per_example, {layer: tensor[i, q] for layer, tensor in vectors.items()}):
                        losses[sign] = self._losses(per_example, get)
                rises.append(estimator.scores_of(losses, size))
        values = np.stack(rises)
        if not np.isfinite(values).all():
            raise FloatingPointError("losses after unlearning are not finite: lower amount, or raise damping")
        return BlockProducts(values.astype(np.float32))

    def _losses(self, per_example: PerExampleGradients, get: Get) -> np.ndarray:
        """The loss of each training image at each of its draws, float64 ``[n, K]``."""
        estimator, objective = self.estimator, self.trained.objective

        def value(network: torch.nn.Module, inputs: Inputs) -> Tensor:
            return objective(denoiser(network), *inputs)

        images, scheme = get(self.train), estimator.draws.side("train")
        return at_draws(value, per_example, objective, images, self.rows, scheme, "attribution", estimator.flips).numpy()


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

    estimator: UnlearningEstimator

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

    estimator: UnlearningEstimator
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
        size = len(self.estimator.signs) * FLOAT32_BYTES * self.trained.parameter_count
        return [
            UnlearningBatch(self.estimator, self.trained, self.train, self.queries, rows)
            for rows in self.estimator.execution.query_batches(self.queries.count, size)
        ]
