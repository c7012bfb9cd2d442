"""Inner products of features: of stored rows, or of whole gradients, which are not stored."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from attribution.double_precision import double
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES, ranges
from attribution.features.features import Features
from attribution.nodes import Arrays, Cost, Get, JointNode, Node, key

SHARED = ("attribution.features.features",)

COLUMNS = 2**13
"""The columns that are copied to float64 at a time: enough that the matrix product dominates the time."""


@dataclass(frozen=True, eq=False)
class GramMatrix(Arrays):
    """``values [L, R]``: inner products ⟨φ(l), φ(r)⟩; ``left_squares [L]`` and ``right_squares [R]``: ‖φ‖². All float64."""

    values: np.ndarray
    left_squares: np.ndarray
    right_squares: np.ndarray


@dataclass(frozen=True)
class InnerProducts(Node[GramMatrix]):
    """The inner products ⟨φ(l), φ(r)⟩ of all images on the left with all images on the right."""

    NAME = "InnerProducts"
    VERSION = 2
    TITLE = "inner products of features"
    ARTIFACT = GramMatrix

    left: Features
    right: Features

    def parts(self, get: Get) -> Sequence[Node]:
        if self.right.stored:
            return list({part.fingerprint: part for side in (self.left, self.right) for part in side.shards}.values())
        return self._gram_shards

    def cost(self) -> Cost:
        passes = self.left.count * self.left.draws.count + self.right.count * self.right.draws.count
        return Cost(passes=passes, disk=FLOAT64_BYTES * self.left.count * self.right.count)

    def compute(self, get: Get) -> GramMatrix:
        if not self.right.stored:
            shards = get.many(self._gram_shards)
            values = np.concatenate([shard.values for shard in shards], 1)
            return GramMatrix(values, shards[0].left_squares, np.concatenate([shard.right_squares for shard in shards]))
        rows, left_squares = [], []
        for a in self.left.blocks(get):
            a = _tensor(a)
            rows.append(np.concatenate([_inner(a, _tensor(b)) for b in self.right.blocks(get)], 1))
            left_squares.append(_squares(a))
        right_squares = [_squares(_tensor(b)) for b in self.right.blocks(get)]
        return GramMatrix(np.concatenate(rows), np.concatenate(left_squares), np.concatenate(right_squares))

    @property
    def _gram_shards(self) -> "list[GramShard]":
        """Shards for as many whole gradients on the right as ``gradient_memory`` holds."""
        at_once = max(1, int(self.right.execution.gradient_memory / (FLOAT32_BYTES * self.right.trained.parameter_count)))
        return [GramShard(self.left, self.right, rows) for rows in ranges(0, self.right.count, at_once)]


@dataclass(frozen=True)
class GramShard(JointNode[GramMatrix]):
    """The inner products of all whole gradients of ``left`` with those in ``rows`` of ``right``, which are kept in memory."""

    NAME = "GramShard"
    VERSION = 2
    TITLE = "inner products of features, in shards"
    ARTIFACT = GramMatrix
    TRANSIENT = True

    left: Features
    right: Features
    rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(*self.right.pass_settings(), self.rows)

    def cost(self) -> Cost:
        held = self.rows[1] - self.rows[0]
        others = self.left.count - (held if self.left == self.right else 0)
        return Cost(
            passes=held * self.right.draws.count + others * self.left.draws.count,
            memory=FLOAT32_BYTES * (held + 2 * self.right.execution.batch_size) * self.right.trained.parameter_count,
        )

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[GramMatrix]:  # pyright: ignore[reportIncompatibleMethodOverride]
        right, rows = nodes[0].right, nodes[0].rows
        held = torch.cat([gradients.float() for _, gradients in right.gradients(get, rows)])
        squares = _squares(held)
        return [node._products(held, squares, get) for node in nodes]

    def _products(self, held: Tensor, right_squares: np.ndarray, get: Get) -> GramMatrix:
        (start, stop), count = self.rows, self.left.count
        values, left_squares = np.empty((count, stop - start)), np.empty(count)
        same = key(*self.left.pass_settings()) == key(*self.right.pass_settings())
        if same:  # no second pass over the gradients that are held
            values[start:stop], left_squares[start:stop] = _inner(held, held), right_squares
        for rows in [(0, start), (stop, count)] if same else [(0, count)]:
            for block, gradients in self.left.gradients(get, rows):
                values[block], left_squares[block] = _inner(gradients.float(), held), _squares(gradients.float())
        return GramMatrix(values, left_squares, right_squares)


def _tensor(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(rows))


def _inner(a: Tensor, b: Tensor) -> np.ndarray:
    """Return ``a bᵀ`` in float64, so that what is small compared with the largest eigenvalue is not rounding.

    Raises:
        FloatingPointError: a value is not finite.
    """
    return _finite(sum(x @ y.T for x, y in _columns(a, b)))


def _squares(a: Tensor) -> np.ndarray:
    """Return the squared norms of rows in float64.

    Raises:
        FloatingPointError: a value is not finite.
    """
    return _finite(sum((x * y).sum(1) for x, y in _columns(a, a)))


def _columns(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for columns in ranges(0, a.shape[1], COLUMNS):
        yield double(a[:, slice(*columns)]), double(b[:, slice(*columns)])


def _finite(products: Any) -> np.ndarray:
    if not torch.isfinite(products).all():
        raise FloatingPointError("inner products of gradients are not finite: did training diverge?")
    return products.cpu().numpy()
