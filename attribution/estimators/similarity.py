"""Inner products and cosines of gradients: gradient dot and cos, TracInCP (Pruthi et al. 2020), GAS (Hammoudeh & Lowd 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attribution.checks import FieldError
from attribution.estimators.base import Estimator
from attribution.estimators.layer_weights import with_layers
from attribution.estimators.layers import AllLayers, Layers, OnlyLayers
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores
from attribution.estimators.training_trajectory import refuse_zero_rates
from attribution.execution import FLOAT32_BYTES
from attribution.features.features import Features
from attribution.features.gram import InnerProducts
from attribution.gradients.network_cache import gradient_shapes
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, added
from attribution.projection import Identity, Projection
from attribution.training import Recorded, TrainingRecord, require_record
from attribution.training.checkpoints import select

SHARED = (
    "attribution.estimators.layer_weights",
    "attribution.estimators.sharded",
    "attribution.estimators.training_trajectory",
    "attribution.features.gram",
    "attribution.training.checkpoints",
    "attribution.training.record",
)


@dataclass(frozen=True, kw_only=True)
class GradientSimilarity(Estimator):
    """Unweighted mean over checkpoints of ``⟨∇m(q), ∇ℓ(z)⟩``, or of their cosines; both gradients are means over ``draws``.

    ``checkpoints``: None is the final model (gradient dot and cos). Otherwise as for TracIn (TracInCP, and GAS with cosines);
    "last" is the final model as well where nothing else is known of the training.
    ``weighted``: the sum over checkpoints with their learning rates as weights, as Pruthi et al. and Hammoudeh & Lowd
    define both, in place of the mean, which D-TRAK takes.
    ``layers``: the layers that inner products are sums over, or learned weights of groups of them; needs whole gradients. The norms
    of cosines are those of all layers.
    """

    NAME = "GradientSimilarity"
    VERSION = 1
    REPLICATED = ("query", "train")

    measurement: Measure
    draws: DrawScheme
    projection: Projection
    cosine: bool
    checkpoints: int | str | Sequence[int] | None = None
    flips: bool = False
    weighted: bool = added(default=False)
    layers: Layers = added(default=AllLayers())

    def __post_init__(self):
        if self.weighted and self.checkpoints is None:
            raise FieldError(self, "weighted", "there are learning rates only of checkpoints: leave it false for the final model")
        self.draws.refuse_lists("a cosine" if self.cosine else "a feature", replicates=not self.cosine)

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        names = list(gradient_shapes(trained))  # raises if a layer has no per-example gradients
        if self.checkpoints == "last" and not self.weighted and not isinstance(trained, Recorded):
            return replace(self, checkpoints=None).scores(trained, train, queries)  # its final parameters are the one checkpoint
        if self.checkpoints is not None:
            recorded = require_record(trained, f"{type(self).__name__} at several checkpoints")
            recorded.check_checkpoints(self.checkpoints, self)
            if self.weighted:
                recorded.check_learning_rates(self, "weighted")
        self.draws.check(trained.process.T)
        stored = replace(self, projection=self.projection.chosen(gradient_shapes(trained)))
        if not isinstance(self.layers, AllLayers) and not isinstance(stored.projection, Identity):
            raise FieldError(self, "layers", "projected gradients are mixtures of all layers: choose no projection")
        return with_layers(self, SimilarityScores(stored, train, queries, trained), names)

    def features(self, trained: Trained, images: ImageSet, role: str, step: int | None) -> Features:
        """The gradients of queries (role "query") or training images (role "attribution") at a checkpoint."""
        return Features.of(self, trained, images, self.measurement if role == "query" else trained.objective, role, step)


@dataclass(frozen=True)
class SimilarityScores(ShardedScores):
    """The scores ``[Q, N]``."""

    NAME = "SimilarityScores"
    VERSION = 1
    TITLE = "gradient similarities"

    estimator: GradientSimilarity
    trained: Trained

    def parts(self, get: Get) -> list[InnerProducts]:
        return [self._products(step) for step in self._steps(get)]

    def _products(self, step: int | None) -> InnerProducts:
        features, layers = self.estimator.features, self.estimator.layers
        return InnerProducts(
            features(self.trained, self.queries, "query", step),
            features(self.trained, self.train, "attribution", step),
            tuple(layers.names) if isinstance(layers, OnlyLayers) else None,
        )

    def cost(self) -> Cost:
        draws = self.estimator.draws
        passes = self.queries.count * draws.side("query").count + self.train.count * draws.side("train").count
        products = self._products(None)  # those of all checkpoints take the same memory
        memory = max(part.cost().memory for part in [products, *products.shards])
        return Cost(passes=passes, memory=memory, disk=FLOAT32_BYTES * self.pairs)

    def compute(self, get: Get) -> Scores:
        total: Any = 0
        for part, weight in zip(self.parts(get), self._weights(get), strict=True):
            gram = get(part)
            squares = np.outer(gram.left_squares, gram.right_squares)
            norms = np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny)) if self.estimator.cosine else 1
            total = total + weight * gram.values / norms
        return self.assembled(total if self.estimator.weighted else total / len(self._steps(get)), get)

    def _weights(self, get: Get) -> list[float]:
        """The weight of each checkpoint in the sum."""
        steps = self._steps(get)
        if not self.estimator.weighted:
            return [1.0] * len(steps)
        record: TrainingRecord = get(self.trained)
        rates = {step: record.learning_rate(step) for step in steps if step is not None}
        refuse_zero_rates(rates)
        return list(rates.values())

    def _steps(self, get: Get) -> Sequence[int | None]:
        if self.estimator.checkpoints is None:
            return [None]
        record = get(self.trained)
        return select(self.estimator.checkpoints, record.steps, record.losses, self.estimator)
