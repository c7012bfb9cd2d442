"""Two-sided projections, layer by layer: P = P_out ⊗ P_in (LoGra: Choe et al. 2024).

For a layer's gradient g = Σ_r b_r a_rᵀ over positions r,

    φ = P_outᵀ g P_in = Σ_r (P_outᵀ b_r)(P_inᵀ a_r)ᵀ

so that the inputs a and the output gradients b can be projected without forming the gradient. The patches of a convolution are not
formed either, because P_inᵀ a_r is a convolution with the columns of P_in. The features of the layers are concatenated.

√k_out P_out and √k_in P_in have normal entries. A side is not projected if its length is at most its k. With two projected sides,
⟨φ(x), φ(y)⟩ of one layer with gradients G and H has the variance

    (b + c)/k_in + (a + c)/k_out + (a + b + ‖G‖²‖H‖² + ⟨G, H⟩²)/(k_in k_out)     a = ‖G Hᵀ‖², b = ‖Gᵀ H‖², c = tr (Hᵀ G Hᵀ G)

which is larger than that of a dense projection to k_in k_out features: for gradients of low rank, it is about
(2/k_in + 2/k_out) ⟨G, H⟩². The terms with the k of a side vanish if that side is not projected.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from attribution.checks import whole
from attribution.gradients.contraction import Contraction
from attribution.gradients.convolution import ConvLayer
from attribution.gradients.inner_products import finite
from attribution.gradients.layers import Layer, LinearLayer
from attribution.gradients.per_example import LayerGradients
from attribution.images import philox
from attribution.projection.base import LayerShapes, Projection, Projector
from attribution.projection.random_matrices import normal_rows

SHARED = ("attribution.gradients.convolution", "attribution.projection.base", "attribution.projection.random_matrices")


@dataclass(frozen=True)
class Kronecker(Projection):
    """A projection to min(rows, ``k_out``) · min(columns, ``k_in``) features for every layer."""

    NAME = "Kronecker"
    VERSION = 1
    REDUCIBLE = "the same seed, and k_out and k_in that are not larger"

    k_out: int
    k_in: int
    seed: int = 0

    def __post_init__(self):
        whole(self, "k_out", least=1)
        whole(self, "k_in", least=1)

    def size(self, layers: LayerShapes) -> int:
        return sum(rows * columns for rows, columns in self.blocks(layers).values())

    def blocks(self, layers: LayerShapes) -> dict[str, tuple[int, int]]:
        """Return layer name → shape (rows, columns) of its projected gradient, sorted by name."""
        return {name: (min(rows, self.k_out), min(columns, self.k_in)) for name, (rows, columns) in sorted(layers.items())}

    def start(
        self, layers: LayerShapes, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "KroneckerProjector":
        return KroneckerProjector(self, layers, device, dtype)

    def _reduce_to(self, features: Tensor, smaller: Projection, layers: LayerShapes) -> Tensor | None:
        if not (isinstance(smaller, Kronecker) and smaller.seed == self.seed):
            return None
        if smaller.k_out > self.k_out or smaller.k_in > self.k_in:
            return None
        reduced, sizes = [], [rows * columns for rows, columns in self.blocks(layers).values()]
        for (name, block), part in zip(self.blocks(layers).items(), features.split(sizes, -1), strict=True):
            rows, columns = layers[name]
            part = _reduce_side(part.unflatten(-1, block), self.k_in, smaller.side(name, "in", columns), columns)
            part = _reduce_side(part.mT, self.k_out, smaller.side(name, "out", rows), rows).mT
            reduced.append(part.flatten(-2))
        return torch.cat(reduced, -1)

    def side(self, layer: str, name: Literal["out", "in"], length: int) -> Tensor | None:
        """Return P_out or P_in of a layer, ``[length, k]`` float64, or None if this side is not projected.

        ``length`` is the number of rows of the layer's gradient for ``"out"``, and of its columns for ``"in"``.
        """
        k = self.k_out if name == "out" else self.k_in
        if length <= k:
            return None
        return normal_rows(philox.key(self.seed, "projection", layer, name), torch.arange(length), k).double() / math.sqrt(k)


class KroneckerProjector(Projector):
    """Projects gradients, or projects the calls of layers without forming their gradients."""

    def __init__(self, projection: Kronecker, layers: LayerShapes, device: torch.device | str, dtype: torch.dtype):
        super().__init__(projection, layers, device, dtype)
        self.blocks: Mapping[str, tuple[int, int]] = projection.blocks(layers)
        """Layer name → shape (rows, columns) of its projected gradient."""
        self._sides = {
            name: [
                None if side is None else side.to(self.device, self.dtype)
                for side in (projection.side(name, "out", rows), projection.side(name, "in", columns))
            ]
            for name, (rows, columns) in self.layers.items()
        }

    def contract(self, name: str, layer: Layer, a: Tensor, b: Tensor, K: int) -> Tensor:
        """Return the projection of ``layer.contract(a, b, K)``, ``[N / K, *blocks[name]]``.

        ``name`` is the name of the gradients, which tied layers share.
        """
        P_out, P_in = self._sides[name]
        a, b = a.to(self.dtype) if a.is_floating_point() else a, b.to(self.dtype)
        if P_in is None or not _factors_are_cheaper(layer, P_out, P_in):
            return _two_sided(layer.contract(a, b, K), P_out, P_in)
        a, b = _projected_inputs(layer, a, P_in), _projected_outputs(layer, b, P_out)
        return b.reshape(len(b) // K, -1, b.shape[2]).mT @ a.reshape(len(a) // K, -1, a.shape[2])

    @property
    def contraction(self) -> Contraction:
        return self

    def features_of(self, blocks: LayerGradients) -> Tensor:
        return finite(self._join(blocks), blocks)

    def _join(self, blocks: LayerGradients) -> Tensor:
        return torch.cat([blocks[name].flatten(1) for name in self.layers], 1)

    def _project(self, gradients: LayerGradients) -> Tensor:
        return self._join({name: _two_sided(gradient, *self._sides[name]) for name, gradient in gradients.items()})


def _two_sided(gradient: Tensor, P_out: Tensor | None, P_in: Tensor | None) -> Tensor:
    """Return P_outᵀ g P_in for ``gradient [B, rows, columns]``; None is the identity."""
    if P_in is not None:
        gradient = gradient @ P_in
    return gradient if P_out is None else P_out.T @ gradient


def _factors_are_cheaper(layer: Layer, P_out: Tensor | None, P_in: Tensor) -> TypeGuard[LinearLayer | ConvLayer]:
    """Whether projecting both sides before their product takes fewer multiplications per position than forming the gradient."""
    if not isinstance(layer, LinearLayer | ConvLayer) or (isinstance(layer, ConvLayer) and layer.module.groups > 1):
        return False
    rows, columns = layer.block
    k_out, k_in = (rows if P_out is None else P_out.shape[1]), P_in.shape[1]
    return columns * k_in + (0 if P_out is None else rows * k_out) + k_out * k_in < rows * columns


def _projected_inputs(layer: LinearLayer | ConvLayer, a: Tensor, P_in: Tensor) -> Tensor:
    """Return P_inᵀ a of every position, ``[N, R, k_in]``."""
    weight, bias = (P_in[:-1].T, P_in[-1]) if layer.bias else (P_in.T, None)
    if isinstance(layer, LinearLayer):
        return F.linear(a.reshape(len(a), -1, a.shape[-1]), weight, bias)
    conv = layer.module
    a = layer.padded(a)
    return F.conv2d(a, weight.reshape(-1, *conv.weight.shape[1:]), bias, conv.stride, 0, conv.dilation).flatten(2).mT


def _projected_outputs(layer: LinearLayer | ConvLayer, b: Tensor, P_out: Tensor | None) -> Tensor:
    """Return P_outᵀ b of every position, ``[N, R, k_out]``."""
    b = b.reshape(len(b), -1, b.shape[-1]) if isinstance(layer, LinearLayer) else b.flatten(2).mT
    return b if P_out is None else b @ P_out


def _reduce_side(x: Tensor, k: int, P: Tensor | None, length: int) -> Tensor:
    """Convert the last dimension of ``x`` to the features of a smaller side ``P [length, k']``; None leaves it as it is.

    The last dimension is either not projected (``length`` numbers) or already projected to ``k`` numbers.
    """
    if P is None:
        return x
    if x.shape[-1] == length:
        return x @ P.to(x)
    return x[..., : P.shape[1]] * math.sqrt(k / P.shape[1])
