"""Inner products of features: of stored rows, or of whole gradients, which are not stored."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from attribution.double_precision import double
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES, ranges
from attribution.features.features import Features, gradients_together, passes_of
from attribution.gradients.network_cache import gradient_shapes
from attribution.nodes import Arrays, Cost, Get, Node, SharingNode, added, key

SHARED = ("attribution.features.features",)

COLUMNS = 2**13
"""The columns that are copied to float64 at a time: enough that the matrix product dominates the time."""


@dataclass(frozen=True, eq=False)
class GramMatrix(Arrays):
    """``values [L, R]``: inner products ⟨φ(l), φ(r)⟩; ``left_squares [L]`` and ``right_squares [R]``: ‖φ‖² over all layers.

    All are float64.
    """

    values: np.ndarray
    left_squares: np.ndarray
    right_squares: np.ndarray


@dataclass(frozen=True)
class InnerProducts(Node[GramMatrix]):
    """The inner products ⟨φ(l), φ(r)⟩ of all images on the left with all images on the right.

    ``layers``: of whole gradients that are not stored, the layers that inner products are sums over; None: all.
    """

    NAME = "InnerProducts"
    VERSION = 2
    TITLE = "inner products of features"
    ARTIFACT = GramMatrix

    left: Features
    right: Features
    layers: tuple[str, ...] | None = added(default=None)

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
        return [GramShard(self.left, self.right, rows, self.layers) for rows in ranges(0, self.right.count, at_once)]


@dataclass(frozen=True)
class GramShard(SharingNode[GramMatrix]):
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
    layers: tuple[str, ...] | None = added(default=None)

    def together(self) -> Hashable:
        return key(*self.right.pass_settings(), self.rows)

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, held = nodes[0], nodes[0].rows[1] - nodes[0].rows[0]
        parameters = first.right.trained.parameter_count
        by_right, at_once = _by_right(nodes), _rights_at_once(nodes)
        passes, measures = held * first.right.draws.count * passes_of(len(by_right), at_once), 1
        for start, stop in ranges(0, len(by_right), at_once):
            for sharing in _by_left([node for own in by_right[start:stop] for node in own]):
                left, own = sharing[0], len({key(*node.left.gradient_settings()) for node in sharing})
                passes += (left.left.count - (left.rows[1] if left.same else 0)) * left.left.draws.count * passes_of(own, own)
                measures = max(measures, own)
        block = max(min(node.left.count, node.left.execution.examples_at_once(parameters)) for node in nodes)
        draws = max(side.draws.count for node in nodes for side in (node.left, node.right))
        pairs = sum(node.left.count - node.first for node in nodes)
        return Cost(
            passes=passes,
            at_once=max(block, held) * draws,
            # float64 takes twice as long
            products=2 * held * sum((node.left.count - node.first) * node.multiplied for node in nodes),
            # A block layer by layer, and as whole gradients.
            memory=FLOAT32_BYTES * (at_once * held + 2 * measures * block) * parameters,
            disk=FLOAT64_BYTES * (pairs * (held + 1) + len(nodes) * held),
        )

    @property
    def same(self) -> bool:
        """Whether both sides are the same gradients."""
        return same_gradients(self.left, self.right)

    @property
    def columns(self) -> list[slice]:
        """The entries of whole gradients that are multiplied, in pieces."""
        if self.layers is None:
            return [slice(0, self.right.trained.parameter_count)]
        pieces, start = [], 0
        for name, (rows, columns) in gradient_shapes(self.right.trained).items():
            if name in self.layers:
                pieces.append(slice(start, start + rows * columns))
            start += rows * columns
        return pieces

    @property
    def multiplied(self) -> int:
        """The number of entries of whole gradients that are multiplied."""
        return sum(piece.stop - piece.start for piece in self.columns)

    @property
    def first(self) -> int:
        """The first row of ``left`` that the shard has."""
        return self.rows[0] if self.same else 0

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[GramMatrix]:  # pyright: ignore[reportIncompatibleMethodOverride]
        by_right, rows = _by_right(nodes), nodes[0].rows
        matrices: dict[str, GramMatrix] = {}
        for start, stop in ranges(0, len(by_right), _rights_at_once(nodes)):
            matrices |= _matrices(by_right[start:stop], rows, get)
        return [matrices[node.fingerprint] for node in nodes]


def _by_right(nodes: Sequence[GramShard]) -> list[list[GramShard]]:
    """Nodes that share a key, in lists with the same gradients on the right."""
    lists: dict[str, list[GramShard]] = {}
    for node in nodes:
        lists.setdefault(key(*node.right.gradient_settings()), []).append(node)
    return list(lists.values())


def _by_left(nodes: Sequence[GramShard]) -> list[list[GramShard]]:
    """Nodes in lists whose left sides share their passes."""
    lists: dict[str, list[GramShard]] = {}
    for node in nodes:
        lists.setdefault(key(*node.left.pass_settings(), node.same), []).append(node)
    return list(lists.values())


def _rights_at_once(nodes: Sequence[GramShard]) -> int:
    """The number of different right sides of nodes that share a key for which memory has room."""
    right, count = nodes[0].right, nodes[0].rows[1] - nodes[0].rows[0]
    held = int(right.execution.pass_bytes / (FLOAT32_BYTES * count * right.trained.parameter_count))
    at_once = min(held, right.measures_at_once(max(node.left.count for node in nodes)))
    return max(1, min(at_once, len({key(*node.right.gradient_settings()) for node in nodes})))


def _matrices(by_right: Sequence[Sequence[GramShard]], rows: tuple[int, int], get: Get) -> dict[str, GramMatrix]:
    """The inner products of several nodes by fingerprint; each list of nodes has the same gradients on the right.

    All gradients on the right are held. Both sides are differentiated in as few forward passes as possible.
    """
    held: list[Tensor] = []
    for block, gradients in gradients_together([own[0].right for own in by_right], get, rows):
        held = held or [part.new_empty(rows[1] - rows[0], part.shape[1]) for part in gradients]
        for i, whole in enumerate(held):
            whole[block.start - rows[0] : block.stop - rows[0]] = gradients[i]
        del gradients  # before those of the next images are made
    squares = [_squares(gradients) for gradients in held]
    nodes = [node for own in by_right for node in own]
    values = {node.fingerprint: np.empty((node.left.count - node.first, rows[1] - rows[0])) for node in nodes}
    left_squares = {name: np.empty(len(of_node)) for name, of_node in values.items()}
    place = {node.fingerprint: i for i, own in enumerate(by_right) for node in own}
    for node in (node for node in nodes if node.same):  # no second pass over the gradients that are held
        name, block, i = node.fingerprint, slice(0, rows[1] - rows[0]), place[node.fingerprint]
        values[name][block], left_squares[name][block] = _inner_of(node, held[i], held[i]), squares[i]
    for sharing in _by_left(nodes):
        _multiply([(node, place[node.fingerprint]) for node in sharing], held, values, left_squares, rows, get)
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
        squares = {name: _squares(of_name) for name, of_name in of_left.items()}
        at = slice(block.start - first.first, block.stop - first.first)
        for node, i in sharing:
            name = key(*node.left.gradient_settings())
            values[node.fingerprint][at] = _inner_of(node, of_left[name], held[i])
            left_squares[node.fingerprint][at] = squares[name]
        del gradients, of_left  # before those of the next images are made


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


def _inner_of(node: GramShard, a: Tensor, b: Tensor) -> np.ndarray:
    """The inner products of whole gradients over the layers of a node."""
    first, *others = (_inner(a[:, columns], b[:, columns]) for columns in node.columns)
    return sum(others, first)


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
