"""Relative influence (Barshan et al. 2020), as D-TRAK uses it."""

from dataclasses import dataclass

import numpy as np

from attribution.estimators.kernel import KernelEstimator, TrainingEigen

SHARED = ("attribution.estimators.kernel",)


@dataclass(frozen=True, kw_only=True)
class RelativeIF(KernelEstimator):
    """``φ(q)ᵀ (C + λI)⁻¹ φ(z) / ‖(C + λI)⁻¹ φ(z)‖``, C = ΦᵀΦ/N."""

    NAME = "RelativeIF"
    VERSION = 1

    def scale(self, eigen: TrainingEigen, damping: float) -> np.ndarray:
        squares = (eigen.right / (eigen.values + damping)) ** 2 @ eigen.metric
        return 1 / np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny))
