"""Reverse-mode differentiation of a training run, step by step (Engstrom et al. 2025, "Optimizing ML Training with Metagradient
Descent", arXiv 2503.13751).

A step takes the parameters θ and the optimizer's state to the next ones by the gradient

    g(θ, w) = 1/B Σ_b w_b ∇ℓ_b(θ),     clipped: g̃ = min(1, c/(‖g‖ + 1e-6)) g

at its B visits, with weights w = 1. The adjoint of a number is its derivative with respect to the parameters and the state after a
step. Through the step and the clipping it becomes the derivative u with respect to g, and then

    ∂/∂w_b = 1/B ⟨u, ∇ℓ_b⟩,     the adjoint of θ gains H u,  H = 1/B Σ_b ∇²ℓ_b

Both are derivatives of ⟨u, g⟩, so one double backward gives both, at any number of visits.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.images import Images
from attribution.measurements import Measure
from attribution.training.optimizer_steps import GRADIENT, PARAMETERS, State, pulled_back
from attribution.training.record import TrainingRecord
from attribution.training.replay import visit_losses

SHARED = ("attribution.training.optimizer_steps", "attribution.training.replay")


class ReverseSteps:
    """The reverse of the steps of one training run, for Q numbers at a time.

    ``network``, as it was in training (``Rerun.network``), computes in the precision of its parameters, which are overwritten.
    ``kind`` and ``settings`` are those of ``optimizer_settings``, ``clip`` is that of ``Recipe``.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Measure,
        record: TrainingRecord,
        images: Images,
        kind: type[torch.optim.Optimizer],
        settings: Mapping[str, Any],
        clip: float | None,
    ):
        self.network, self.objective, self.record, self.images = network.train(), objective, record, images
        self.kind, self.settings, self.clip = kind, settings, clip
        self.parameters = [p for p in network.parameters() if p.requires_grad]

    def __call__(self, step: int, before: State, adjoints: State) -> tuple[dict[str, Tensor], np.ndarray, Tensor]:
        """Take step ``step`` (0-based) back.

        Args:
            before: the parameters and the optimizer's state before the step, ``[P]`` by name.
            adjoints: the derivatives with respect to those after it, ``[Q, P]`` by name.

        Returns:
            The derivatives with respect to those before it, the visits ``[B]``, and the derivatives with respect to the weight of
            the loss of each visit, ``[Q, B]``.

        Raises:
            RuntimeError: the loss is not that of the record.
        """
        visits = self.record.visits_of_step(step)
        row = self.record.step_table[self.record.step_table["step"] == step][0]
        put(before[PARAMETERS], self.parameters)
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH):
            torch.manual_seed(int(row["dropout_seed"]))
            losses = visit_losses(self.network, self.objective, self.images, visits)
            if not math.isclose(found := float(losses.detach().mean()), float(row["loss"]), rel_tol=1e-3):
                raise RuntimeError(f"the loss of step {step} is {found:g}, and {row['loss']:g} in the record: the network differs")
            shares = torch.full_like(losses, 1 / len(visits)).requires_grad_()
            gradients = torch.autograd.grad(losses, self.parameters, shares, create_graph=True)
            gradient = torch.cat([g.detach().reshape(-1) for g in gradients])
            rate, norm = float(row["learning_rate"][0]), float(gradient.norm())
            factor = 1.0 if self.clip is None else min(1.0, self.clip / (norm + _EPSILON))
            pulled = pulled_back(self.kind, self.settings, rate, step, before, factor * gradient, adjoints)
            directions = self._through_clipping(pulled.pop(GRADIENT), gradient, norm, factor)
            of_weights = torch.empty(len(directions), len(visits), dtype=gradient.dtype, device=gradient.device)
            for q, direction in enumerate(directions):
                parts = split(direction, self.parameters)
                of_shares, *products = torch.autograd.grad(
                    gradients, [shares, *self.parameters], parts, retain_graph=True, materialize_grads=True
                )
                of_weights[q] = of_shares / len(visits)
                pulled[PARAMETERS][q] += torch.cat([product.reshape(-1) for product in products])
        return pulled, visits, of_weights

    def _through_clipping(self, adjoints: Tensor, gradient: Tensor, norm: float, factor: float) -> Tensor:
        """From derivatives ``[Q, P]`` with respect to the clipped gradient to those with respect to the gradient."""
        if self.clip is None or factor == 1:
            return adjoints
        along = adjoints @ gradient * (-self.clip / (norm + _EPSILON) ** 2 / norm)
        return factor * adjoints + along[:, None] * gradient


_EPSILON = 1e-6
"""As in ``torch.nn.utils.clip_grad_norm_``."""


def split(vector: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """A vector ``[P]`` in the shapes of the ``parameters``."""
    pieces = vector.split([p.numel() for p in parameters])
    return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]


@torch.no_grad()
def put(vector: Tensor, parameters: list[nn.Parameter]) -> None:
    """Overwrite the ``parameters`` with a vector ``[P]``."""
    for parameter, piece in zip(parameters, split(vector, parameters), strict=True):
        parameter.copy_(piece)
