"""Influence functions by LiSSA (Agarwal et al. 2017; Koh & Liang 2017), the baseline of Diffusion-ReTrac (appendix C).

    τ[q, z] = ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z),      (H + λI)⁻¹ v ≈ r_J/σ,      r_j = v + (I - (H_batch + λI)/σ) r_{j-1}

H is the curvature of the mean training loss over *all* parameters in one block. Nothing is approximated but by mini-batches and by
ending after J steps, after which directions of a curvature below about σ/J still wait: J acts like a damping of that size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from attribution.checks import number, whole
from attribution.curvature.products import CurvatureProduct, GaussNewton
from attribution.estimators.base import Estimator
from attribution.estimators.lissa_nodes import FLOAT, LissaShard, query_nodes
from attribution.estimators.scores import Scores
from attribution.execution import ranges
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Cost, Get, Node, execution
from attribution.training import Recorded


@dataclass(frozen=True, kw_only=True)
class LiSSA(Estimator):
    """Inverse-curvature products by the recursion above, for all queries at once.

    ``product``: ``Hessian``, of the training loss by double backward as in the paper, or ``GaussNewton``, which has no negative
    eigenvalues and costs the same for any number of queries. ``scale``: σ, at least half of the largest eigenvalue of H_batch + λI.
    ``depth``: J; ``repeats``: recursions with other batches, averaged; ``batch_size``: draws (an image at a timestep with a noise)
    in a batch, of the ``draws`` of every training image. ``draws`` are those of either side too, independent of each other;
    ``flips``: mirror training images at random, as training did. ``query_batch``: the most queries of a pool that
    share a recursion; all of them are held, as whole gradients, for the pass over the training set.
    """

    NAME = "LiSSA"
    VERSION = 1

    measurement: Measure
    draws: DrawScheme
    product: CurvatureProduct = field(default_factory=GaussNewton)
    damping: float = 1e-3
    scale: float = 100.0
    depth: int = 400
    repeats: int = 1
    batch_size: int = 32
    flips: bool = False
    query_batch: int = execution(default=64)

    def __post_init__(self):
        for name in ("depth", "repeats", "batch_size", "query_batch"):
            whole(f"estimator.{name}", getattr(self, name), 1)
        if isinstance(self.damping, Sequence) and not isinstance(self.damping, str):
            raise ValueError(f"estimator.damping={self.damping}: LiSSA takes one number; sweep it with -m")
        number("estimator.damping", self.damping, 0)
        number("estimator.scale", self.scale, 0)
        if self.scale == 0:
            raise ValueError("estimator.scale=0: must be a number above 0")
        self.draws.refuse_lists("estimator.draws", "LiSSA")

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.measurement.subject(queries)
        if self.batch_size > train.count * self.draws.count:
            raise ValueError(
                f"estimator.batch_size={self.batch_size}: there are {train.count} training images × {self.draws.count} draws; "
                "ask for at most so many, or raise estimator.draws.n"
            )
        return LissaScores(self, record, train, queries)


@dataclass(frozen=True)
class LissaScores(Node[Scores]):
    """All queries and training examples, ``[Q, N]``."""

    NAME = "LissaScores"
    VERSION = 1
    TITLE = "LiSSA scores"
    ARTIFACT = Scores

    estimator: LiSSA
    record: Recorded
    train: ImageSet
    queries: ImageSet

    def parts(self, get: Get) -> list[Node]:
        return [*query_nodes(self.estimator, self.record, self.train, self.queries), *self._shards()]

    def cost(self) -> Cost:
        how, size = self.estimator, FLOAT * self.queries.count * self.train.count
        pools = -(-self.queries.count // how.query_batch)
        passes = (self.queries.count + self.train.count) * how.draws.count
        passes += pools * how.repeats * how.depth * how.batch_size * how.product.passes(min(self.queries.count, how.query_batch))
        return Cost(passes=passes, memory=2 * size, disk=size)

    def compute(self, get: Get) -> Scores:
        return Scores(
            values=np.concatenate([shard.values for shard in get.many(self._shards())], axis=1),
            query_index=np.array(get(self.queries).index),
            train_index=np.array(get(self.train).index),
        )

    def _shards(self) -> list[LissaShard]:
        return [
            LissaShard(self.estimator, self.record, self.train, self.queries, rows)
            for rows in ranges(0, self.train.count, self.estimator.execution.shard)
        ]
