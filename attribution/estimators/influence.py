"""Influence functions with an eigendecomposed curvature (Mlodozeniec et al. 2024, K-FAC influence for diffusion models).

``τ[q, z] = ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z)`` at the trained model, with H block diagonal over layers and given by a basis in which it is
diagonal: every layer's gradient is rotated into it once, g̃ = Q_Bᵀ g Q_A, and

    τ[q, z] = Σ_layers Σ_{o,i} q̃_{o,i} z̃_{o,i} / (Λ_{o,i} + λ)        (exact damping; one eigendecomposition serves every λ)

Both sides are means over K draws. A list of draws (``draws.n=[16,64]``) takes prefixes of the same draws; a list of dampings, and
the ``GRID`` that scores always hold, share all but the last division. The work is cut into nodes as in ``trajectory``.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.curvature import Basis
from attribution.draws import Draws, DrawScheme
from attribution.estimators.balance import Balance, TimestepNorms
from attribution.estimators.base import Estimator
from attribution.execution import ranges
from attribution.gradients import Captured, LayerGradients, PerExampleGradients
from attribution.images import ImageSet
from attribution.measurements import Measure
from attribution.node import Artifact, Cost, Get, Node
from attribution.passes import engine, finite, key
from attribution.scores import Scores
from attribution.training import Recorded

FLOAT = 4
GRID = tuple(10.0**e for e in range(-12, 0))
"""Dampings that every score artifact holds: a sweep over these costs one pass."""


MeanOf = Callable[[Captured, Draws], LayerGradients]


class Curvature(Protocol):
    """Anything that has an eigenbasis: ``KFAC``, ``EKFAC``."""

    def basis(self, record: Recorded, train: ImageSet, flips: bool = False) -> Node[Basis]: ...


@dataclass(frozen=True, kw_only=True)
class KFACInfluence(Estimator):
    """K-FAC or EK-FAC influence, as ``curvature`` says.

    ``damping``: λ, added to the curvature of the mean loss; one value or a list. ``draws``: of either side, independent of each
    other; ``balance``: weigh timesteps equally; ``flips``: mirror training images at random, as training did (never the queries).
    """

    measurement: Measure
    draws: DrawScheme
    curvature: Curvature
    damping: float | Sequence[float] = 1e-8
    balance: Balance | None = None
    flips: bool = False

    def __post_init__(self):
        if bad := [value for value in self.dampings if not value >= 0]:
            raise ValueError(f"estimator.damping has {bad}: a damping is at least 0")

    @property
    def dampings(self) -> tuple[float, ...]:
        """The dampings asked for."""
        return tuple(self.damping) if isinstance(self.damping, Sequence) else (self.damping,)

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        return InfluenceScores(self._without_damping(), self._stored_dampings(), record, train, queries)

    def variants(self, scores: Scores) -> list[tuple[dict[str, Any], Scores]]:
        several = {"estimator.damping": len(self.dampings) > 1, "estimator.draws.n": len(self.draws.prefixes) > 1}
        found = []
        for damping in self.dampings:
            for n in self.draws.prefixes:
                settings = {"estimator.damping": damping, "estimator.draws.n": n}
                shown = {name: value for name, value in settings.items() if several[name]}
                found.append((shown, scores.at(damping=damping, draws=n)))
        return found

    def balance_of(self, side: str) -> Balance | None:
        """How the gradients of ``side`` ("query" or "train") are balanced."""
        return self.balance if self.balance is not None and self.balance.side == side else None

    def mean_of(self, side: str, record: Recorded, train: ImageSet, get: Get) -> MeanOf:
        """The mean that this side takes over draws."""
        balance = self.balance_of(side)
        if balance is None:
            return lambda captured, draws: captured.mean()
        norms = TimestepNorms(record, train, self.draws.seed, execution=self.execution)
        return lambda captured, draws: balance.mean(captured, draws, norms, get)

    def _without_damping(self) -> Self:
        # What is computed does not depend on which of the stored dampings was asked for.
        return replace(self, damping=())

    def _stored_dampings(self) -> tuple[float, ...]:
        return tuple(sorted({*GRID, *self.dampings}))


@dataclass(frozen=True, eq=False)
class RotatedGradients(Artifact):
    """Layer name → ``[P, Q, out, in]`` float32: for each of P prefixes of the draws the mean gradient, in the curvature's basis."""

    layers: LayerGradients

    def save(self, folder: Path) -> None:
        save_file(self.layers, folder / "gradients.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(load_file(folder / "gradients.safetensors"))


@dataclass(frozen=True)
class InfluenceQueries(Node[RotatedGradients]):
    """The side of the queries ``rows[0]..rows[1]-1``: query-side work that no damping enters."""

    ARTIFACT = RotatedGradients
    TRANSIENT = True

    estimator: KFACInfluence
    record: Recorded
    train: ImageSet
    queries: ImageSet
    rows: tuple[int, int]

    def cost(self) -> Cost:
        queries = self.rows[1] - self.rows[0]
        size = FLOAT * len(self.estimator.draws.prefixes) * queries * self.record.parameter_count
        return Cost(passes=queries * self.estimator.draws.count, memory=3 * size, disk=size)

    def compute(self, get: Get) -> RotatedGradients:
        how, rows = self.estimator, slice(*self.rows)
        basis = get(how.curvature.basis(self.record, self.train, how.flips))
        images, device = get(self.queries), how.execution.torch_device()
        draws = how.draws.draw("query", images.ids(rows).to(device), self.record.schedule.T)
        per_example = engine(self.record, None, how.execution, get)
        means = prefix_means(
            per_example,
            how.measurement,
            images.x0(rows).to(device),
            draws,
            how.draws.prefixes,
            how.mean_of("query", self.record, self.train, get),
        )
        rotated = [basis.rotate(mean) for mean in means]
        return RotatedGradients({layer: torch.stack([mean[layer] for mean in rotated]).float().cpu() for layer in basis.layers})


@dataclass(frozen=True, eq=False)
class InfluenceProducts(Artifact):
    """τ for one range of training examples, float32 ``[D, P, Q, n]``: dampings, prefixes, queries, examples."""

    values: np.ndarray

    def save(self, folder: Path) -> None:
        np.save(folder / "products.npy", self.values)

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(np.load(folder / "products.npy"))


@dataclass(frozen=True)
class InfluenceShard(Node[InfluenceProducts]):
    """The training examples ``rows[0]..rows[1]-1`` under all queries and all stored dampings."""

    ARTIFACT = InfluenceProducts
    TRANSIENT = True

    estimator: KFACInfluence
    dampings: tuple[float, ...]
    record: Recorded
    train: ImageSet
    queries: ImageSet
    rows: tuple[int, int]

    def together(self) -> Hashable:
        how = self.estimator
        return key(self.record, self.train, self.rows, how.draws, how.flips, how.balance_of("train"))

    def cost(self) -> Cost:
        block = self.estimator.execution.examples_at_once(self.record.parameter_count)
        return Cost(
            passes=(self.rows[1] - self.rows[0]) * self.estimator.draws.count,
            memory=3 * FLOAT * block * self.record.parameter_count,
        )

    def compute(self, get: Get) -> InfluenceProducts:
        return self.compute_together([self], get)[0]

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[InfluenceProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        how, device = first.estimator, first.estimator.execution.torch_device()
        per_example = engine(first.record, None, how.execution, get)
        images = get(first.train)
        sides = [_Side(node, get, device) for node in nodes]
        mean_of = how.mean_of("train", first.record, first.train, get)
        size = how.execution.examples_at_once(len(how.draws.prefixes) * first.record.parameter_count)
        for start, stop in ranges(*first.rows, size):
            rows = slice(start, stop)
            draws = how.draws.draw("attribution", images.ids(rows).to(device), first.record.schedule.T, how.flips)
            objective, x0 = first.record.objective, images.x0(rows).to(device)
            for prefix, mean in enumerate(prefix_means(per_example, objective, x0, draws, how.draws.prefixes, mean_of)):
                for side in sides:
                    side.add(prefix, mean)
        return [side.products() for side in sides]


class _Side:
    """One estimator's queries, waiting for blocks of training gradients."""

    def __init__(self, node: InfluenceShard, get: Get, device: torch.device):
        how = node.estimator
        self.dampings = node.dampings
        self.basis = get(how.curvature.basis(node.record, node.train, how.flips))
        blocks = ranges(0, node.queries.count, how.execution.query_shard)
        nodes = [InfluenceQueries(how, node.record, node.train, node.queries, rows) for rows in blocks]
        sides = get.many(nodes)
        self.queries = {layer: torch.cat([side.layers[layer] for side in sides], 1).to(device) for layer in self.basis.layers}
        self.blocks: list[list[Tensor]] = [[] for _ in how.draws.prefixes]

    def add(self, prefix: int, mean: LayerGradients) -> None:
        rotated = self.basis.rotate(mean)
        total: Any = 0
        for layer in self.basis.layers:
            gradient, query = rotated[layer], self.queries[layer][prefix]
            values = self.basis.values[layer].to(gradient)
            products = []
            for damping in self.dampings:
                scale = 1 / (values + damping)
                if not torch.isfinite(scale).all():
                    raise FloatingPointError(
                        f"layer {layer} has eigenvalues of zero and cannot be inverted with estimator.damping={damping}: raise it"
                    )
                products.append(query.flatten(1).to(gradient) @ (gradient * scale).flatten(1).T)
            total = total + torch.stack(products)
        self.blocks[prefix].append(finite(total, {layer: self.queries[layer] for layer in self.basis.layers}, rotated).cpu())

    def products(self) -> InfluenceProducts:
        return InfluenceProducts(torch.stack([torch.cat(blocks, 2) for blocks in self.blocks], 1).float().numpy())


@dataclass(frozen=True)
class InfluenceScores(Node[Scores]):
    """All queries and training examples, under all stored dampings."""

    ARTIFACT = Scores

    estimator: KFACInfluence
    dampings: tuple[float, ...]
    record: Recorded
    train: ImageSet
    queries: ImageSet

    def parts(self, get: Get) -> list[Node]:
        how = self.estimator
        queries: list[Node] = [
            InfluenceQueries(how, self.record, self.train, self.queries, rows)
            for rows in ranges(0, self.queries.count, how.execution.query_shard)
        ]
        return [*queries, *self._shards()]

    def cost(self) -> Cost:
        passes = (self.queries.count + self.train.count) * self.estimator.draws.count
        numbers = len(self.dampings) * len(self.estimator.draws.prefixes) * self.queries.count * self.train.count
        return Cost(passes=passes, disk=FLOAT * numbers)

    def compute(self, get: Get) -> Scores:
        return Scores(
            values=np.concatenate([shard.values for shard in get.many(self._shards())], axis=3),
            query_index=np.array(get(self.queries).index),
            train_index=np.array(get(self.train).index),
            axes={"damping": self.dampings, "draws": self.estimator.draws.prefixes},
        )

    def _shards(self) -> list[InfluenceShard]:
        how = self.estimator
        return [
            InfluenceShard(how, self.dampings, self.record, self.train, self.queries, rows)
            for rows in ranges(0, self.train.count, how.execution.shard)
        ]


def prefix_means(
    per_example: PerExampleGradients, measure: Measure, x0: Tensor, draws: Draws, prefixes: Sequence[int], mean_of: MeanOf
) -> list[LayerGradients]:
    """The mean gradient over the first k draws, for each k of ``prefixes`` (ascending), each draw differentiated once."""
    total: LayerGradients = {}
    means = []
    for start, stop in zip([0, *prefixes], prefixes, strict=False):
        some = draws.columns(slice(start, stop))
        mean = mean_of(per_example.capture(measure, x0, some), some)
        for layer, gradient in mean.items():
            total[layer] = total.get(layer, 0) + (stop - start) * gradient
        means.append({layer: gradient / stop for layer, gradient in total.items()})
    return means
