"""Renormalized influence (Hammoudeh & Lowd 2022), as D-TRAK uses it."""

from dataclasses import dataclass

import numpy as np

from attribution.estimators.kernel import KernelEstimator, TrainingEigen

SHARED = ("attribution.estimators.kernel",)


@dataclass(frozen=True, kw_only=True)
class RenormIF(KernelEstimator):
    """``φ(q)ᵀ (C + λI)⁻¹ φ(z) / ‖φ(z)‖``, C = ΦᵀΦ/N."""

    NAME = "RenormIF"
    VERSION = 1

    def scale(self, eigen: TrainingEigen, damping: float) -> np.ndarray:
        return 1 / np.sqrt(np.maximum(eigen.squares, np.finfo(np.float64).tiny))
