"""TRAK, D-TRAK and Journey-TRAK; ``kernel`` and ``features.spectrum`` compute the formula, and this file sets its scale.

D-TRAK (Zheng et al. 2024) is the class TRAK (Park et al. 2023) with another feature, a function of ``measurements.outputs``.
"""

from dataclasses import dataclass

from attribution.estimators.kernel import KernelEstimator, TrainingEigen

SHARED = ("attribution.estimators.kernel",)


@dataclass(frozen=True, kw_only=True)
class TRAK(KernelEstimator):
    """``τ = φ(q)ᵀ (ΦᵀΦ/N + λI)⁻¹ φ(z)``.

    TRAK takes gradients of the loss on both sides, and D-TRAK gradients of another function of the network's output. Journey-TRAK
    takes gradients of the loss along the sampling trajectories of the queries.
    """

    NAME = "TRAK"
    VERSION = 1

    def scale(self, eigen: TrainingEigen, damping: float) -> float:
        return 1.0
