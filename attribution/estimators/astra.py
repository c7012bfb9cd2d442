"""ASTRA (Wang et al. 2025, "Better Training Data Attribution via Better Inverse Hessian-Vector Products", arXiv 2507.14740).

Neumann iterations as in LiSSA, preconditioned by EK-FAC: with P = Q (Λ + λ) Qᵀ, EK-FAC's damped curvature,

    u_j = u_{j-1} + P⁻¹ (v - (H_batch + λI) u_{j-1})/σ,      u_0 = P⁻¹ v/σ,      u_J → (H + λI)⁻¹ v

With σ = 1 and no step this is EK-FAC. The steps add what EK-FAC leaves out: the curvature between layers, and within those where H
is not a Kronecker product. Where P is near H, all directions converge after about σ steps. In LiSSA, those with a small curvature
take σ/λ steps.

In the coordinates w = (Λ + λ)^½ Qᵀ u this is the iteration of LiSSA with P^-½ (H_batch + λI) P^-½ for H_batch + λI, so
``lissa_recursion`` computes it. σ, the inverse of a step, has to be at least half of the largest eigenvalue of this matrix.
Gradients of different layers are correlated, which makes it larger than 1 for any batch. For a batch of B samples g gᵀ of the
Gauss-Newton matrix it is also at least the largest ‖P^-½ g‖²/B; the mean of ‖P^-½ g‖² is d = Σ Λ/(Λ + λ), and at the lowest
timesteps it can be ten times as large. Steps of one size, and one λ in P and H, are **our** choices.

Only the layers that EK-FAC covers enter (Linear, Conv2d, Embedding), as in K-FAC influence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from attribution.checks import FieldError, positive
from attribution.curvature.basis import Basis, KroneckerBasis
from attribution.curvature.kfac import KroneckerCurvature
from attribution.curvature.vector_products import CurvatureProduct
from attribution.estimators.lissa import LiSSA
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.images import ImageSet
from attribution.images.draws import Draws
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Get, Node

SHARED = ("attribution.estimators.lissa", "attribution.curvature.basis", "attribution.curvature.vector_products")


@dataclass(frozen=True, kw_only=True)
class ASTRA(LiSSA):
    """LiSSA preconditioned by ``curvature``, K-FAC or EK-FAC. The other settings are those of LiSSA.

    ``damping`` must be above 0; the defaults of ``scale`` and ``depth`` belong to that of the damping.
    """

    NAME = "ASTRA"
    VERSION = 1

    curvature: KroneckerCurvature
    damping: float = 0.1
    scale: float = 64.0
    depth: int = 128
    batch_size: int = 512

    def __post_init__(self):
        super().__post_init__()
        positive(self, "damping")
        if not isinstance(self.curvature, KroneckerCurvature):
            raise FieldError(self, "curvature", "the preconditioner is a product of Kronecker factors: choose kfac or ekfac")

    def preconditioner(self, trained: Trained, train: ImageSet) -> Node[Basis]:
        """The eigenbasis of K-FAC or EK-FAC."""
        return self.curvature.basis(trained, train, self.flips)

    def inverse(
        self, per_example: PerExampleGradients, trained: Trained, train: ImageSet, v: LayerGradients, get: Get
    ) -> LayerGradients:
        basis = get(self.preconditioner(trained, train)).to(next(iter(v.values())).device)
        assert isinstance(basis, KroneckerBasis)
        white = Whitening(basis, self.damping)
        product = Whitened(self.product, white)
        recursion = replace(self.recursion, product=product, damping=0.0)  # λ is in the product
        w = recursion(per_example, trained, get(train), white.of(v))
        return whole(white.back(w), per_example)


def whole(covered: LayerGradients, per_example: PerExampleGradients) -> LayerGradients:
    """Blocks ``[Q, rows, columns]`` of all layers, 0 where there are none in ``covered``."""
    first = next(iter(covered.values()))
    blocks = per_example.blocks.items()
    return {layer: covered[layer] if layer in covered else first.new_zeros(len(first), *shape) for layer, shape in blocks}


class Whitening:
    """The coordinates in which Q (Λ + λ) Qᵀ is the identity."""

    def __init__(self, basis: KroneckerBasis, damping: float):
        self.basis, self.damping = basis, damping
        self.roots: Mapping[str, Tensor] = {layer: (values + damping).sqrt() for layer, values in basis.values.items()}

    def of(self, vectors: LayerGradients) -> LayerGradients:
        """P^-½ v of the layers that the basis covers, in its coordinates."""
        return {layer: rotated / self.roots[layer].to(rotated) for layer, rotated in self.basis.rotations(vectors)}

    def back(self, whitened: LayerGradients) -> LayerGradients:
        """P^-½ w, as blocks of the layers that the basis covers."""
        return self.basis.restored({layer: w / self.roots[layer].to(w) for layer, w in whitened.items()})


@dataclass(frozen=True)
class Whitened(CurvatureProduct):
    """``P^-½ (H_batch + λI) P^-½ w`` for another ``product`` with H_batch."""

    NAME = "Whitened"
    VERSION = 1

    product: CurvatureProduct
    white: Whitening

    def passes(self, queries: int) -> float:
        return self.product.passes(queries)

    def held(self, draws: int) -> int:
        return self.product.held(draws)

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
        u = self.white.back(vectors)
        Hu = self.product(per_example, objective, x0, draws, whole(u, per_example), condition, sample)
        return self.white.of({layer: Hu[layer] + self.white.damping * block for layer, block in u.items()})
