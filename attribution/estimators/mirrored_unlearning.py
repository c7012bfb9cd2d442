"""Mirrored unlearning: the query is unlearned and learned in steps of opposite signs, and the two models' losses are compared.

    θ±_{j+1} = θ±_j ± s/(N J) (H + λI)⁻¹ ∇m̄(q; θ±_j),   j = 0..J-1,         m̄ = 1/K Σ_k min(m_k, b_k)
    τ[q, z] = N/s · 1/K Σ_k (ℓ_k(z; θ⁺) - ℓ_k(z; θ⁻)) / (ℓ_k(z; θ⁺) + ℓ_k(z; θ⁻))

Every term of the second line compares the models at one draw, timestep and noise included, and weights all timesteps alike. s =
``amount`` is the weight with which q is removed and added, in training images. With s → 0, τ is influence on the logarithms of the
losses, ∇m̄(q)ᵀ (H + λI)⁻¹ 1/K Σ_k ∇ℓ_k(z)/ℓ_k(z), scale included; with ``normalized=False`` the terms are (ℓ⁺_k - ℓ⁻_k)/2, and the
limit is influence itself. With one step, both differences are central: their error is O(s²), that of ``unlearning`` O(s).

From MUCS (Serrà et al., NeurIPS 2026, "Training Data Attribution in Diffusion Models via Mirrored Unlearning and Noise-Consistent
Skew", arXiv 2605.17938, and its public code) are the bound, which leaves out draws whose cost has reached that of a null model, and
the normalized skew at equal noise. There, the query's cost enters the training loss with a negative weight: AdamW minimizes ℓ of
batches of training images less 0.2 min(m, b) until m is within 5 % of b, b is the mean loss of an untrained network, and the
unlearned model is compared with the trained one (``mirrored=False``). Ours are the model that learns the query, steps of a given
size, preconditioned by K-FAC or EK-FAC in place of the batches of training images (as in ``unlearning``), and b_k, the cost of a
network that outputs 0, at the same draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError
from attribution.diffusion import denoiser, eval_mode
from attribution.estimators.scores import Scores
from attribution.estimators.unlearning_blocks import TRAINED, QueryAtDraws, UnlearningEstimator
from attribution.execution import FORWARD_TIME, ranges
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.images import ImageSet
from attribution.measurements import SquareNorm
from attribution.models.trained import Trained
from attribution.nodes import Node
from attribution.transfers import to_device

SHARED = ("attribution.estimators.unlearning_blocks",)


@dataclass(frozen=True, kw_only=True)
class MirroredUnlearning(UnlearningEstimator):
    """The skew of the loss of each training image between a model that unlearned the query and one that learned it.

    ``bounded``: leave out the query's draws at which its cost has reached that of a network that outputs 0. ``normalized``: divide
    the difference of losses at a draw by their sum. ``mirrored``: False compares with the trained model in place of the one that
    learned the query, for half of the passes.

    Raises:
        ValueError: (when computed) all draws of a query are left out.
    """

    NAME = "MirroredUnlearning"
    VERSION = 1

    bounded: bool = True
    normalized: bool = True
    mirrored: bool = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("bounded", "normalized", "mirrored"):
            if not isinstance(getattr(self, name), bool):
                raise FieldError(self, name, "must be true or false")

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        if self.bounded and isinstance(self.measurement, SquareNorm):
            raise FieldError(self, "bounded", "an output of 0 has the smallest square norm, the bound of all draws: set false")
        return super().scores_of_model(trained, train, queries)

    @property
    def signs(self) -> tuple[int, ...]:
        return (1, -1) if self.mirrored else (1,)

    @property
    def passes_of_ascent(self) -> float:
        return 1 + FORWARD_TIME * self.bounded

    def ascent(self, per_example: PerExampleGradients, query: QueryAtDraws) -> LayerGradients:
        inside = self._below_bound(per_example, query) if self.bounded else None
        return per_example.capture(self.measurement, *query).mean(inside)

    def no_gradient(self, query: int) -> ValueError:
        if not self.bounded:
            return super().no_gradient(query)
        message = f"at all draws of query {query} a network that outputs 0 costs no more, so that none is left: set false"
        return FieldError(self, "bounded", f"{message}, take more draws, or train longer")

    def scores_of(self, losses: Mapping[int, np.ndarray], size: float) -> np.ndarray:
        high, low = losses[1], losses[-1 if self.mirrored else TRAINED]
        change, total = high - low, high + low
        if self.normalized:
            change = np.divide(2 * change, total, out=np.zeros_like(change), where=total != 0)
        return change.mean(1) / (size * len(self.signs))

    def _below_bound(self, per_example: PerExampleGradients, query: QueryAtDraws) -> Tensor:
        """1 at the draws whose cost is below that of a network that outputs 0, else 0: ``[1, K]``."""
        measure, (x0, draws, condition), parameter = self.measurement, query, per_example.parameters[0]
        given = None if condition is None else to_device(condition, parameter.device)
        inputs = measure.inputs(to_device(x0, parameter.device, parameter.dtype), draws, given)
        passes = ranges(0, draws.count, per_example.inputs_per_pass(measure, *query))
        with torch.inference_mode(), eval_mode(per_example.model):
            costs = torch.cat([measure(denoiser(per_example.model), *inputs.rows(slice(*rows))) for rows in passes])
            below = costs < measure(_zero, *inputs)
        return below.to(parameter.dtype).unsqueeze(0).clone()


def _zero(x: Tensor, time: Tensor, condition: Tensor | None = None, /) -> Tensor:
    """The output of a network that has learned nothing."""
    return torch.zeros_like(x)
