"""Estimators of the form ``τ[q, z] = Σ_k η_k ⟨Q_k(q), G_k(z)⟩``, summed over recorded checkpoints, and the pass that they share.

The work is cut into nodes (``trajectory_nodes``): a ``QuerySide`` holds Q_k of a few queries at one checkpoint, a
``CheckpointScores`` the products of all queries with a range of training examples there, and ``TrajectoryScores`` sums over
checkpoints. Estimators that differ only in how they weigh the draws of the same passes are computed together (``Node.together``).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from attribution.estimators.base import Estimator
from attribution.estimators.scores import Scores
from attribution.estimators.trajectory_nodes import FLOAT, HALVES, CheckpointScores, query_sides, step_of
from attribution.execution import ranges
from attribution.gradients.per_example import Captured, LayerGradients
from attribution.images import ImageSet, bins
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Cost, Get, Node
from attribution.training import Recorded
from attribution.training.checkpoints import at_least, select


@dataclass(frozen=True, kw_only=True)
class TrajectoryEstimator(Estimator):
    """An estimator that replays training at some of its checkpoints.

    ``checkpoints``: "all", "last", a number (spread over the steady decline of the loss) or a list of recorded steps.
    ``draws`` and ``measurement`` are the query side's; the training side's draw is the recorded one and its measure the loss.
    """

    DRAW_BINS = True

    measurement: Measure
    draws: DrawScheme
    checkpoints: int | str | Sequence[int] = 4

    @abstractmethod
    def query_side(self, captured: Captured) -> LayerGradients:
        """Q(q) of each query from the gradients at its draws; linear in them up to weights of single draws."""

    @abstractmethod
    def train_side(self, captured: Captured) -> LayerGradients:
        """G(z) of each training example from the gradient at its recorded draw."""

    def at(self, step: int) -> Self:
        """This estimator with one checkpoint only."""
        return replace(self, checkpoints=(step,))

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        if not isinstance(record, Recorded):
            raise TypeError(
                f"{type(self).__name__} replays training and needs its record, but {type(record).__name__} has none: "
                "train the model here, or choose an estimator that works on a final model"
            )
        self.measurement.subject(queries)
        self.draws.check_bins(record.process.T)
        return TrajectoryScores(self, record, train, queries)


@dataclass(frozen=True)
class TrajectoryScores(Node[Scores]):
    """``Σ_k η_k ⟨Q_k, G_k⟩`` for all queries and training examples, by bins of their timesteps if there are several."""

    NAME = "TrajectoryScores"
    VERSION = 2
    TITLE = "scores over the checkpoints"
    ARTIFACT = Scores

    estimator: TrajectoryEstimator
    record: Recorded
    train: ImageSet
    queries: ImageSet

    def parts(self, get: Get) -> list[Node]:
        # Checkpoint by checkpoint: a worker then loads each network once.
        found: list[Node] = []
        for step in self._steps(get):
            at_step = self.estimator.at(step)
            found += query_sides(at_step, self.record, self.queries)
            found += [
                CheckpointScores(at_step, self.record, self.train, self.queries, rows)
                for rows in ranges(0, self.train.count, self.estimator.execution.shard)
            ]
        return found

    def compute(self, get: Get) -> Scores:
        record, draws = get(self.record), self.estimator.draws
        shards = [part for part in self.parts(get) if isinstance(part, CheckpointScores)]
        refuse_zero_rates({step: record.learning_rate(step) for step in self._steps(get)})
        total: Any = 0
        weights = np.ones(1)
        for step in self._steps(get):
            products = get.many([shard for shard in shards if step_of(shard.estimator) == step])
            weights = products[0].weights
            values = np.concatenate([p.values.astype(np.float64) for p in products], axis=3)
            inside = np.concatenate([p.train_bin for p in products]) == np.arange(draws.bins)[:, None]
            # [query bin, training bin, half, Q, N]
            total = total + record.learning_rate(step) * values[:, None] * inside[None, :, None, None]
        halves = total.sum((0, 1))
        values = np.tensordot(weights, total, axes=(0, 2))
        names = bins.labels(draws.bins, self.record.process.T)
        several = draws.bins > 1
        return Scores(
            values=(bins.with_sums(values, (0, 1)) if several else values[0, 0]).astype(np.float32),
            query_index=np.array(get(self.queries).index),
            train_index=np.array(get(self.train).index),
            axes={"query_bin": names, "train_bin": names} if several else {},
            halves=halves.astype(np.float32) if len(weights) == HALVES else None,
        )

    def cost(self) -> Cost:
        steps = at_least(self.estimator.checkpoints)
        passes = self.queries.count * self.estimator.draws.count + self.train.count
        # All query sides lie on disk until the scores are stored, and those of a checkpoint are in memory at a time.
        sides = FLOAT * HALVES * self.estimator.draws.bins * self.queries.count * self.record.parameter_count
        bins = self.estimator.draws.bins
        pairs = self.queries.count * self.train.count
        scores = FLOAT * pairs * ((bins + (bins > 1)) ** 2 + HALVES)
        summed = 3 * 8 * pairs * HALVES * bins**2
        return Cost(passes=steps * passes, memory=sides + summed, disk=steps * sides + scores)

    def _steps(self, get: Get) -> list[int]:
        record = get(self.record)
        return select(self.estimator.checkpoints, record.steps, record.losses)


def refuse_zero_rates(rates: Mapping[int, float]) -> None:
    """Raises ValueError: every checkpoint has learning rate 0, so that all scores would be 0."""
    if not any(rates.values()):
        raise ValueError(
            f"the learning rate is 0 at checkpoint {', '.join(map(str, rates))}: all scores would be 0; choose other "
            "estimator.checkpoints, or change optimizer.lr, trainer.warmup or trainer.lr_schedule"
        )
