"""Inner products of features: of stored rows, or of whole gradients, which are not stored."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from attribution.double_precision import double
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES, ranges
from attribution.features.features import Features, gradients_together
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
        return self.shards

    def cost(self) -> Cost:
        passes = self.left.count * self.left.draws.count + self.right.count * self.right.draws.count
        size = FLOAT64_BYTES * self.left.count * self.right.count
        products = 2 * self.left.count * self.right.count * self.right.size if self.right.stored else 0
        return Cost(passes=passes, products=products, memory=2 * size, disk=size)

    def compute(self, get: Get) -> GramMatrix:
        if not self.right.stored:
            shards = get.many(self._gram_shards)
            values = _symmetric(shards) if same_gradients(self.left, self.right) else np.concatenate([s.values for s in shards], 1)
            return GramMatrix(values, shards[0].left_squares, np.concatenate([shard.right_squares for shard in shards]))
        rows, left_squares = [], []
        for a in self.left.blocks(get):
            a = _tensor(a)
            rows.append(np.concatenate([_inner(a, _tensor(b)) for b in self.right.blocks(get)], 1))
            left_squares.append(_squares(a))
        right_squares = [_squares(_tensor(b)) for b in self.right.blocks(get)]
        return GramMatrix(np.concatenate(rows), np.concatenate(left_squares), np.concatenate(right_squares))

    @property
    def shards(self) -> Sequence[Node]:
        """The shards of the features or, if these are not stored, of the products."""
        if self.right.stored:
            return list({part.fingerprint: part for side in (self.left, self.right) for part in side.shards}.values())
        return self._gram_shards

    @property
    def _gram_shards(self) -> "list[GramShard]":
        """Shards for as many whole gradients on the right as ``pass_memory`` holds."""
        at_once = max(1, int(self.right.execution.pass_bytes / (FLOAT32_BYTES * self.right.trained.parameter_count)))
        return [GramShard(self.left, self.right, rows) for rows in ranges(0, self.right.count, at_once)]


@dataclass(frozen=True)
class GramShard(JointNode[GramMatrix]):
    """The inner products of the whole gradients of ``left`` with those in ``rows`` of ``right``, which are kept in memory.

    If both sides are the same, the matrix is symmetric, and the rows of ``left`` before ``rows`` are left out.
    """

    NAME = "GramShard"
    VERSION = 3
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
        others = self.left.count - (self.rows[1] if self.same else 0)
        parameters = self.right.trained.parameter_count
        block = min(self.left.count, self.right.execution.examples_at_once(parameters))
        return Cost(
            passes=held * self.right.draws.count + others * self.left.draws.count,
            products=2 * held * (self.left.count - self.first) * parameters,  # float64 takes twice as long
            memory=FLOAT32_BYTES * (held + 2 * block) * parameters,  # a block layer by layer, and as whole gradients
            disk=FLOAT64_BYTES * ((self.left.count - self.first) * (held + 1) + held),
        )

    @property
    def same(self) -> bool:
        """Whether both sides are the same gradients."""
        return same_gradients(self.left, self.right)

    @property
    def first(self) -> int:
        """The first row of ``left`` that the shard has."""
        return self.rows[0] if self.same else 0

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[GramMatrix]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = nodes[0].rows
        right, count = nodes[0].right, rows[1] - rows[0]
        held = int(right.execution.pass_bytes / (FLOAT32_BYTES * count * right.trained.parameter_count))
        at_once = max(1, min(held, right.measures_at_once(max(node.left.count for node in nodes))))
        by_right: dict[str, list[Self]] = {}
        for node in nodes:
            by_right.setdefault(key(*node.right.gradient_settings()), []).append(node)
        matrices: dict[str, GramMatrix] = {}
        for start, stop in ranges(0, len(by_right), at_once):
            matrices |= _matrices(list(by_right.values())[start:stop], rows, get)
        return [matrices[node.fingerprint] for node in nodes]


def _matrices(by_right: Sequence[Sequence[GramShard]], rows: tuple[int, int], get: Get) -> dict[str, GramMatrix]:
    """The inner products of several nodes by fingerprint; each list of nodes has the same gradients on the right.

    All gradients on the right are held. Both sides are differentiated in as few forward passes as possible.
    """
    held: list[Tensor] = []
    for block, gradients in gradients_together([own[0].right for own in by_right], get, rows):
        held = held or [part.new_empty(rows[1] - rows[0], part.shape[1]) for part in gradients]
        for whole, part in zip(held, gradients, strict=True):
            whole[block.start - rows[0] : block.stop - rows[0]] = part
    squares = [_squares(gradients) for gradients in held]
    nodes = [node for own in by_right for node in own]
    values = {node.fingerprint: np.empty((node.left.count - node.first, rows[1] - rows[0])) for node in nodes}
    left_squares = {name: np.empty(len(of_node)) for name, of_node in values.items()}
    lefts: dict[str, list[tuple[GramShard, int]]] = {}
    for i, own in enumerate(by_right):
        for node in own:
            name, block = node.fingerprint, slice(0, rows[1] - rows[0])
            if node.same:  # no second pass over the gradients that are held
                values[name][block], left_squares[name][block] = _inner(held[i], held[i]), squares[i]
            lefts.setdefault(key(*node.left.pass_settings(), node.same), []).append((node, i))
    for sharing in lefts.values():
        _multiply(sharing, held, values, left_squares, rows, get)
    return {
        node.fingerprint: GramMatrix(values[node.fingerprint], left_squares[node.fingerprint], squares[i])
        for i, own in enumerate(by_right)
        for node in own
    }


def _multiply(
    sharing: Sequence[tuple[GramShard, int]],
    held: Sequence[Tensor],
    values: dict[str, np.ndarray],
    left_squares: dict[str, np.ndarray],
    rows: tuple[int, int],
    get: Get,
) -> None:
    """Fill in the products of left sides that share their passes.

    Each node comes with the position of its right side in ``held``.
    """
    lefts = {key(*node.left.gradient_settings()): node.left for node, _ in sharing}
    first = sharing[0][0]
    for block, gradients in gradients_together(list(lefts.values()), get, (rows[1] if first.same else 0, first.left.count)):
        of_left = dict(zip(lefts, gradients, strict=True))
        at = slice(block.start - first.first, block.stop - first.first)
        for node, i in sharing:
            own = of_left[key(*node.left.gradient_settings())]
            values[node.fingerprint][at], left_squares[node.fingerprint][at] = _inner(own, held[i]), _squares(own)


def same_gradients(left: Features, right: Features) -> bool:
    """Whether two sides have the same gradients of the same images."""
    return key(*left.gradient_settings()) == key(*right.gradient_settings())


def _symmetric(shards: Sequence[GramMatrix]) -> np.ndarray:
    """The symmetric matrix ``[N, N]`` whose columns, from the diagonal on, are in ``shards``."""
    values = np.empty((len(shards[0].values), len(shards[0].values)))
    first = 0
    for shard in shards:
        stop = first + shard.values.shape[1]
        values[first:, first:stop] = shard.values
        values[first:stop, first:] = shard.values.T
        first = stop
    return values


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
