"""TRAK in half precision, as TRAK's own code computes by default (K-FAC influence, fig. 20).

Features, ΦᵀΦ, the inverse and all products are rounded to float16 or bfloat16; only the inversion itself is in float32. Small
gradients become zero in float16, and large sums infinite. Scores that are not finite stay in the result.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError
from attribution.estimators.kernel import KernelEstimator, TrainingEigen
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores
from attribution.execution import FLOAT32_BYTES
from attribution.features.features import Features
from attribution.gradients.network_cache import gradient_shapes
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node
from attribution.projection import Identity

SHARED = ("attribution.estimators.kernel", "attribution.estimators.sharded", "attribution.features.features")

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class HalfPrecisionTRAK(KernelEstimator):
    """``φ(q)ᵀ (ΦᵀΦ + NλI)⁻¹ φ(z)`` in ``precision``, up to a positive factor for each damping.

    The features are those of TRAK with the same settings; there must be a projection. As in TRAK's code, the inverse is divided by
    its mean magnitude before it is rounded.
    """

    NAME = "HalfPrecisionTRAK"
    VERSION = 1
    REPLICATED = ()

    precision: Literal["float16", "bfloat16"] = "float16"

    def __post_init__(self):
        super().__post_init__()
        if self.precision not in _DTYPES:
            raise FieldError(self, "precision", "choose float16 or bfloat16")
        if isinstance(self.projection, Identity):
            raise FieldError(self, "projection", "choose one: the covariance of whole gradients is too large to invert")
        if self.models != 1:
            raise FieldError(self, "models", "give 1: scores in half precision are of one model")

    def scale(self, eigen: TrainingEigen, damping: float) -> float:
        return 1.0

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        super().scores_of_model(trained, train, queries)  # raises what TRAK raises
        projection = self.projection.chosen(gradient_shapes(trained))
        return HalfPrecisionScores(replace(self, projection=projection), train, queries, trained)


@dataclass(frozen=True)
class HalfPrecisionScores(ShardedScores):
    """The scores at the requested dampings."""

    NAME = "HalfPrecisionScores"
    VERSION = 1
    TITLE = "scores in half precision"

    estimator: HalfPrecisionTRAK
    trained: Trained

    def parts(self, get: Get) -> list[Node]:
        return [shard for side in self._sides() for shard in side.shards]

    def cost(self) -> Cost:
        k = self._sides()[0].size
        return Cost(memory=3 * FLOAT32_BYTES * k**2, disk=FLOAT32_BYTES * len(self.estimator.dampings) * self.pairs)

    def passes(self, get: Get) -> float:
        return sum(side.count * side.draws.count for side in self._sides())

    def compute(self, get: Get) -> Scores:
        device, dtype = self.estimator.execution.torch_device(), _DTYPES[self.estimator.precision]
        queries, train = (
            torch.cat([torch.from_numpy(np.array(block)).to(device, dtype) for block in side.blocks(get)]) for side in self._sides()
        )
        gram = rounded_product(train.T, train)
        dampings = list(self.estimator.dampings)
        values = [half_scores(queries, train, gram, damping).float().cpu().numpy() for damping in dampings]
        return self.assembled(np.stack(values), get, axes={"damping": dampings})

    def _sides(self) -> tuple[Features, Features]:
        features = self.estimator.features
        return features(self.trained, self.queries, "query"), features(self.trained, self.train, "attribution")


def rounded_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` summed in float32 and rounded to the precision of the factors, as tensor cores do."""
    return (a.float() @ b.float()).to(a.dtype)


def half_scores(queries: Tensor, train: Tensor, gram: Tensor, damping: float) -> Tensor:
    """``φ(q)ᵀ (ΦᵀΦ + NλI)⁻¹ φ(z)`` ``[Q, N]`` from features in half precision and ``gram`` = ΦᵀΦ, up to a positive factor.

    All NaN if the damped matrix has no inverse in float32.
    """
    damped = gram.float() + len(train) * damping * torch.eye(len(gram), device=gram.device)
    inverse, failed = torch.linalg.inv_ex(damped)
    if failed or not torch.isfinite(inverse).all():
        return torch.full((len(queries), len(train)), torch.nan, device=gram.device)
    inverse = (inverse / inverse.abs().mean()).to(gram.dtype)
    return rounded_product(queries, rounded_product(train, inverse).T)
