"""Sparse projections: s entries ±1/√s in every row of P, the rest zero (SJLT: Kane & Nelson 2014; s = 1: Charikar et al. 2002).

Column j belongs to hash j mod s, and each hash maps a coordinate to one of its k/s columns. The s entries of a row are therefore in
different columns and cannot cancel. For every s, the variance of ⟨Pᵀx, Pᵀy⟩ is that of dense signs,
(‖x‖²‖y‖² + ⟨x, y⟩² - 2 Σ_i x_i² y_i²)/k. A larger s reduces the tails that arise when a few large coordinates collide.
If k' divides k, adding the columns that are equal mod k' gives the projection to k' features.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attribution.checks import FieldError, whole
from attribution.gradients.layers import pieces
from attribution.gradients.per_example import LayerGradients
from attribution.images import philox
from attribution.projection.base import LayerShapes, Projection, Projector
from attribution.projection.random_matrices import hashed_rows, rows_at_once

SHARED = ("attribution.gradients.layers", "attribution.projection.base", "attribution.projection.random_matrices")


@dataclass(frozen=True)
class SJLT(Projection):
    """A projection to ``k`` features with ``s`` hashes of every coordinate; s divides k."""

    NAME = "SJLT"
    VERSION = 1
    REDUCIBLE = "the same s and seed, and a k that divides this one's"

    k: int
    s: int = 1
    seed: int = 0

    def __post_init__(self):
        whole(self, "k", least=1)
        whole(self, "s", least=1)
        if self.k % self.s:
            raise FieldError(self, "s", f"does not divide k={self.k}: every hash has its own k/s columns")

    def size(self, layers: LayerShapes) -> int:
        return self.k

    def start(self, layers: LayerShapes, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Projector:
        return _Sparse(self, layers, device, dtype)

    def _reduce_to(self, features: Tensor, smaller: Projection, layers: LayerShapes) -> Tensor | None:
        if not (isinstance(smaller, SJLT) and (smaller.s, smaller.seed) == (self.s, self.seed) and self.k % smaller.k == 0):
            return None
        return features.unflatten(-1, (-1, smaller.k)).sum(-2)

    def entries(self, layer: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns of the nonzero entries of ``rows [n]`` of √s P, and these entries, both ``[n, s]``.

        A row is a position in the flattened block of ``layer``.
        """
        buckets, signs = hashed_rows(philox.key(self.seed, "projection", layer), rows, self.s, self.k // self.s)
        return buckets * self.s + torch.arange(self.s, device=rows.device), signs


class _Sparse(Projector):
    def __init__(self, projection: SJLT, layers: LayerShapes, device: torch.device | str, dtype: torch.dtype):
        super().__init__(projection, layers, device, dtype)
        self._bags = {
            name: _Bags(projection, name, rows * columns, self.device, dtype)
            for name, (rows, columns) in self.layers.items()
            if rows * columns
        }
        self._scale = 1 / math.sqrt(projection.s)

    def _project(self, gradients: LayerGradients) -> Tensor:
        examples = len(next(iter(gradients.values())))
        total = torch.zeros(self.size, examples, device=self.device, dtype=self.dtype)
        if examples:
            for name, bags in self._bags.items():
                bags.add_to(total, gradients[name].flatten(1).T.contiguous())
        return total.T.mul(self._scale).contiguous()


class _Bags:
    """The coordinates of a layer, sorted by their column. Sums over runs are deterministic, unlike atomic additions."""

    def __init__(self, projection: SJLT, layer: str, coordinates: int, device: torch.device, dtype: torch.dtype):
        columns, signs = [], []
        for rows in pieces(coordinates, rows_at_once(projection.s, projection.s, device)):
            column, sign = projection.entries(layer, torch.arange(rows.start, rows.stop, device=device))
            columns.append(column.flatten().int())
            signs.append(sign.flatten().to(dtype))
        column, order = torch.cat(columns).sort(stable=True)
        self.signs = torch.cat(signs)[order]
        self.coordinates = order.div_(projection.s, rounding_mode="floor").int()
        self.columns, counts = column.unique_consecutive(return_counts=True)
        self.starts = (counts.cumsum(0) - counts).int()

    def add_to(self, total: Tensor, gradient: Tensor) -> None:
        """Add the features of this layer, from ``gradient [coordinates, B]``, to ``total [k, B]``."""
        sums = F.embedding_bag(self.coordinates, gradient, self.starts, mode="sum", per_sample_weights=self.signs)
        total.index_add_(0, self.columns, sums)  # no column appears twice, so this is deterministic
