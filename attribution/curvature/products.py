"""Products of curvature matrices of mini-batches with vectors, for methods that never form the matrix (LiSSA).

Vectors are joint blocks of layers, ``[Q, rows, columns]`` each: all parameters together are one vector, norm layers included.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.curvature.pseudo import OutputProbe
from attribution.diffusion import denoiser, eval_mode
from attribution.gradients.layers import Layer, pieces
from attribution.gradients.passes import dot
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.images.draws import Draws
from attribution.measurements import Measure

SHARED = ("attribution.gradients.passes",)


@dataclass(frozen=True)
class CurvatureProduct(ABC):
    """``1/(B K) Σ_{b,k} H_{b,k} v_q`` for the ``draws [B, K]`` of the images ``x0 [B, C, H, W]`` and vectors v ``[Q, ..]``."""

    VERSION: ClassVar[int] = 1

    @abstractmethod
    def passes(self, queries: int) -> float:
        """Forward and backward passes for each draw."""

    @abstractmethod
    def __call__(
        self, per_example: PerExampleGradients, objective: Measure, x0: Tensor, draws: Draws, vectors: LayerGradients
    ) -> LayerGradients: ...


@dataclass(frozen=True)
class Hessian(CurvatureProduct):
    """H_{b,k} = ∇²ℓ, the Hessian of the training loss, by double backward (Pearlmutter 1994), one vector after another.

    It has negative eigenvalues wherever the loss is not convex.
    """

    NAME = "Hessian"
    VERSION = 1

    def passes(self, queries: int) -> float:
        return 2.0 * (1 + queries)

    def __call__(
        self, per_example: PerExampleGradients, objective: Measure, x0: Tensor, draws: Draws, vectors: LayerGradients
    ) -> LayerGradients:
        layers, model = per_example.layers, per_example.model
        total = {name: torch.zeros_like(block) for name, block in vectors.items()}
        single = _single(draws)
        images = x0.to(per_example.parameters[0].dtype).repeat_interleave(draws.count, 0)
        # Attention's fused kernels have no second derivative.
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(model), sdpa_kernel(SDPBackend.MATH):
            for some in pieces(len(single), per_example.batch_size):
                costs = objective(denoiser(model), *objective.inputs(images[some], single.rows(some)))
                gradients = torch.autograd.grad(costs.sum(), per_example.parameters, create_graph=True, materialize_grads=True)
                for q in range(len(next(iter(vectors.values())))):
                    v = [part for name, layer in layers.items() for _, part in layer.split(vectors[name][q])]
                    product = torch.autograd.grad(
                        gradients, per_example.parameters, v, retain_graph=True, materialize_grads=True
                    )  # fmt: skip
                    for name, block in _blocks(layers, product).items():
                        total[name][q] += block
        return {name: block / len(single) for name, block in total.items()}


@dataclass(frozen=True)
class GaussNewton(CurvatureProduct):
    """H_{b,k} = g gᵀ, g = Jᵀ u, u ~ N(0, (2/d) I): its mean is the Gauss-Newton matrix ``Jᵀ (2/d) J`` of the training loss.

    One pass a draw serves any number of vectors. No eigenvalue is negative.
    """

    NAME = "GaussNewton"
    VERSION = 1

    def passes(self, queries: int) -> float:
        return 1.0

    def __call__(
        self, per_example: PerExampleGradients, objective: Measure, x0: Tensor, draws: Draws, vectors: LayerGradients
    ) -> LayerGradients:
        single, images = _single(draws), x0.repeat_interleave(draws.count, 0)
        total = {name: torch.zeros_like(block) for name, block in vectors.items()}
        for some in pieces(len(single), per_example.batch_size):
            g = per_example.capture(OutputProbe(objective.schedule), images[some], single.rows(some)).mean()
            along = dot(vectors, g)  # ⟨v_q, g_b⟩
            for name, block in g.items():
                total[name] += (along @ block.flatten(1)).view_as(total[name])
        return {name: block / len(single) for name, block in total.items()}


def _single(draws: Draws) -> Draws:
    """Every draw an example of its own."""
    return Draws(*(field.flatten().unsqueeze(1) for field in (draws.timestep, draws.noise_seed, draws.flip)))


def _blocks(layers: Mapping[str, Layer], parameters: tuple[Tensor, ...]) -> LayerGradients:
    """The parameters' tensors, in order of the layers, as joint blocks ``[rows, columns]``."""
    tensors = iter(parameters)
    return {
        name: torch.cat([next(tensors).reshape(layer.block[0], -1) for _ in layer.parameters], 1) for name, layer in layers.items()
    }
