"""Inner products and cosines of gradients: gradient dot and cos, TracInCP (Pruthi et al. 2020), GAS (Hammoudeh & Lowd 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.estimators.base import Estimator
from attribution.estimators.scores import Scores
from attribution.features.features import Features, InnerProducts
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Cost, Get, Node
from attribution.projection import Projection
from attribution.training import Recorded
from attribution.training.checkpoints import select


@dataclass(frozen=True, kw_only=True)
class GradientSimilarity(Estimator):
    """Unweighted mean over checkpoints of ``⟨∇m(q), ∇ℓ(z)⟩``, or of their cosines; both gradients are means over ``draws``.

    ``checkpoints``: None is the final model (gradient dot and cos); else as for TracIn (TracInCP, and with cosines GAS).
    """

    NAME = "GradientSimilarity"
    VERSION = 1

    measurement: Measure
    draws: DrawScheme
    projection: Projection
    cosine: bool
    checkpoints: int | str | Sequence[int] | None = None
    flips: bool = False

    def __post_init__(self):
        self.draws.refuse_lists("estimator.draws", "a feature")

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        return SimilarityScores(self, record, train, queries)

    def features(self, record: Recorded, images: ImageSet, role: str, step: int | None) -> Features:
        """Gradients of "query" or "attribution" (training) images at a checkpoint."""
        return Features.of(self, record, images, self.measurement if role == "query" else record.objective, role, step)


@dataclass(frozen=True)
class SimilarityScores(Node[Scores]):
    """All queries and training images."""

    NAME = "SimilarityScores"
    VERSION = 1
    TITLE = "gradient similarities"
    ARTIFACT = Scores

    estimator: GradientSimilarity
    record: Recorded
    train: ImageSet
    queries: ImageSet

    def parts(self, get: Get) -> list[Node]:
        how, steps = self.estimator, self._steps(get)
        return [
            InnerProducts(
                how.features(self.record, self.queries, "query", step), how.features(self.record, self.train, "attribution", step)
            )
            for step in steps
        ]

    def cost(self) -> Cost:
        return Cost(
            passes=(self.queries.count + self.train.count) * self.estimator.draws.count,
            disk=4 * self.queries.count * self.train.count,
        )

    def compute(self, get: Get) -> Scores:
        total: Any = 0
        parts = self.parts(get)
        for part in parts:
            found = get(part)
            norms = (
                np.sqrt(np.maximum(np.outer(found.left, found.right), np.finfo(np.float64).tiny)) if self.estimator.cosine else 1
            )
            total = total + found.values / norms
        return Scores((total / len(parts)).astype(np.float32), np.array(get(self.queries).index), np.array(get(self.train).index))

    def _steps(self, get: Get) -> Sequence[int | None]:
        wanted = self.estimator.checkpoints
        if wanted is None:
            return [None]
        record = get(self.record)
        return select(wanted, record.steps, record.losses)
