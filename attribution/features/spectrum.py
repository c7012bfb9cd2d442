"""The eigendecomposition of training features that a whole list of dampings shares.

With features Φ ``[N, k]`` of N training images, ``C = ΦᵀΦ/N = V Λ Vᵀ`` (TRAK, Park et al. 2023). Where N ≤ k, or features are whole
gradients, that of the Gram matrix ``K = ΦΦᵀ = U (NΛ) Uᵀ`` gives the same numbers:

    φ(x)ᵀ (C + λI)⁻¹ φ(z) = Σ_j (Vᵀφ(x))_j (Vᵀφ(z))_j / (Λ_j + λ) = N k_xᵀ (K + NλI)⁻¹ e_z = Σ_j (Uᵀk_x)_j U_zj / (Λ_j + λ)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attribution.curvature.basis import eigh
from attribution.features.features import Features, InnerProducts
from attribution.nodes import Arrays, Cost, Get, Node

SHARED = ("attribution.curvature.basis",)

DOUBLE = 8
RESOLUTION = 1e-13
"""What float64 leaves of an eigenvalue, as a share of the largest one."""


@dataclass(frozen=True, eq=False)
class Eigenfeatures(Arrays):
    """``values [r]`` Λ; ``vectors``: V ``[k, r]`` or, in the Gram form, U ``[N, r]``; ``squares [N]``: ‖φ(z)‖²; all float64.

    ``gram`` (a bool) says which form it is.
    """

    values: np.ndarray
    vectors: np.ndarray
    squares: np.ndarray
    gram: np.ndarray


@dataclass(frozen=True)
class Spectrum(Node[Eigenfeatures]):
    """The eigendecomposition of the features of a training set."""

    NAME = "Spectrum"
    VERSION = 1
    TITLE = "spectrum of the features"
    ARTIFACT = Eigenfeatures

    train: Features

    def parts(self, get: Get) -> Sequence[Node]:
        return [InnerProducts(self.train, self.train)] if self.form_is_gram else self.train.shards

    def cost(self) -> Cost:
        N = self.train.count
        return Cost(memory=4 * DOUBLE * N**2, disk=DOUBLE * N**2)

    def compute(self, get: Get) -> Eigenfeatures:
        device = self.train.execution.torch_device()
        if self.form_is_gram:
            gram = get(InnerProducts(self.train, self.train))
            values, vectors = eigh(
                torch.from_numpy(np.array(gram.values) / len(gram.values)).to(device), "the Gram matrix of features"
            )
            return Eigenfeatures(values.cpu().numpy(), vectors.cpu().numpy(), np.array(gram.right), np.array(True))
        covariance, squares = 0, []
        for block in self.train.blocks(get):
            rows = torch.from_numpy(np.array(block)).double().to(device)
            covariance = covariance + rows.T @ rows
            squares.append(rows.square().sum(1).cpu().numpy())
        values, vectors = eigh(covariance / self.train.count, "the covariance of features")  # pyright: ignore[reportArgumentType]
        return Eigenfeatures(values.cpu().numpy(), vectors.cpu().numpy(), np.concatenate(squares), np.array(False))

    @property
    def form_is_gram(self) -> bool:
        """N ≤ k, or nothing is projected."""
        return not self.train.stored or self.train.count <= self.train.size


def sides(get: Get, queries: Features, train: Features, eigen: Eigenfeatures) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in the eigenbasis, whose products over Λ + λ are scores: queries' ``[Q, r]`` and training images' ``[N, r]``."""
    if eigen.gram:
        return get(InnerProducts(queries, train)).values @ eigen.vectors, np.asarray(eigen.vectors)
    left, right = (np.concatenate([block @ eigen.vectors for block in side.blocks(get)]) for side in (queries, train))
    return left, right
