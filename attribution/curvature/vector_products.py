"""Products of curvature matrices of mini-batches with vectors, for methods that never form the matrix (LiSSA).

Q vectors are given as the joint blocks of all layers, including norm layers, each ``[Q, rows, columns]``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.curvature.pseudo_gradients import OutputProbe
from attribution.diffusion import denoiser, eval_mode
from attribution.gradients.inner_products import products
from attribution.gradients.layers import Layer, pieces
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.images.draws import Draws
from attribution.measurements import Measure
from attribution.measurements.base import per_draw

SHARED = (
    "attribution.curvature.pseudo_gradients",
    "attribution.gradients.inner_products",
    "attribution.gradients.network_cache",
    "attribution.measurements.base",
)


@dataclass(frozen=True)
class CurvatureProduct(ABC):
    """``1/(B K) Σ_{b,k} H_{b,k} v_q`` for the ``draws [B, K]`` of the images ``x0 [B, C, H, W]`` and vectors v ``[Q, ..]``."""

    VERSION: ClassVar[int] = 1

    @abstractmethod
    def passes(self, queries: int) -> float:
        """The number of forward and backward passes for each draw."""

    @abstractmethod
    def held(self, draws: int) -> int:
        """The number of gradients in memory beside the vectors and the products, if those of ``draws`` draws fit into a block."""

    @abstractmethod
    def __call__(
        self,
        per_example: PerExampleGradients,
        objective: Measure,
        x0: Tensor,
        draws: Draws,
        vectors: LayerGradients,
        condition: Tensor | None = None,
        sample: int = 0,
    ) -> LayerGradients:
        """The products, one block per layer ``[Q, rows, columns]``; ``condition [B, ...]``.

        A product that samples has independent samples of H_{b,k} for different values of ``sample``.
        """


@dataclass(frozen=True)
class Hessian(CurvatureProduct):
    """H_{b,k} = ∇²ℓ, the Hessian of the training loss, by double backward (Pearlmutter 1994), one vector after another.

    It has negative eigenvalues where the loss is not convex. It is a function of the draw: nothing is sampled.
    """

    NAME = "Hessian"
    VERSION = 1

    def passes(self, queries: int) -> float:
        return 2.0 * (1 + queries)

    def held(self, draws: int) -> int:
        return 3  # the gradient, a vector as parameters, and its product

    def __call__(
        self,
        per_example: PerExampleGradients,
        objective: Measure,
        x0: Tensor,
        draws: Draws,
        vectors: LayerGradients,
        condition: Tensor | None = None,
        sample: int = 0,
    ) -> LayerGradients:
        layers, model = per_example.layers, per_example.model
        total = {name: torch.zeros_like(block) for name, block in vectors.items()}
        inputs = objective.inputs(x0.to(per_example.parameters[0].dtype), draws, condition)
        # Attention's fused kernels have no second derivative.
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(model), sdpa_kernel(SDPBackend.MATH):
            for rows in pieces(len(inputs.t), per_example.batch_size):
                costs = objective(denoiser(model), *inputs.rows(rows))
                gradients = torch.autograd.grad(costs.sum(), per_example.parameters, create_graph=True, materialize_grads=True)
                for q in range(len(next(iter(vectors.values())))):
                    v = [part for name, layer in layers.items() for _, part in layer.split(vectors[name][q])]
                    product = torch.autograd.grad(
                        gradients, per_example.parameters, v, retain_graph=True, materialize_grads=True
                    )  # fmt: skip
                    for name, block in _blocks(layers, product).items():
                        total[name][q] += block
        return {name: block.div_(len(inputs.t)) for name, block in total.items()}


@dataclass(frozen=True)
class GaussNewton(CurvatureProduct):
    """H_{b,k} = g gᵀ with g = Jᵀ v, v ~ N(0, (2 w_t / d) I): its mean is the Gauss-Newton matrix ``Jᵀ (2 w_t / d) J``.

    For ``sample=0``, v is that of ``pseudo_gradients``. One pass per draw serves any number of vectors. No eigenvalue is negative.
    """

    NAME = "GaussNewton"
    VERSION = 2

    def passes(self, queries: int) -> float:
        return 1.0

    def held(self, draws: int) -> int:
        return draws

    def __call__(
        self,
        per_example: PerExampleGradients,
        objective: Measure,
        x0: Tensor,
        draws: Draws,
        vectors: LayerGradients,
        condition: Tensor | None = None,
        sample: int = 0,
    ) -> LayerGradients:
        single, images, condition = draws.single(), x0.repeat_interleave(draws.count, 0), per_draw(condition, draws)
        probe = OutputProbe(objective.process, sample=sample)
        total = {name: torch.zeros_like(block) for name, block in vectors.items()}
        for rows in pieces(len(single), min(per_example.batch_size, per_example.gradients_at_once)):
            condition_of_rows = None if condition is None else condition[rows]
            g = per_example.capture(probe, images[rows], single.rows(rows), condition_of_rows).mean()
            of_pairs = products(vectors, g)  # ⟨v_q, g_b⟩
            for name in g:
                total[name] += (of_pairs @ g[name].flatten(1)).view_as(total[name])
            del g  # before those of the next draws are made
        return {name: block.div_(len(single)) for name, block in total.items()}


def _blocks(layers: Mapping[str, Layer], parameters: tuple[Tensor, ...]) -> LayerGradients:
    """Join tensors of parameters, in the order of the layers, to the layers' blocks ``[rows, columns]``."""
    tensors = iter(parameters)
    return {name: layer.join([next(tensors) for _ in layer.parameters]) for name, layer in layers.items()}
