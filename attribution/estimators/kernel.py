"""Estimators of the form ``τ[q, z] = φ(q)ᵀ (ΦᵀΦ/N + λI)⁻¹ φ(z) · scale(z)``: TRAK and its relatives.

All of these methods share the features and their eigendecomposition, for all dampings and all pools of queries.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from attribution.checks import FieldError
from attribution.estimators.balance import Balance, check_balance
from attribution.estimators.base import Estimator, as_tuple, check_dampings
from attribution.estimators.replicated import with_replicates
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES
from attribution.features.features import Features
from attribution.features.gram import InnerProducts
from attribution.features.spectrum import RESOLUTION, Spectrum, sides
from attribution.gradients.layer_check import find_layers
from attribution.gradients.network_cache import gradient_shapes
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, added
from attribution.projection import Projection

SHARED = (
    "attribution.estimators.balance",
    "attribution.estimators.replicated",
    "attribution.estimators.sharded",
    "attribution.features.spectrum",
)

GRID = tuple(10.0**e for e in range(-12, 3))
"""Dampings that every score artifact holds."""


@dataclass(frozen=True, kw_only=True)
class KernelEstimator(Estimator):
    """Features are projected gradients of two measures at the final model, averaged over ``draws``.

    The feature of a query is the gradient of ``measurement`` or, in methods whose query feature is not a measurement (D-TRAK,
    Journey-TRAK), of ``query_feature``; exactly one of the two is given. The feature of a training image is the gradient of
    ``train_feature``, by default of the model's objective.

    ``damping``: λ, one value or a list. As everywhere in this project it is added to the curvature of the *mean* (1/N). D-TRAK's
    code adds its λ to ΦᵀΦ, with projections without a factor of 1/√k; it is ``k N`` times ours (``from_dtrak``). ``flips``: mirror
    training images at random, as training did. ``balance``: weights of the gradients of single draws, on either side or both.
    Divided by their norms (``by="draw"``), as Concept-TRAK does on both sides, all timesteps count alike in a feature.
    """

    REPLICATED = ("query",)

    measurement: Measure | None = None
    query_feature: Measure | None = None
    train_feature: Measure | None = None
    draws: DrawScheme
    projection: Projection
    damping: float | Sequence[float] = 1e-8
    flips: bool = False
    models: int = 1  # not ``added``: descriptions of older results have it
    balance: Balance | None = added(default=None)

    def __post_init__(self):
        check_dampings(self)
        check_balance(self)
        self.draws.refuse_lists("a feature", replicates="query" in self.REPLICATED)
        if self.balance is not None and self.balance.by == "timestep":
            message = (
                "mean norms at a timestep are those of the loss, and features are gradients of any function: choose draw or a list"
            )
            raise FieldError(self.balance, "by", message)
        if (self.measurement is None) == (self.query_feature is None):
            raise ValueError(f"{type(self).__name__}: give exactly one of measurement and query_feature")

    @abstractmethod
    def scale(self, eigen: "TrainingEigen", damping: float) -> np.ndarray | float:
        """Return the factor on the scores of each training image, ``[N]`` or one number."""

    @property
    def dampings(self) -> tuple[float, ...]:
        """The dampings as a tuple."""
        return as_tuple(self.damping)

    def explains(self, queries: ImageSet) -> bool:
        """False for a ``query_feature`` that needs sampling trajectories, which these queries lack."""
        return self.query_feature is None or self.query_feature.takes_images() or queries.trajectories is not None

    def measuring(self, measure: Measure) -> Self:
        return self if self.measurement is None else replace(self, measurement=measure)

    @property
    def query_measure(self) -> Measure:
        """The measure of the queries' features."""
        measure = self.query_feature or self.measurement
        assert measure is not None
        return measure

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return {"damping": self.dampings}

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.query_measure.subject(queries)
        find_layers(trained.outline)  # raises if a layer has no per-example gradients
        self.draws.check(trained.process.T)
        # Scores are stored at the whole grid, so their identity does not depend on which of its dampings were requested.
        projection = self.projection.chosen(gradient_shapes(trained))
        stored = replace(self, damping=tuple(sorted({*GRID, *self.dampings})), projection=projection)
        return with_replicates(self, stored.node(train, queries, trained))

    def node(self, train: ImageSet, queries: ImageSet, trained: Trained) -> "KernelScores":
        """The scores of one model."""
        return KernelScores(self, train, queries, trained)

    def features(self, trained: Trained, images: ImageSet, role: str) -> Features:
        """The features of queries (role "query") or training images (role "attribution")."""
        measure = self.query_measure if role == "query" else self.train_feature or trained.objective
        balance = None if self.balance is None else self.balance.on("query" if role == "query" else "train")
        return Features.of(self, trained, images, measure, role, balance=balance)


@dataclass(frozen=True)
class TrainingEigen:
    """The training images in the eigenbasis: Λ ``values [r]``, coordinates ``right [N, r]``, ‖φ(z)‖² ``squares [N]``.

    ``metric [r]`` gives norms: ‖f(C) φ(z)‖² = Σ_j metric_j right_zj² f(Λ_j)².
    """

    values: np.ndarray
    right: np.ndarray
    metric: np.ndarray
    squares: np.ndarray


@dataclass(frozen=True)
class KernelScores(ShardedScores):
    """The scores under all stored dampings, except those that are too small for float64."""

    NAME = "KernelScores"
    VERSION = 1
    TITLE = "kernel scores"

    estimator: KernelEstimator
    trained: Trained

    def parts(self, get: Get) -> list[Node]:
        # Listed as parts, the inner products of several estimators and pools share their passes.
        queries, spectrum = self._features()
        return [*spectrum.parts(get), *([InnerProducts(queries, spectrum.train)] if spectrum.uses_gram else queries.shards)]

    def parents(self) -> list[Node]:
        return [*super().parents(), self._features()[1]]

    def cost(self) -> Cost:
        scores, spectrum = len(self.estimator.dampings) * self.pairs, self._features()[1]
        memory = FLOAT32_BYTES * scores + 3 * FLOAT64_BYTES * self.pairs + 2 * spectrum.cost().disk
        rank = min(spectrum.train.count, spectrum.train.size)
        return Cost(products=2 * scores * rank, memory=memory, disk=FLOAT32_BYTES * scores)

    def passes(self, get: Get) -> float:
        queries, spectrum = self._features()
        once = queries.count * queries.draws.count + self.train.count * spectrum.train.draws.count
        if spectrum.train.stored:
            return once
        # The inner products of all pairs and those of the training images hold the same gradients, block by block.
        blocks = InnerProducts(spectrum.train, spectrum.train).parts(get)
        return sum(block.cost().passes for block in blocks) + len(blocks) * queries.count * queries.draws.count

    def compute(self, get: Get) -> Scores:
        left, eigen = self._sides(get)
        right = eigen.right
        dampings = [damping for damping in self.estimator.dampings if _stable(damping, eigen.values, requested=damping not in GRID)]
        values = np.empty((len(dampings), len(left), len(right)), np.float32)
        for i, damping in enumerate(dampings):  # one at a time in float64
            products = (left / (eigen.values + damping)) @ right.T
            values[i] = self.finished(products * self.estimator.scale(eigen, damping), get)
        return self.assembled(values, get, axes={"damping": dampings})

    def finished(self, values: np.ndarray, get: Get) -> np.ndarray:
        """Scores at one damping from the scaled products ``values [.., N]``, float64."""
        return values

    def diagonal(self, damping: float, get: Get) -> np.ndarray:
        """The scores of training examples for themselves, ``[N]``, if the queries are the training examples.

        Raises:
            FloatingPointError: the damping is too small.
        """
        left, eigen = self._sides(get)
        _stable(damping, eigen.values, requested=True)
        products = np.einsum("nr,nr->n", left / (eigen.values + damping), eigen.right)
        return self.finished(products * self.estimator.scale(eigen, damping), get)

    def _sides(self, get: Get) -> tuple[np.ndarray, TrainingEigen]:
        """The coordinates of the queries ``[Q, r]``, and the training images."""
        queries, spectrum = self._features()
        eigen = get(spectrum)
        left, right = sides(get, queries, spectrum.train, eigen)
        metric = len(right) * eigen.values if eigen.gram else np.ones(len(eigen.values))
        return left, TrainingEigen(eigen.values, right, metric, eigen.squares)

    def _features(self) -> tuple[Features, Spectrum]:
        features = self.estimator.features
        return features(self.trained, self.queries, "query"), Spectrum(features(self.trained, self.train, "attribution"))


def _stable(damping: float, values: np.ndarray, requested: bool) -> bool:
    """Whether a damping is large enough for the eigenvalues.

    Raises:
        FloatingPointError: it is not, and was ``requested``.
    """
    stable = bool(values.min() + damping > RESOLUTION * values.max())
    if not stable and requested:
        raise FloatingPointError(
            f"damping={damping:g} is too small for features whose covariance has eigenvalues from {values.min():.2g} to "
            f"{values.max():.2g}: raise it"
        )
    return stable


def from_dtrak(damping: float, k: int, N: int) -> float:
    """Convert a λ of D-TRAK's code, which adds it to ΦᵀΦ of features without a factor of 1/√k, to this project's: λ / (k N)."""
    return damping / (k * N)
