"""Estimators of the form ``τ[q, z] = φ(q)ᵀ (ΦᵀΦ/N + λI)⁻¹ φ(z) · scale(z)``: TRAK and its relatives.

Features and their eigendecomposition are shared by all of them, by all dampings, and by all pools of queries.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from attribution.estimators.base import Estimator, as_list, check_dampings
from attribution.estimators.scores import Scores
from attribution.features.features import Features, InnerProducts
from attribution.features.spectrum import RESOLUTION, Spectrum, sides
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Cost, Get, Node
from attribution.projection import Projection
from attribution.training import Recorded

FLOAT = 4
GRID = tuple(10.0**e for e in range(-12, 3))
"""Dampings that every score artifact holds."""


@dataclass(frozen=True, kw_only=True)
class KernelEstimator(Estimator):
    """Features are projected gradients of two measures under the final model, means over ``draws``.

    The feature of a query is the gradient of ``measurement`` or, in methods whose query feature measures nothing (D-TRAK,
    Journey-TRAK), of ``query_feature``; exactly one of the two is given. The feature of a training image is the gradient of
    ``train_feature``; None means the model's objective.

    ``damping``: λ, one value or a list, in this project's one convention: added to the curvature of the *mean* (1/N). The λ that
    D-TRAK's code adds to ΦᵀΦ, of projections without a factor of 1/√k, is ``k N`` times ours (``from_dtrak``). ``flips``: mirror
    training images at random, as training did. ``models``: mean over so many models that differ in their training seed.
    """

    measurement: Measure | None = None
    query_feature: Measure | None = None
    train_feature: Measure | None = None
    draws: DrawScheme
    projection: Projection
    damping: float | Sequence[float] = 1e-8
    flips: bool = False
    models: int = 1

    def __post_init__(self):
        check_dampings(self.damping)
        if not isinstance(self.models, int) or self.models < 1:
            raise ValueError(f"estimator.models={self.models}: must be at least 1")
        self.draws.refuse_lists("estimator.draws", "a feature")
        if (self.measurement is None) == (self.query_feature is None):
            raise ValueError("estimator: give either estimator.measurement or estimator.query_feature")

    @abstractmethod
    def scale(self, eigen: "Solved", damping: float) -> np.ndarray | float:
        """What the scores of each training image are multiplied by, ``[N]`` or one number."""

    @property
    def dampings(self) -> tuple[float, ...]:
        """The dampings asked for."""
        return as_list(self.damping)

    def measuring(self, measure: Measure) -> Self:
        return self if self.measurement is None else replace(self, measurement=measure)

    @property
    def query_measure(self) -> Measure:
        """The measure of the queries' features."""
        measure = self.query_feature or self.measurement
        assert measure is not None
        return measure

    def asked(self) -> Mapping[str, Sequence[Any]]:
        return {"damping": self.dampings}

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.query_measure.subject(queries)
        dampings = tuple(sorted({*GRID, *self.dampings}))
        how = replace(self, damping=(), models=1)
        members = [KernelScores(how, dampings, record.member(i), train, queries) for i in range(self.models)]
        return members[0] if self.models == 1 else EnsembleScores(tuple(members))

    def features(self, record: Recorded, images: ImageSet, role: str) -> Features:
        """Those of "query" or "attribution" (training) images."""
        measure = self.query_measure if role == "query" else self.train_feature or record.objective
        return Features.of(self, record, images, measure, role)


@dataclass(frozen=True)
class Solved:
    """Training images in the eigenbasis: Λ ``values [r]``, coordinates ``right [N, r]``, ‖φ(z)‖² ``squares [N]``.

    ``metric [r]``: Σ_j metric_j right_zj² f(Λ_j)² is the square norm of f(C) φ(z).
    """

    values: np.ndarray
    right: np.ndarray
    metric: np.ndarray
    squares: np.ndarray


@dataclass(frozen=True)
class KernelScores(Node[Scores]):
    """The scores under every stored damping that float64 can tell from none."""

    NAME = "KernelScores"
    VERSION = 1
    TITLE = "kernel scores"
    ARTIFACT = Scores

    estimator: KernelEstimator
    dampings: tuple[float, ...]
    record: Recorded
    train: ImageSet
    queries: ImageSet

    def parts(self, get: Get) -> list[Node]:
        # Asked for together: several estimators' and pools' inner products then share their passes.
        queries, spectrum = self._features()
        return [*spectrum.parts(get), *([InnerProducts(queries, spectrum.train)] if spectrum.form_is_gram else queries.shards)]

    def parents(self) -> list[Node]:
        return [*super().parents(), self._features()[1]]

    def cost(self) -> Cost:
        return Cost(disk=FLOAT * len(self.dampings) * self.queries.count * self.train.count)

    def compute(self, get: Get) -> Scores:
        queries, spectrum = self._features()
        eigen = get(spectrum)
        left, right = sides(get, queries, spectrum.train, eigen)
        metric = len(right) * eigen.values if eigen.gram else np.ones(len(eigen.values))
        solved = Solved(eigen.values, right, metric, eigen.squares)
        dampings = [damping for damping in self.dampings if self._stable(damping, eigen.values)]
        found = [(left / (eigen.values + damping)) @ right.T * self.estimator.scale(solved, damping) for damping in dampings]
        return Scores(
            values=np.stack(found).astype(np.float32),
            query_index=np.array(get(self.queries).index),
            train_index=np.array(get(self.train).index),
            axes={"damping": dampings},
        )

    def _features(self) -> tuple[Features, Spectrum]:
        how = self.estimator
        return how.features(self.record, self.queries, "query"), Spectrum(how.features(self.record, self.train, "attribution"))

    def _stable(self, damping: float, values: np.ndarray) -> bool:
        if values.min() + damping > RESOLUTION * values.max():
            return True
        if damping in GRID:  # nobody may have asked for it
            return False
        raise FloatingPointError(
            f"estimator.damping={damping:g} is too small for features whose covariance has eigenvalues from {values.min():.2g} to "
            f"{values.max():.2g}: raise it"
        )


@dataclass(frozen=True)
class EnsembleScores(Node[Scores]):
    """The mean of the scores of several models."""

    NAME = "EnsembleScores"
    VERSION = 1
    TITLE = "scores of the ensemble"
    ARTIFACT = Scores

    members: tuple[Node[Scores], ...]

    def compute(self, get: Get) -> Scores:
        total: dict[float, Any] = {}
        found = get.many(self.members)
        for damping in set.intersection(*(set(scores.axes["damping"]) for scores in found)):
            total[damping] = sum(scores.at(damping=damping).values.astype(np.float64) for scores in found) / len(found)
        dampings = sorted(total)
        first = found[0]
        values = np.stack([total[damping] for damping in dampings]).astype(np.float32)
        return Scores(values, np.array(first.query_index), np.array(first.train_index), {"damping": dampings})


def from_dtrak(damping: float, k: int, N: int) -> float:
    """This project's λ for one of D-TRAK's code, which adds it to ΦᵀΦ of features without a factor of 1/√k: λ / (k N)."""
    return damping / (k * N)
