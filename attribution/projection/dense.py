"""Dense projections: the entries of √k P are independent standard normal numbers or fair ±1 (Achlioptas 2003).

With ρ = ⟨x, y⟩, the variance of ⟨Pᵀx, Pᵀy⟩ is (‖x‖²‖y‖² + ρ²)/k for normal entries. For ±1, it is smaller by 2 Σ_i x_i² y_i² / k.
The first k' columns, rescaled by √(k/k'), are the projection to k' features.

P is generated in blocks of rows. Blocks are kept for the next gradients as far as ``memory`` allows.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attribution.checks import number, whole
from attribution.gradients.layers import pieces
from attribution.gradients.per_example import LayerGradients
from attribution.images import philox
from attribution.nodes import execution
from attribution.projection.base import LayerShapes, Projection, Projector
from attribution.projection.random_matrices import NORMALS, SIGNS, normal_rows, rows_at_once, sign_rows

SHARED = ("attribution.gradients.layers", "attribution.projection.base", "attribution.projection.random_matrices")


@dataclass(frozen=True)
class DenseProjection(Projection):
    """A projection to ``k`` features by a dense P.

    ``memory`` is the number of bytes of P to keep between calls; other blocks are generated again. It is not part of the identity.
    """

    REDUCIBLE = "the same kind and seed, and a k that is not larger"
    PER_COUNTER: ClassVar[int]
    """Entries of P from one counter of philox."""

    k: int
    seed: int = 0
    memory: float = execution(default=2e9, compare=False)

    def __post_init__(self):
        whole(self, "k", least=1)
        number(self, "memory", least=0)

    def size(self, layers: LayerShapes) -> int:
        return self.k

    def start(self, layers: LayerShapes, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Projector:
        return _Dense(self, layers, device, dtype)

    def _reduce_to(self, features: Tensor, smaller: Projection, layers: LayerShapes) -> Tensor | None:
        if not (isinstance(smaller, DenseProjection) and replace(smaller, k=self.k) == self and smaller.k <= self.k):
            return None
        return features[..., : smaller.k] * math.sqrt(self.k / smaller.k)

    @abstractmethod
    def entries(self, layer: str, rows: Tensor) -> Tensor:
        """Return ``rows [n]`` of √k P as ``[n, k]`` float32. A row is a position (int64) in the flattened block of ``layer``."""


@dataclass(frozen=True)
class Gaussian(DenseProjection):
    """A dense projection with normal entries."""

    NAME = "Gaussian"
    VERSION = 1
    PER_COUNTER = NORMALS

    def entries(self, layer: str, rows: Tensor) -> Tensor:
        return normal_rows(philox.key(self.seed, "projection", layer), rows, self.k)


@dataclass(frozen=True)
class Rademacher(DenseProjection):
    """A dense projection with entries ±1: one random bit per entry, and many times faster to generate than normal numbers."""

    NAME = "Rademacher"
    VERSION = 1
    PER_COUNTER = SIGNS

    def entries(self, layer: str, rows: Tensor) -> Tensor:
        return sign_rows(philox.key(self.seed, "projection", layer), rows, self.k)


class _Dense(Projector):
    def __init__(self, projection: DenseProjection, layers: LayerShapes, device: torch.device | str, dtype: torch.dtype):
        super().__init__(projection, layers, device, dtype)
        self._projection = projection
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._free = projection.memory
        self._rows = rows_at_once(-(-self.size // projection.PER_COUNTER), self.size, self.device)

    def _project(self, gradients: LayerGradients) -> Tensor:
        examples = len(next(iter(gradients.values())))
        total = torch.zeros(examples, self.size, device=self.device, dtype=self.dtype)
        for layer, gradient in gradients.items():
            gradient = gradient.flatten(1)
            for rows in pieces(gradient.shape[1], self._rows):
                total.addmm_(gradient[:, rows], self._block(layer, rows))
        return total.mul_(1 / math.sqrt(self.size))

    def _block(self, layer: str, rows: slice) -> Tensor:
        if (kept := self._kept.get((layer, rows.start))) is not None:
            return kept
        block = self._projection.entries(layer, torch.arange(rows.start, rows.stop, device=self.device)).to(self.dtype)
        size = block.numel() * block.element_size()
        if size <= self._free:
            self._free -= size
            self._kept[layer, rows.start] = block = block.contiguous()
        return block
