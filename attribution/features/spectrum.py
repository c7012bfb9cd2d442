"""The eigendecomposition of the features of a training set, which serves any number of dampings.

With features Φ ``[N, k]`` of N training images, ``C = ΦᵀΦ/N = V Λ Vᵀ`` (TRAK, Park et al. 2023). If N ≤ k, or if features are whole
gradients, the Gram matrix ``K = ΦΦᵀ = U (NΛ) Uᵀ`` is decomposed instead, with the same result:

    φ(x)ᵀ (C + λI)⁻¹ φ(z) = Σ_j (Vᵀφ(x))_j (Vᵀφ(z))_j / (Λ_j + λ) = N k_xᵀ (K + NλI)⁻¹ e_z = Σ_j (Uᵀk_x)_j U_zj / (Λ_j + λ)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attribution.curvature.basis import EIGH_COPIES, eigh
from attribution.double_precision import double_device
from attribution.execution import FLOAT64_BYTES
from attribution.features.features import Features
from attribution.features.gram import InnerProducts
from attribution.nodes import Arrays, Cost, Get, Node

SHARED = ("attribution.curvature.basis", "attribution.features.gram")

RESOLUTION = 1e-13
"""The precision of an eigenvalue in float64, relative to the largest one."""


@dataclass(frozen=True, eq=False)
class Eigenfeatures(Arrays):
    """``values [r]`` Λ; ``vectors``: V ``[k, r]`` or, in the Gram form, U ``[N, r]``; ``squares [N]``: ‖φ(z)‖²; all float64.

    ``gram`` is True for the Gram form.
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
        return [InnerProducts(self.train, self.train)] if self.uses_gram else self.train.shards

    def cost(self) -> Cost:
        n = self.train.count if self.uses_gram else self.train.size
        products = 0 if self.uses_gram else 2 * self.train.count * n**2  # float64 takes twice as long
        return Cost(products=products, cubes=n**3, memory=EIGH_COPIES * FLOAT64_BYTES * n**2, disk=FLOAT64_BYTES * n**2)

    def compute(self, get: Get) -> Eigenfeatures:
        device = double_device(self.train.execution.torch_device())
        if self.uses_gram:
            gram = get(InnerProducts(self.train, self.train))
            values, vectors = eigh(
                torch.from_numpy(np.array(gram.values) / len(gram.values)).to(device), "the Gram matrix of features"
            )
            return Eigenfeatures(values.cpu().numpy(), vectors.cpu().numpy(), np.array(gram.right_squares), np.array(True))
        covariance, squares = 0, []
        for block in self.train.blocks(get):
            rows = torch.from_numpy(np.array(block)).double().to(device)
            covariance = covariance + rows.T @ rows
            squares.append(rows.square().sum(1).cpu().numpy())
        values, vectors = eigh(covariance / self.train.count, "the covariance of features")  # pyright: ignore[reportArgumentType]
        return Eigenfeatures(values.cpu().numpy(), vectors.cpu().numpy(), np.concatenate(squares), np.array(False))

    @property
    def uses_gram(self) -> bool:
        """Whether the Gram matrix is decomposed: N ≤ k, or there is no projection."""
        return not self.train.stored or self.train.count <= self.train.size


def sides(get: Get, queries: Features, train: Features, eigen: Eigenfeatures) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of the queries ``[Q, r]`` and of the training images ``[N, r]`` in the eigenbasis.

    Scores are the sums over r of their products, divided by Λ + λ.
    """
    if eigen.gram:
        return get(InnerProducts(queries, train)).values @ eigen.vectors, np.asarray(eigen.vectors)
    left, right = (np.concatenate([block @ eigen.vectors for block in side.blocks(get)]) for side in (queries, train))
    return left, right
