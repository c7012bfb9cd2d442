"""Features φ(x) = Pᵀ ∇f(x): projected gradients, averaged over draws, one row for each image.

A row is computed once for each (model, images, function f, draws, projection) and stored in shards, which are read memory-mapped
and shared by all estimators. Without a projection (``projection=none``) the rows are whole gradients. These are never stored; their
inner products are (``gram``).
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from attribution.execution import FLOAT32_BYTES, Execution, ranges
from attribution.features.projector_cache import projector
from attribution.gradients.network_cache import engine, gradient_shapes
from attribution.gradients.per_example import Captured, PerExampleGradients
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Arrays, Cost, Get, JointNode, execution, key
from attribution.projection import Identity, Projection
from attribution.training import Recorded

SHARED = ("attribution.features.projector_cache", "attribution.gradients.network_cache")


class FeatureSettings(Protocol):
    """The settings of an estimator that apply to the features of queries and training images alike."""

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
    """The features of a set of images.

    ``measure``: the function f. ``role``: the name of the stream of draws. ``step``: a checkpoint, or None for the final model.
    """

    NAME = "Features"
    VERSION = 1

    trained: Recorded
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
        cls, settings: FeatureSettings, trained: Recorded, images: ImageSet, measure: Measure, role: str, step: int | None = None
    ) -> Self:
        """Return the features of queries (role "query") or training images (role "attribution") under an estimator's settings.

        Only training images are mirrored.
        """
        return cls(
            trained=trained,
            images=images,
            measure=measure,
            draws=settings.draws,
            projection=settings.projection,
            role=role,
            flips=settings.flips and role == "attribution",
            step=step,
            execution=settings.execution,
        )

    @property
    def count(self) -> int:
        """The number of images."""
        return self.images.count

    @property
    def size(self) -> int:
        """k, the number of features of an image."""
        return self.projection.size(gradient_shapes(self.trained))

    @property
    def stored(self) -> bool:
        """Whether rows are stored. Whole gradients are not: they are computed again whenever inner products need them."""
        return not isinstance(self.projection, Identity)

    @property
    def shards(self) -> "list[FeatureShard]":
        """The rows as units of stored work."""
        return [FeatureShard(self, rows) for rows in ranges(0, self.count, self.execution.shard)]

    def blocks(self, get: Get) -> Iterator[np.ndarray]:
        """Yield the rows, one shard at a time: ``[n, k]`` float32."""
        for shard in self.shards:
            yield get(shard).values

    def gradients(self, get: Get, rows: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
        """Yield the whole gradients ``[n, P]`` of the images ``rows[0]..rows[1]-1``, with their row slice.

        As many are yielded at once as memory allows.
        """
        for block, captured in self.captured(get, rows):
            yield block, torch.cat([gradient.flatten(1) for gradient in captured.mean().values()], 1)

    def captured(self, get: Get, rows: tuple[int, int]) -> Iterator[tuple[slice, Captured]]:
        """Yield the captured passes of images ``rows[0]..rows[1]-1``, with their row slice, as many at once as memory allows."""
        per_example = self.engine(get)
        images, device = get(self.measure.subject(self.images)), self.execution.torch_device()
        for start, stop in ranges(*rows, self.execution.examples_at_once(self.trained.parameter_count)):
            block = slice(start, stop)
            draws = self.draws.draw(self.role, images.ids(block).to(device), self.trained.process.T, self.flips)
            yield block, per_example.capture(self.measure, images.x0(block).to(device), draws, images.conditions(block))

    def engine(self, get: Get) -> PerExampleGradients:
        """The network, ready for per-example gradients."""
        return engine(self.trained, self.step, self.execution, get)

    def pass_settings(self) -> list[Any]:
        """The settings that features share if one pass of the network serves them all."""
        return [self.trained, self.images, self.measure, self.draws, self.role, self.flips, self.step]


@dataclass(frozen=True, eq=False)
class FeatureTable(Arrays):
    """``values [n, k]`` float32, memory-mapped."""

    MAPPED = "r"

    values: np.ndarray


@dataclass(frozen=True)
class FeatureShard(JointNode[FeatureTable]):
    """The rows of the images ``rows[0]..rows[1]-1``. Features with different projections share a pass."""

    NAME = "FeatureShard"
    VERSION = 1
    TITLE = "gradient features"
    ARTIFACT = FeatureTable

    features: Features
    rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(*self.features.pass_settings(), self.rows)

    def cost(self) -> Cost:
        count, features = self.rows[1] - self.rows[0], self.features
        parameters = features.trained.parameter_count
        held = 2 * min(count, features.execution.examples_at_once(parameters)) * parameters
        size = count * features.size
        return Cost(passes=count * features.draws.count, memory=FLOAT32_BYTES * (held + size), disk=FLOAT32_BYTES * size)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[FeatureTable]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        per_example = first.features.engine(get)
        projectors = [projector(node.features.projection, per_example) for node in nodes]
        tables: list[list[np.ndarray]] = [[] for _ in nodes]
        for _, captured in first.features.captured(get, first.rows):
            if len(nodes) > 1:
                captured.keep_calls()
            for blocks, project in zip(tables, projectors, strict=True):
                blocks.append(project.features(captured).float().cpu().numpy())
        return [FeatureTable(np.concatenate(blocks)) for blocks in tables]
