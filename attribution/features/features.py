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
from attribution.gradients.contraction import Contraction
from attribution.gradients.network_cache import engine, gradient_shapes
from attribution.gradients.per_example import LayerGradients, PerExampleGradients, Weights, contracted_together
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, SharingNode, added, execution, key
from attribution.projection import Identity, Projection
from attribution.transfers import to_device

SHARED = ("attribution.features.projector_cache", "attribution.gradients.network_cache")


class Balancing(Protocol):
    """Weights of single draws in features: a frozen dataclass, whose fields are its identity (``estimators.balance.Balance``)."""

    def of_draws(self, timestep: Tensor, T: int) -> Weights:
        """The weights of draws at ``timestep [B, K]``: a tensor, or a function of their gradient norms."""
        ...


class FeatureSettings(Protocol):
    """The settings of an estimator that the features of queries and of training images have in common."""

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
    ``balance``: weights of the draws in the mean over them; None: 1.
    """

    NAME = "Features"
    VERSION = 1

    trained: Trained
    images: ImageSet
    measure: Measure
    draws: DrawScheme
    projection: Projection
    role: str
    flips: bool = False
    step: int | None = None
    balance: Balancing | None = added(default=None)
    execution: Execution = execution(default=Execution())

    @classmethod
    def of(
        cls,
        settings: FeatureSettings,
        trained: Trained,
        images: ImageSet,
        measure: Measure,
        role: str,
        step: int | None = None,
        balance: Balancing | None = None,
    ) -> Self:
        """Return the features of queries (role "query") or training images (role "attribution") under an estimator's settings.

        Only training images are mirrored.
        """
        return cls(
            trained=trained,
            images=images,
            measure=measure,
            draws=settings.draws.side("query" if role == "query" else "train"),
            projection=settings.projection,
            role=role,
            flips=settings.flips and role == "attribution",
            step=step,
            balance=balance,
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

    def measures_at_once(self, images: int) -> int:
        """The number of measures for which the gradients of a block of at most ``images`` images fit into memory together."""
        parameters = self.trained.parameter_count
        block = min(images, self.execution.examples_at_once(parameters))
        return max(1, int(self.execution.pass_bytes / (FLOAT32_BYTES * block * parameters)))

    @property
    def condition_dropout(self) -> float:
        """The probability with which draws drop the condition: that of training for training images, 0 for queries."""
        return self.trained.objective.condition_dropout if self.role == "attribution" else 0.0

    def engine(self, get: Get) -> PerExampleGradients:
        """The network, ready for per-example gradients."""
        return engine(self.trained, self.step, self.execution, get)

    def gradient_settings(self) -> list[Any]:
        """The settings that features share if their gradients are the same."""
        return [self.measure, *self.pass_settings()]

    def pass_settings(self) -> list[Any]:
        """The settings that features share if one forward pass of the network serves them all."""
        measure = None if self.measure.takes_images() else self.measure
        return [self.trained, self.images, measure, self.draws, self.role, self.flips, self.step, self.balance]


def passes_of(measures: int, at_once: int) -> float:
    """The passes of an input for gradients of several measures, if ``at_once`` of them share a forward pass: a third of a pass."""
    return (2 * measures + -(-measures // at_once)) / 3


def means_together(
    features: Sequence[Features], contractions: Sequence[Sequence[Contraction | None]], get: Get, rows: tuple[int, int]
) -> Iterator[tuple[slice, list[list[LayerGradients]]]]:
    """Yield the means over draws of several features of images ``rows[0]..rows[1]-1``, with their row slice.

    The features share their ``pass_settings``; each has its own ``contractions``. As many images are captured at once as memory
    allows. With a ``balance`` every mean takes a pass of its own, because it needs the norms of the draws' whole gradients first.
    """
    first = features[0]
    per_example, process = first.engine(get), first.trained.process
    images, device = get(first.measure.subject(first.images)), first.execution.torch_device()
    for start, stop in ranges(*rows, first.execution.examples_at_once(first.trained.parameter_count)):
        block = slice(start, stop)
        ids = to_device(images.ids(block), device)
        draws = first.draws.draw(first.role, ids, process.T, first.flips, first.condition_dropout)
        x0, condition = to_device(images.x0(block), device), images.conditions(block)
        captures = [per_example.capture(each.measure, x0, draws, condition) for each in features]
        if first.balance is None:
            yield block, contracted_together(captures, contractions)
            continue
        weights = [first.balance.of_draws(each.measure.timesteps(draws), process.T) for each in features]
        yield (
            block,
            [
                [captured.contracted(contraction, of_draws) for contraction in own]
                for captured, own, of_draws in zip(captures, contractions, weights, strict=True)
            ],
        )


def gradients_together(features: Sequence[Features], get: Get, rows: tuple[int, int]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield the whole gradients ``[n, P]`` of several features that share their ``pass_settings``, with their row slice."""
    for block, means in means_together(features, [[None]] * len(features), get, rows):
        gradients = [torch.cat([gradient.flatten(1) for gradient in mean.values()], 1).float() for (mean,) in means]
        del means
        yield block, gradients
        del gradients  # before those of the next images are made


@dataclass(frozen=True, eq=False)
class FeatureTable(Arrays):
    """``values [n, k]`` float32, memory-mapped."""

    MAPPED = "r"

    values: np.ndarray


@dataclass(frozen=True)
class FeatureShard(SharingNode[FeatureTable]):
    """The rows of the images ``rows[0]..rows[1]-1``.

    Features with different projections share a pass, and features of different measures the forward pass.
    """

    NAME = "FeatureShard"
    VERSION = 1
    TITLE = "gradient features"
    ARTIFACT = FeatureTable

    features: Features
    rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(*self.features.pass_settings(), self.rows)

    @classmethod
    def cost_together(cls, nodes: Sequence[Self]) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, count = nodes[0].features, nodes[0].rows[1] - nodes[0].rows[0]
        measures = len({key(node.features.measure) for node in nodes})
        parameters = first.trained.parameter_count
        block = min(count, first.execution.examples_at_once(parameters))
        at_once = min(measures, first.measures_at_once(count)) if first.balance is None else 1
        size = count * sum(node.features.size for node in nodes)
        return Cost(
            passes=count * first.draws.count * passes_of(measures, at_once),
            at_once=block * first.draws.count,
            memory=FLOAT32_BYTES * (at_once * block * parameters + size),
            disk=FLOAT32_BYTES * size,
        )

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[FeatureTable]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, rows = nodes[0].features, nodes[0].rows
        by_measure: dict[str, list[Self]] = {}
        for node in nodes:
            by_measure.setdefault(key(node.features.measure), []).append(node)
        tables: dict[str, np.ndarray] = {}
        for start, stop in ranges(0, len(by_measure), first.measures_at_once(rows[1] - rows[0])):
            tables |= _tables(list(by_measure.values())[start:stop], rows, get)
        return [FeatureTable(tables[node.fingerprint]) for node in nodes]


def _tables(by_measure: Sequence[Sequence[FeatureShard]], rows: tuple[int, int], get: Get) -> dict[str, np.ndarray]:
    """The rows of several nodes by fingerprint, in one forward pass for all; each list of nodes has the same measure."""
    per_example = by_measure[0][0].features.engine(get)
    projectors = [[projector(node.features.projection, per_example) for node in own] for own in by_measure]
    contractions = [[project.contraction for project in own] for own in projectors]
    blocks: dict[str, list[np.ndarray]] = {node.fingerprint: [] for own in by_measure for node in own}
    for _, of_measures in means_together([own[0].features for own in by_measure], contractions, get, rows):
        for own, projects, means in zip(by_measure, projectors, of_measures, strict=True):
            for node, project, mean in zip(own, projects, means, strict=True):
                blocks[node.fingerprint].append(project.features_of(mean).float().cpu().numpy())
    return {name: np.concatenate(tables) for name, tables in blocks.items()}
