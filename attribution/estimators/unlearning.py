"""Attribution by unlearning (AbU; Wang et al., NeurIPS 2024, "Data Attribution for Text-to-Image Models by Unlearning").

A query is unlearned: J steps that raise its cost, preconditioned by the curvature of the training loss so that they disturb the
rest as little as possible. The training images whose loss rises most were the most influential for it:

    θ_{j+1} = θ_j + s/(N J) (H + λI)⁻¹ ∇m(q; θ_j),   j = 0..J-1,      τ[q, z] = N/s (ℓ(z; θ_J) - ℓ(z; θ_0))

s = ``amount`` is the weight with which q is removed, in training images. With s → 0 this is influence ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z),
scale included, whatever J; larger s see the curvature of the losses along the step. Losses are float32, and the rounding of their
differences bounds s from below: on a tiny U-Net with damping 1e-3 the relative distance to influence is 0.83, 0.067, 0.0014, 0.11
at s = 1, 1e-2, 1e-4, 1e-6. Losses before and after are taken at the same draws. H is K-FAC or EK-FAC, over the layers that these
cover; the paper takes the diagonal of the Fisher matrix and one step.

Every query needs a forward pass over the training set at its own parameters, which no other query shares.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attribution.estimators.unlearning_blocks import QueryAtDraws, UnlearningEstimator
from attribution.gradients.per_example import LayerGradients, PerExampleGradients

SHARED = ("attribution.estimators.unlearning_blocks",)


@dataclass(frozen=True, kw_only=True)
class Unlearning(UnlearningEstimator):
    """The rise of the loss of each training image when the query is unlearned.

    ``curvature``: K-FAC or EK-FAC; ``damping``: λ, added to the curvature of the mean loss; ``steps``: J; ``amount``: s. The
    draws of the two sides are independent. ``flips``: mirror training images at random, as training did.
    """

    NAME = "Unlearning"
    VERSION = 1

    @property
    def signs(self) -> tuple[int, ...]:
        return (1,)

    @property
    def passes_of_ascent(self) -> float:
        return 1.0

    def ascent(self, per_example: PerExampleGradients, query: QueryAtDraws) -> LayerGradients:
        return per_example.capture(self.measurement, *query).mean()

    def scores_of(self, losses: Mapping[int, np.ndarray], size: float) -> np.ndarray:
        return (losses[1].mean(1) - losses[0].mean(1)) / size
