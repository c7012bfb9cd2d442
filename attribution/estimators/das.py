"""Diffusion Attribution Score (DAS; Lin et al., ICLR 2025, "Diffusion Attribution Score"; code: Jinxu-Lin/DAS).

DAS asks how far the output of the network at a query moves when it is trained without z, in place of how far the loss moves. With
squared errors, a linearized output f with gradients φ, and one Newton step, leaving z out changes the output at q by

    f(q) - f_{-z}(q) = φ(q)ᵀ (ΦᵀΦ + NλI)⁻¹ φ(z) r(z) / (1 - h(z)),     h(z) = φ(z)ᵀ (ΦᵀΦ + NλI)⁻¹ φ(z)

with the residual r(z), target minus output, and the leverage h(z): the formula for leaving one observation of a ridge regression
out. The score is the square of it, as the divergence of two Gaussians is. Where the paper and its code leave a choice:

- The paper has an expectation over timesteps of squares. Its code averages gradients and residuals over draws before the product,
  as D-TRAK does, so that features are averages, and so does this file.
- f maps all pixels to one number. The code has the mean and the mean magnitude of the output, and its commands use the mean
  (``feature`` avg); here it is any ``feature``.
- The newest scripts of the code divide the gradient of every draw by its norm before the mean: here ``balance`` of both sides.
- r is a vector of pixels, which the code reduces to its root mean square. ``residual="mean"`` is the mean of this over draws (the
  first version of the code), ``"normalized"`` is the mean over the root of the mean square over draws (the second version divides
  the residuals of an image by their length over timesteps), ``"none"`` is 1.
- The code has scores with a factor for the leverage (its DAS0) and without (DAS1): ``leverage``. Its two newest scripts have
  1/(1 - h)², also in scores that are not squared; the derivation above has 1/(1 - h), and so does this file.
- Squares lose the sign. ``squared=False`` keeps that of D-TRAK, whose score is the special case without residual and leverage.

Everything is multiplied by N (the kernel's C = ΦᵀΦ/N is a mean), before the square.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from attribution.checks import FieldError
from attribution.estimators.kernel import KernelEstimator, KernelScores, TrainingEigen
from attribution.estimators.residuals import Residuals, ResidualTable
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Get, Node

SHARED = ("attribution.estimators.kernel", "attribution.estimators.residuals")

RESIDUALS = ("mean", "normalized", "none")
SMALLEST = 1e-13
"""The smallest 1 - h: what float64 resolves of a leverage near 1."""


@dataclass(frozen=True, kw_only=True)
class DAS(KernelEstimator):
    """``τ = (φ(q)ᵀ (ΦᵀΦ/N + λI)⁻¹ φ(z) · r(z) / (1 - h(z)))²``, or variants of it, see above.

    Residuals are taken at the draws of the training images' features.
    """

    NAME = "DAS"
    VERSION = 1
    REPLICATED = ()  # a square is not linear in the query's gradients

    residual: Literal["mean", "normalized", "none"] = "mean"
    leverage: bool = True
    squared: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.residual not in RESIDUALS:
            raise FieldError(self, "residual", f"choose one of {', '.join(RESIDUALS)}")
        for name in ("leverage", "squared"):
            if not isinstance(getattr(self, name), bool):
                raise FieldError(self, name, "must be true or false")

    def scale(self, eigen: TrainingEigen, damping: float) -> np.ndarray | float:
        """1/(1 - h(z)), ``[N]``, or 1."""
        if not self.leverage:
            return 1.0
        return 1 / np.maximum(1 - leverages(eigen, damping), SMALLEST)

    def node(self, train: ImageSet, queries: ImageSet, trained: Trained) -> "DASScores":
        return DASScores(self, train, queries, trained)


def leverages(eigen: TrainingEigen, damping: float) -> np.ndarray:
    """h(z) = φ(z)ᵀ (ΦᵀΦ + NλI)⁻¹ φ(z) of each training image, ``[N]``, between 0 and 1."""
    return np.square(eigen.right) @ (eigen.metric / (eigen.values + damping)) / len(eigen.right)


def factors(table: ResidualTable, kind: str) -> np.ndarray:
    """r(z) of each training image, ``[N]``."""
    if kind == "mean":
        return np.asarray(table.mean)
    return table.mean / np.sqrt(np.maximum(table.square, np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class DASScores(KernelScores):
    """The scores under all stored dampings, except those that are too small for float64."""

    NAME = "DASScores"
    VERSION = 1
    TITLE = "diffusion attribution scores"

    estimator: DAS

    def parts(self, get: Get) -> list[Node]:
        return [*super().parts(get), *self._residuals]

    def passes(self, get: Get) -> float:
        return super().passes(get) + sum(node.cost().passes for node in self._residuals)

    def finished(self, values: np.ndarray, get: Get) -> np.ndarray:
        for node in self._residuals:
            values = values * factors(get(node), self.estimator.residual)
        return np.square(values) if self.estimator.squared else values

    @property
    def _residuals(self) -> list[Residuals]:
        """The node of the residuals, if there are any in the scores."""
        estimator = self.estimator
        if estimator.residual == "none":
            return []
        draws = estimator.draws.side("train")
        of = {"draws": draws, "role": "attribution", "flips": estimator.flips, "execution": estimator.execution}
        return [Residuals(trained=self.trained, images=self.train, **of)]
