"""TRAK (Park et al. 2023) and D-TRAK (Zheng et al. 2024): the features decide which."""

from dataclasses import dataclass

from attribution.estimators.kernel import KernelEstimator, Solved


@dataclass(frozen=True, kw_only=True)
class TRAK(KernelEstimator):
    """``τ = φ(q)ᵀ (ΦᵀΦ/N + λI)⁻¹ φ(z)``.

    TRAK: features are gradients of the loss; D-TRAK: of another function of the network's output, on both sides; Journey-TRAK: the
    queries' are gradients of the loss along their sampling trajectories.
    """

    NAME = "TRAK"
    VERSION = 1

    def scale(self, eigen: Solved, damping: float) -> float:
        return 1.0
