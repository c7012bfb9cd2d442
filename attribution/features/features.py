"""Features φ(x) = Pᵀ ∇f(x): projected gradients, averaged over draws, one row for each image, and their inner products.

A row is computed once for each (model, images, function f, draws, projection) and kept in shards that are read memory-mapped:
every estimator that needs it finds it. Without a projection (``projection=none``) rows are whole gradients; those are never
stored, only their inner products are.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from attribution.execution import Execution, ranges
from attribution.gradients.engine import engine
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Arrays, Cost, Get, JointNode, Node, execution, key
from attribution.projection import Identity, Projection, Projector
from attribution.training import Recorded

SHARED = (
    "attribution.gradients.engine",
    "attribution.gradients.inner_products",
)

FLOAT = 4


class FeatureChoice(Protocol):
    """What estimators that work on features settle for both sides."""

    @property
    def draws(self) -> DrawScheme: ...

    @property
    def projection(self) -> Projection: ...

    @property
    def flips(self) -> bool: ...

    @property
    def execution(self) -> Execution: ...


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which features. ``measure`` is f; ``role`` names the stream of draws; ``step``: a checkpoint, or None for the final model."""

    NAME = "Features"
    VERSION = 1

    record: Recorded
    images: ImageSet
    measure: Measure
    draws: DrawScheme
    projection: Projection
    role: str
    flips: bool = False
    step: int | None = None
    execution: Execution = execution(default=Execution())

    @classmethod
    def of(
        cls, how: "FeatureChoice", record: Recorded, images: ImageSet, measure: Measure, role: str, step: int | None = None
    ) -> Self:
        """Those that an estimator takes of "query" or "attribution" (training) images; only the latter are mirrored."""
        return cls(
            record=record,
            images=images,
            measure=measure,
            draws=how.draws,
            projection=how.projection,
            role=role,
            flips=how.flips and role == "attribution",
            step=step,
            execution=how.execution,
        )

    @property
    def count(self) -> int:
        """How many images."""
        return self.images.count

    @property
    def size(self) -> int:
        """k, the features of an image."""
        return self.projection.size(self.record.blocks)

    @property
    def stored(self) -> bool:
        """Whether rows are kept on disk, rather than made when their inner products are."""
        return not isinstance(self.projection, Identity)

    @property
    def shards(self) -> "list[FeatureShard]":
        """The rows in units of stored work."""
        return [FeatureShard(self, rows) for rows in ranges(0, self.count, self.execution.shard)]

    def blocks(self, get: Get) -> Iterator[np.ndarray]:
        """The rows, a shard at a time: ``[n, k]`` float32."""
        for shard in self.shards:
            yield get(shard).values

    def gradients(self, get: Get, rows: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
        """Whole gradients of the images ``rows[0]..rows[1]-1``, as many at a time as memory allows: their places, ``[n, P]``."""
        for some, captured in self._captured(get, rows):
            yield some, torch.cat([block.flatten(1) for block in captured.mean().values()], 1)

    def pass_key(self) -> Any:
        """What features with a pass in common share."""
        return [self.record, self.images, self.measure, self.draws, self.role, self.flips, self.step]

    def _captured(self, get: Get, rows: tuple[int, int]) -> Iterator[tuple[slice, Any]]:
        per_example = self.engine(get)
        images, device = get(self.measure.subject(self.images)), self.execution.torch_device()
        for start, stop in ranges(*rows, self.execution.examples_at_once(self.record.parameter_count)):
            some = slice(start, stop)
            draws = self.draws.draw(self.role, images.ids(some).to(device), self.record.process.T, self.flips)
            yield some, per_example.capture(self.measure, images.x0(some).to(device), draws, images.conditions(some))

    def engine(self, get: Get) -> PerExampleGradients:
        """The network, ready for gradients."""
        return engine(self.record, self.step, self.execution, get)


@dataclass(frozen=True, eq=False)
class FeatureTable(Arrays):
    """``values [n, k]`` float32, memory-mapped."""

    MAPPED = "r"

    values: np.ndarray


@dataclass(frozen=True)
class FeatureShard(JointNode[FeatureTable]):
    """The rows of the images ``rows[0]..rows[1]-1``. Those of several projections cost one pass."""

    NAME = "FeatureShard"
    VERSION = 1
    TITLE = "gradient features"
    ARTIFACT = FeatureTable

    features: Features
    rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(*self.features.pass_key(), self.rows)

    def cost(self) -> Cost:
        count, how = self.rows[1] - self.rows[0], self.features
        parameters = how.record.parameter_count
        held = 2 * min(count, how.execution.examples_at_once(parameters)) * parameters
        return Cost(passes=count * how.draws.count, memory=FLOAT * (held + count * how.size), disk=FLOAT * count * how.size)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[FeatureTable]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        per_example = first.features.engine(get)
        projectors = [projector(node.features.projection, per_example) for node in nodes]
        blocks: list[list[np.ndarray]] = [[] for _ in nodes]
        for _, captured in first.features._captured(get, first.rows):
            if len(nodes) > 1:
                captured.hold()
            for rows, project in zip(blocks, projectors, strict=True):
                rows.append(project.features(captured).float().cpu().numpy())
        return [FeatureTable(np.concatenate(rows)) for rows in blocks]


def projector(projection: Projection, per_example: PerExampleGradients) -> Projector:
    """P for a network, kept for the next shard: making it can take longer than using it."""
    p = per_example.parameters[0]
    name = key(projection, sorted(per_example.blocks.items()), str(p.device), str(p.dtype))
    if name not in _projectors:
        if len(_projectors) >= MOST_PROJECTORS:
            _projectors.clear()
        _projectors[name] = projection.start(per_example.blocks, p.device)
    return _projectors[name]


MOST_PROJECTORS = 4
_projectors: dict[str, Projector] = {}


@dataclass(frozen=True, eq=False)
class Products(Arrays):
    """``values [L, R]`` float64: inner products ⟨φ(l), φ(r)⟩; ``left [L]`` and ``right [R]``: the rows' own square norms."""

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class GramShard(JointNode[Products]):
    """Inner products of all whole gradients of ``left`` with those of ``right`` in ``rows``, which are held meanwhile."""

    NAME = "GramShard"
    VERSION = 1
    TITLE = "inner products of features, in shards"
    ARTIFACT = Products
    TRANSIENT = True

    left: Features
    right: Features
    rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(*self.right.pass_key(), self.rows)

    def cost(self) -> Cost:
        held = self.rows[1] - self.rows[0]
        others = self.left.count - (held if self.left == self.right else 0)
        return Cost(
            passes=held * self.right.draws.count + others * self.left.draws.count,
            memory=FLOAT * (held + 2 * self.right.execution.batch_size) * self.right.record.parameter_count,
        )

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[Products]:  # pyright: ignore[reportIncompatibleMethodOverride]
        right, (start, stop) = nodes[0].right, nodes[0].rows
        held = torch.cat([g.float() for _, g in right.gradients(get, (start, stop))])
        squares = _inner(held, held, diagonal=True)
        found = []
        for node in nodes:
            same = key(*node.left.pass_key()) == key(*right.pass_key())
            values = np.empty((node.left.count, stop - start))
            left = np.empty(node.left.count)
            if same:
                values[start:stop], left[start:stop] = _inner(held, held), squares
            for rows in [(0, start), (stop, node.left.count)] if same else [(0, node.left.count)]:
                for some, g in node.left.gradients(get, rows):
                    values[some], left[some] = _inner(g.float(), held), _inner(g.float(), g.float(), diagonal=True)
            found.append(Products(values, left, squares))
        return found


def _inner(a: Tensor, b: Tensor, diagonal: bool = False) -> np.ndarray:
    """``a bᵀ``, or the diagonal, in float64: what is small beside the largest eigenvalue shall not be rounding.

    Raises:
        FloatingPointError: a value that is not finite.
    """
    total: Any = 0
    for columns in ranges(0, a.shape[1], COLUMNS):
        x, y = (side[:, slice(*columns)].double() for side in (a, b))
        total = total + ((x * y).sum(1) if diagonal else x @ y.T)
    if not torch.isfinite(total).all():
        raise FloatingPointError("inner products of gradients are not finite: did training diverge?")
    return total.cpu().numpy()


COLUMNS = 2**13
"""Of a float64 copy: so many that the product takes the time."""


@dataclass(frozen=True)
class InnerProducts(Node[Products]):
    """``⟨φ(l), φ(r)⟩`` of all images on the left with all on the right."""

    NAME = "InnerProducts"
    VERSION = 1
    TITLE = "inner products of features"
    ARTIFACT = Products

    left: Features
    right: Features

    def parts(self, get: Get) -> Sequence[Node]:
        if self.right.stored:
            return list({part.fingerprint: part for side in (self.left, self.right) for part in side.shards}.values())
        at_once = max(1, int(self.right.execution.gradient_memory / (FLOAT * self.right.record.parameter_count)))
        return [GramShard(self.left, self.right, rows) for rows in ranges(0, self.right.count, at_once)]

    def cost(self) -> Cost:
        passes = self.left.count * self.left.draws.count + self.right.count * self.right.draws.count
        return Cost(passes=passes, disk=8 * self.left.count * self.right.count)

    def compute(self, get: Get) -> Products:
        if not self.right.stored:
            shards = get.many([part for part in self.parts(get) if isinstance(part, GramShard)])
            right = np.concatenate([shard.right for shard in shards])
            return Products(np.concatenate([shard.values for shard in shards], 1), shards[0].left, right)
        rows, left = [], []
        for a in self.left.blocks(get):
            a = torch.from_numpy(np.array(a))
            rows.append(np.concatenate([_inner(a, torch.from_numpy(np.array(b))) for b in self.right.blocks(get)], 1))
            left.append(_inner(a, a, diagonal=True))
        own = [_inner(b, b, diagonal=True) for b in (torch.from_numpy(np.array(block)) for block in self.right.blocks(get))]
        return Products(np.concatenate(rows), np.concatenate(left), np.concatenate(own))
