"""ReTrac (Xie et al. 2024, "Data Attribution for Diffusion Models", eq. 9)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.gradients.per_example import Captured, LayerGradients

SHARED = ("attribution.estimators.training_trajectory",)


@dataclass(frozen=True, kw_only=True)
class ReTrac(TrajectoryEstimator):
    """TracIn with every single gradient on both sides divided by its norm:

    ``τ[q, z] = Σ_k η_k ⟨ 1/(n_t m) Σ_t Σ_i g_{t,i}/‖g_{t,i}‖, G/‖G‖ ⟩``, g = ∇ℓ_t(θ_k, ε_i, q), G = ∇ℓ_{t_train}(θ_k, ε_train, z).

    The gradients of a query are normalized before they are averaged, and the average is not normalized again, so this is not a
    cosine. A zero gradient stays zero.
    """

    NAME = "ReTrac"
    VERSION = 1
    SCALES_GRADIENTS = True

    def query_side(self, captured: Captured) -> LayerGradients:
        return captured.mean(weights=inverse)

    def train_side(self, captured: Captured) -> LayerGradients:
        return captured.mean(weights=inverse)


def inverse(norms: Tensor) -> Tensor:
    """Return 1/‖g‖, or a finite number for a zero gradient."""
    return 1 / norms.clamp(min=torch.finfo(norms.dtype).tiny)
