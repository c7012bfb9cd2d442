"""Estimators of the form ``τ[q, z] = Σ_k η_k ⟨Q_k(q), G_k(z)⟩``, summed over recorded checkpoints k with learning rates η_k.

A method (``tracin``, ``retrac``) defines Q and G. The products at one checkpoint are computed in blocks (``trajectory_blocks``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from attribution.estimators.layer_weights import with_layers
from attribution.estimators.layers import AllLayers
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores, with_all_queries
from attribution.estimators.training_trajectory_blocks import HALVES, CheckpointEstimator, TrajectoryBatch, half_columns
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES
from attribution.gradients.network_cache import gradient_shapes
from attribution.images import ImageSet, bins
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node
from attribution.training import Recorded, require_record
from attribution.training.checkpoints import at_least, select

SHARED = (
    "attribution.estimators.layer_weights",
    "attribution.estimators.sharded",
    "attribution.estimators.training_trajectory_blocks",
    "attribution.images.bins",
    "attribution.training.checkpoints",
)


RECORDED = "every training image is taken at the draw that training recorded"
"""Why an estimator that replays training takes no draws of training images."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryEstimator(CheckpointEstimator):
    """An estimator that replays training at some of its checkpoints.

    ``checkpoints``: "all", "last", a number (spread over the steady decline of the loss) or a list of recorded steps.
    ``measurement`` and ``draws`` apply to the queries. Training examples are taken at their recorded draw, with the training loss.
    """

    DRAW_BINS = True
    RECORDED_DRAWS = True
    REPLICATED = ("query",)

    checkpoints: int | str | Sequence[int] = 4

    def __post_init__(self):
        self.draws.refuse_sides(RECORDED)

    def at_checkpoint(self, step: int) -> Self:
        """This estimator with its draws at one checkpoint. The step is a field of the node that uses it."""
        return replace(self, checkpoints=(), draws=self.draws.at_checkpoint(step))

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        recorded = require_record(trained, type(self).__name__)
        self.measurement.subject(queries)
        names = list(gradient_shapes(trained))  # raises if a layer has no per-example gradients
        recorded.check_checkpoints(self.checkpoints, self, visited=True)
        self.draws.check(trained.process.T)
        return with_layers(self, TrajectoryScores(self, train, queries, recorded), names)


@dataclass(frozen=True)
class TrajectoryScores(ShardedScores):
    """``Σ_k η_k ⟨Q_k, G_k⟩``, by pair of bins of the query's and the training example's timesteps if there are several bins."""

    NAME = "TrajectoryScores"
    VERSION = 2
    TITLE = "scores over the checkpoints"

    estimator: TrajectoryEstimator
    trained: Recorded

    def parts(self, get: Get) -> list[Node]:
        # Checkpoint by checkpoint: a worker then loads each network once.
        return [batch for step in self.steps(get) for batch in self.batches(step)]

    def cost(self) -> Cost:
        steps, bins = at_least(self.estimator.checkpoints), self.estimator.draws.bins
        shapes = gradient_shapes(self.trained)
        share = self.estimator.layers.size(shapes) / AllLayers().size(shapes)  # groups of layers share their passes
        passes = share * (self.queries.count * self.estimator.draws.count + self.train.count)
        scores = FLOAT32_BYTES * self.pairs * ((bins + (bins > 1)) ** 2 + HALVES)
        summed = 3 * FLOAT64_BYTES * self.pairs * HALVES * bins**2
        sides = min(self.queries.count * self.estimator.query_bytes(self.trained), self.estimator.execution.scratch)
        block = self.batches(0)[0].training_blocks[0]  # blocks of all checkpoints take the same memory
        largest = max((part.cost() for part in [block, *block.query_blocks()]), key=lambda cost: cost.memory)
        memory = max(summed, largest.memory)
        return Cost(passes=steps * passes, at_once=largest.at_once, memory=memory, disk=scores, scratch=sides)

    def compute(self, get: Get) -> Scores:
        record, train, scheme, T = get(self.trained), get(self.train), self.estimator.draws, self.trained.process.T
        refuse_zero_rates({step: record.learning_rate(step) for step in self.steps(get)})
        total: Any = 0
        for step in self.steps(get):
            products = with_all_queries(get.many(self.batches(step))).astype(np.float64)  # [query bin, half, Q, N]
            trained_in = bins.bin_of(record.latest_timesteps(step, train.index), scheme.bins, T).numpy()
            inside = trained_in == np.arange(scheme.bins)[:, None]
            # [query bin, training bin, half, Q, N]
            total = total + record.learning_rate(step) * products[:, None] * inside[None, :, None, None]
        halves, shares = total.sum((0, 1)), half_shares(self.estimator)
        values = np.tensordot(shares, total, axes=(0, 2))
        names = bins.labels(scheme.bins, T)
        several = scheme.bins > 1
        return self.assembled(
            bins.with_sums(values, (0, 1)) if several else values[0, 0],
            get,
            axes={"query_bin": names, "train_bin": names} if several else {},
            halves=halves.astype(np.float32) if len(shares) == HALVES else None,
        )

    def batches(self, step: int) -> list[TrajectoryBatch]:
        """The products of all queries with all training examples at one checkpoint."""
        estimator = self.estimator.at_checkpoint(step)
        size = replace(estimator, layers=AllLayers()).query_bytes(self.trained)  # parts of the layers lie on disk together
        return [
            TrajectoryBatch(estimator, self.trained, self.train, self.queries, rows, step)
            for rows in estimator.execution.query_batches(self.queries.count, size)
        ]

    def steps(self, get: Get) -> list[int]:
        """The steps of the chosen checkpoints."""
        record = get(self.trained)
        return select(self.estimator.checkpoints, record.steps, record.losses, self.estimator)


def half_shares(estimator: CheckpointEstimator) -> np.ndarray:
    """The share of all draws that lies in each half: ``[2]``, or ``[1]`` if there is one draw only."""
    return np.array([len(columns) / estimator.draws.count for columns in half_columns(estimator.draws)])


def refuse_zero_rates(rates: Mapping[int, float]) -> None:
    """Check that the learning rates, by step, are not all 0.

    Raises:
        ValueError: every rate is 0, so all scores would be 0.
    """
    if not any(rates.values()):
        raise ValueError(
            f"the learning rate is 0 at checkpoint {', '.join(map(str, rates))}: all scores would be 0; choose other "
            "checkpoints, or train with another learning rate, warm-up or schedule of rates"
        )
