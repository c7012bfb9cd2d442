"""TracIn for diffusion models (ReTrac: Xie et al. 2024, "Data Attribution for Diffusion Models", eq. 7 and 8)."""

from dataclasses import dataclass

from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.gradients.per_example import Captured, LayerGradients

SHARED = ("attribution.estimators.training_trajectory",)


@dataclass(frozen=True, kw_only=True)
class TracIn(TrajectoryEstimator):
    """``τ[q, z] = Σ_k η_k ⟨ 1/(n_t m) Σ_t Σ_i ∇ℓ_t(θ_k, ε_i, q), ∇ℓ_{t_train}(θ_k, ε_train, z) ⟩``.

    The training side is taken at the draw that z was last trained at before checkpoint k. The query side is the mean over the
    query's draws (``Even(n=T)``: eq. 7, ``Even(n=50)``: eq. 8 as in the paper).
    """

    NAME = "TracIn"
    VERSION = 1

    def query_side(self, captured: Captured) -> LayerGradients:
        return captured.mean()

    def train_side(self, captured: Captured) -> LayerGradients:
        return captured.mean()
