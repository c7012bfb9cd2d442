"""Influence functions with an eigendecomposed curvature (Mlodozeniec et al. 2024, K-FAC influence for diffusion models).

``τ[q, z] = ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z)`` at the trained model, with H block diagonal over layers and given by a basis in which it is
diagonal: every layer's gradient is rotated into it once, g̃ = Q_Bᵀ g Q_A, and

    τ[q, z] = Σ_layers Σ_{o,i} q̃_{o,i} z̃_{o,i} / (Λ_{o,i} + λ)        (exact damping; one eigendecomposition serves every λ)

Both sides are means over K draws. A list of draws (``draws.n=[16,64]``) takes prefixes of the same draws; a list of dampings, and
the ``GRID`` that scores always hold, share all but the last product. The work is cut into nodes (``influence_nodes``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from attribution.checks import whole
from attribution.curvature import Basis
from attribution.estimators.balance import Balance, TimestepNorms
from attribution.estimators.base import Estimator, as_list, check_dampings
from attribution.estimators.influence_nodes import FLOAT, GRID, InfluenceShard, query_nodes, unstable_layer
from attribution.estimators.scores import Scores
from attribution.execution import ranges
from attribution.gradients.compression import Compression, Uncompressed
from attribution.gradients.per_example import Captured, LayerGradients
from attribution.images import ImageSet, bins
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Cost, Get, Node, execution
from attribution.training import Recorded


class Curvature(Protocol):
    """Anything that has an eigenbasis: ``KFAC``, ``EKFAC``, ``ExactGGN``."""

    def basis(self, record: Recorded, train: ImageSet, flips: bool = False) -> Node[Basis]: ...


@dataclass(frozen=True, kw_only=True)
class KFACInfluence(Estimator):
    """K-FAC or EK-FAC influence, as ``curvature`` says.

    ``damping``: λ, added to the curvature of the mean loss; one value or a list. ``draws``: of either side, independent of each
    other; ``balance``: how single draws are weighed; ``flips``: mirror training images at random, as training did (never the
    queries). ``compression``: of what is held of the queries; ``query_batch``: the most queries held during a pass over the
    training set, more take another pass.
    """

    NAME = "KFACInfluence"
    VERSION = 1
    DRAW_LISTS = True
    DRAW_BINS = True

    measurement: Measure
    draws: DrawScheme
    curvature: Curvature
    damping: float | Sequence[float] = 1e-8
    balance: Balance | None = None
    flips: bool = False
    compression: Compression = field(default_factory=Uncompressed)
    query_batch: int = execution(default=256)

    def __post_init__(self):
        check_dampings(self.damping)
        whole("estimator.query_batch", self.query_batch, 1)

    @property
    def dampings(self) -> tuple[float, ...]:
        """The dampings asked for."""
        return as_list(self.damping)

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        self.draws.check_bins(record.process.T)
        # What is computed does not depend on which of the stored dampings was asked for.
        return InfluenceScores(replace(self, damping=()), tuple(sorted({*GRID, *self.dampings})), record, train, queries)

    def asked(self) -> Mapping[str, Sequence[Any]]:
        return {"damping": self.dampings, "draws": self.draws.prefixes}

    def balance_of(self, side: str) -> Balance | None:
        """How the gradients of ``side`` ("query" or "train") are balanced."""
        return self.balance if self.balance is not None and self.balance.side == side else None

    def mean_of(self, side: str, record: Recorded, train: ImageSet, get: Get) -> Callable[[Captured, Draws], LayerGradients]:
        """The mean that this side takes over draws."""
        balance = self.balance_of(side)
        if balance is None:
            return lambda captured, draws: captured.mean()
        norms, measure = self.norms(record, train), self.measurement if side == "query" else record.objective
        return lambda captured, draws: captured.mean(balance.weights(measure.timesteps(draws), norms, get))

    def norms(self, record: Recorded, train: ImageSet) -> TimestepNorms:
        """What balances by timestep."""
        return TimestepNorms(record, train, self.draws.seed, execution=self.execution)

    def query_bytes(self, record: Recorded) -> float:
        """What is held of one query during a pass, uncompressed."""
        return FLOAT * len(self.draws.prefixes) * self.draws.bins * record.parameter_count


@dataclass(frozen=True)
class InfluenceScores(Node[Scores]):
    """All queries and training examples, under all stored dampings."""

    NAME = "InfluenceScores"
    VERSION = 2
    TITLE = "influence scores"
    ARTIFACT = Scores

    estimator: KFACInfluence
    dampings: tuple[float, ...]
    record: Recorded
    train: ImageSet
    queries: ImageSet

    def parts(self, get: Get) -> list[Node]:
        return [*query_nodes(self.estimator, self.record, self.train, self.queries), *self._shards()]

    def parents(self) -> list[Node]:
        how = self.estimator
        needed: list[Node] = [how.curvature.basis(self.record, self.train, how.flips)]
        if how.balance is not None and how.balance.by == "timestep":
            needed.append(how.norms(self.record, self.train))
        return [*super().parents(), *needed]

    def cost(self) -> Cost:
        how, batches = self.estimator, -(-self.queries.count // self.estimator.query_batch)
        pairs = self.queries.count * self.train.count * (how.draws.bins + (how.draws.bins > 1)) ** 2
        size = FLOAT * len(self.dampings) * len(how.draws.prefixes) * pairs
        return Cost(passes=(self.queries.count + batches * self.train.count) * how.draws.count, memory=2 * size, disk=size)

    def compute(self, get: Get) -> Scores:
        draws, how = self.estimator.draws, self.estimator
        basis = get(how.curvature.basis(self.record, self.train, how.flips))
        stable = [unstable_layer(basis, damping) is None for damping in self.dampings]
        values = np.concatenate([shard.values[stable] for shard in get.many(self._shards())], axis=5)
        dampings = [damping for damping, kept in zip(self.dampings, stable, strict=True) if kept]
        axes: dict[str, Sequence[Any]] = {"damping": dampings, "draws": draws.prefixes}
        if draws.bins > 1:
            values = bins.with_sums(values, (2, 3))
            names = bins.labels(draws.bins, self.record.process.T)
            axes |= {"query_bin": names, "train_bin": names}
        else:
            values = values[:, :, 0, 0]
        return Scores(
            values=values,
            query_index=np.array(get(self.queries).index),
            train_index=np.array(get(self.train).index),
            axes=axes,
        )

    def _shards(self) -> list[InfluenceShard]:
        return [
            InfluenceShard(self.estimator, self.dampings, self.record, self.train, self.queries, rows)
            for rows in ranges(0, self.train.count, self.estimator.execution.shard)
        ]
