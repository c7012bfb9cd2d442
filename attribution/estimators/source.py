"""SOURCE (Bae, Lin, Lorraine & Grosse, NeurIPS 2024, "Training Data Attribution via Approximate Unrolled Differentiation").

Training is cut into L segments (eq. 15). In segment l, of K_l steps with the learning rate η_l, the curvature H_l and the
gradient g_l(z) of a training image are taken as constant, as means over recorded checkpoints of the segment. A step with z removed
then differs by g_l(z)/N, and this difference shrinks by I - η_l H_l ≈ exp(-η_l H_l) in every later step. Added up:

    τ[q, z] = Σ_l ∇m(q; θ)ᵀ [Π_{l'>l} exp(-κ_l' H_l')] F(H_l) g_l(z),    F(σ) = (1 - exp(-κ_l σ)) / σ,    κ_l = c η_l K_l

with later segments on the left. The predicted change of the measurement on removing z is τ/N, as for influence functions. There
is no damping: F is finite, κ_l at σ = 0. With κ → ∞ the last segment alone remains, with H⁻¹. η_l K_l is the sum of the recorded
learning rates.

H_l is K-FAC or EK-FAC: factors, and for EK-FAC the second moments in their eigenbasis, are means over the checkpoints. Products are
computed in the eigenbasis of each segment in turn. Layers without Kronecker factors (norms) are left out.

Adam divides steps by √v. The paper (appendix D) then takes P H_l in place of H_l in the exponentials, with P = diag(1/√v). That is
not diagonal in the eigenbasis, and the public implementation in bergson takes a diagonal H_l there. Here v is one number for each
layer instead, the mean square of recorded batch gradients at the checkpoints (``BatchSquares``), so that every layer only has
another κ_l and the eigenbasis serves (our choice). The record has no second moments of the optimizer; their memory of earlier
steps, momentum and weight decay are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.checks import FieldError, listed, positive, whole
from attribution.curvature.kfac import KroneckerCurvature
from attribution.estimators.batch_squares import BATCHES
from attribution.estimators.replicated import with_replicates
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores, with_all_queries
from attribution.estimators.source_blocks import SourceBatch, SourceSettings
from attribution.estimators.training_trajectory import refuse_zero_rates
from attribution.execution import FLOAT32_BYTES
from attribution.gradients.network_cache import gradient_shapes
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node
from attribution.training import Recorded, require_record
from attribution.training.segments import Segment, segments_of

SHARED = (
    "attribution.estimators.replicated",
    "attribution.estimators.source_blocks",
    "attribution.estimators.training_trajectory",
    "attribution.training.segments",
)


@dataclass(frozen=True, kw_only=True)
class Source(SourceSettings):
    """Segment-wise unrolling over recorded checkpoints.

    ``segments``: L. ``per_segment``: the recorded checkpoints that stand for a segment (``training.segments``). ``curvature``:
    K-FAC or EK-FAC. ``optimizer``: of training, "adam" (with AdamW) or "sgd"; SGD with momentum β moves as with the learning rate
    η/(1 - β), which is ``horizon`` 1/(1 - β). ``horizon``: c, a factor of all η K, one value or a list; values of a list share all
    passes. ``draws``: of a query, and of a training image at each checkpoint; the two sides are independent. ``flips``: mirror
    training images at random, as training did.
    """

    NAME = "Source"
    VERSION = 1
    REPLICATED = ("query", "train")

    segments: int = 3
    per_segment: int = 2

    def __post_init__(self):
        for name in ("segments", "per_segment"):
            whole(self, name, least=1)
        if isinstance(self.horizon, Sequence):
            listed(self, "horizon", positive)
        else:
            positive(self, "horizon")
        if self.optimizer not in ("adam", "sgd"):
            raise FieldError(self, "optimizer", "choose adam or sgd")
        if not isinstance(self.curvature, KroneckerCurvature):
            raise FieldError(self, "curvature", "segments need Kronecker factors: choose kfac or ekfac")
        self.draws.refuse_lists("SOURCE", replicates=True)

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        recorded = require_record(trained, type(self).__name__, visits=True)
        self.measurement.subject(queries)
        gradient_shapes(trained)  # raises if a layer has no per-example gradients
        self.draws.check(trained.process.T)
        recorded.check_optimizer(self.optimizer, self)
        try:
            recorded.check_checkpoints(self.checkpoint_count, self)
        except FieldError as error:
            message = f"{self.segments} segments take {self.checkpoint_count} checkpoints, but {error.message}"
            raise FieldError(self, "per_segment", message) from error
        return with_replicates(self, SourceScores(self, train, queries, recorded))

    @property
    def checkpoint_count(self) -> int:
        """The number of checkpoints of all segments."""
        return self.segments * self.per_segment

    def curvature_passes(self, trained: Recorded, train: ImageSet) -> float:
        """The passes of all bases and, for Adam, of the squares of batch gradients. Their number does not depend on the record."""
        steps = range(BATCHES, BATCHES + self.per_segment)  # arbitrary ones
        basis = self.curvature.checkpoint_basis(trained, steps, train, self.flips)
        factors = self.curvature.checkpoint_factors(trained, steps, train, self.flips)
        squares = self.squares(trained, Segment(0, steps[-1], tuple(steps)), train)
        return self.segments * sum(node.cost().passes for node in (basis, *factors.checkpoints, *squares))

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return {"horizon": self.horizons}


@dataclass(frozen=True)
class SourceScores(ShardedScores):
    """The scores at all horizons, ``[horizons, Q, N]``."""

    NAME = "SourceScores"
    VERSION = 1
    TITLE = "SOURCE scores"

    estimator: Source
    trained: Recorded

    def parts(self, get: Get) -> list[Node]:
        return [batch for of_rows in zip(*self.batches(get).values(), strict=True) for batch in of_rows]  # by queries

    def cost(self) -> Cost:
        """Includes the curvature: before training, a plan cannot see the parts that need it."""
        estimator, size = self.estimator, FLOAT32_BYTES * len(self.estimator.horizons) * self.pairs
        sides = estimator.segments * self.queries.count * estimator.query_bytes(self.trained)
        scratch = min(sides, estimator.execution.scratch)
        curvature = estimator.curvature_passes(self.trained, self.train)
        return Cost(passes=self._gradients + curvature, memory=4 * size, disk=size, scratch=scratch)

    def passes(self, get: Get) -> float:
        """Segments share the passes of the queries."""
        return self._gradients

    @property
    def _gradients(self) -> float:
        """The passes of the queries, and of the training images at all checkpoints."""
        draws, checkpoints = self.estimator.draws, self.estimator.checkpoint_count
        return self.queries.count * draws.side("query").count + checkpoints * self.train.count * draws.side("train").count

    def compute(self, get: Get) -> Scores:
        total = np.zeros((len(self.estimator.horizons), self.queries.count, self.train.count))
        for batches in self.batches(get).values():
            total += with_all_queries(get.many(batches))
        total /= self.estimator.per_segment
        return self.assembled(total, get, {"horizon": self.estimator.horizons})

    def batches(self, get: Get) -> dict[int, list[SourceBatch]]:
        """The products of all queries with all training images, by the step of the checkpoint."""
        estimator, segments = self.estimator, self.segments(get)
        size = len(segments) * estimator.query_bytes(self.trained)
        return {
            step: [
                SourceBatch(estimator, self.trained, self.train, self.queries, rows, segments[place:], step)
                for rows in estimator.execution.query_batches(self.queries.count, size)
            ]
            for place, segment in enumerate(segments)
            for step in segment.checkpoints
        }

    def segments(self, get: Get) -> tuple[Segment, ...]:
        """The segments of training.

        Raises:
            FieldError: training recorded too few checkpoints.
            ValueError: every learning rate is 0.
        """
        estimator, record = self.estimator, get(self.trained)
        steps = record.steps
        if len(steps) < estimator.checkpoint_count:
            message = f"{estimator.segments} segments take {estimator.checkpoint_count} checkpoints, but training recorded"
            raise FieldError(estimator, "per_segment", f"{message} {', '.join(map(str, steps))}: request fewer, or record more")
        segments = segments_of(steps, estimator.segments, estimator.per_segment)
        refuse_zero_rates({segment.last: segment.summed_rates(record) for segment in segments})
        return tuple(segments)
