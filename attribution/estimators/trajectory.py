"""Estimators of the form ``τ[q, z] = Σ_k η_k ⟨Q_k(q), G_k(z)⟩``, summed over recorded checkpoints, and the pass that they share.

The work is cut into nodes: a ``QuerySide`` holds Q_k of a few queries at one checkpoint, a ``CheckpointScores`` the products of all
queries with a range of training examples there, and ``TrajectoryScores`` sums over checkpoints. Estimators that differ only
in how they weigh the draws of the same passes are computed together (``Node.together``).
"""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.draws import DrawScheme
from attribution.estimators.base import Estimator
from attribution.execution import ranges
from attribution.gradients import Captured, LayerGradients
from attribution.images import ImageSet
from attribution.measurements import Measure
from attribution.node import Artifact, Cost, Get, Node
from attribution.passes import dot, engine, key
from attribution.scores import Scores
from attribution.training import Recorded
from attribution.training.checkpoints import select

FLOAT = 4
HALVES = 2
"""The query draws are kept as two interleaved halves, whose agreement is the reliability of the scores."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryEstimator(Estimator):
    """An estimator that replays training at some of its checkpoints.

    ``checkpoints``: "all", "last", a number (spread over the steady decline of the loss) or a list of recorded steps.
    ``draws`` and ``measurement`` are the query side's; the training side's draw is the recorded one and its measure the loss.
    """

    measurement: Measure
    draws: DrawScheme
    checkpoints: int | str | Sequence[int] = 5

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
        return TrajectoryScores(self, record, train, queries)


@dataclass(frozen=True, eq=False)
class QueryGradients(Artifact):
    """``halves``: layer name → ``[2, Q, out, in]``, the mean over either half of the draws; ``weights [2]``: the halves' shares."""

    halves: LayerGradients
    weights: Tensor

    def save(self, folder: Path) -> None:
        save_file({**self.halves, "": self.weights}, folder / "gradients.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        tensors = load_file(folder / "gradients.safetensors")
        weights = tensors.pop("")
        return cls(tensors, weights)


@dataclass(frozen=True)
class QuerySide(Node[QueryGradients]):
    """Q_k of the queries ``rows[0]..rows[1]-1`` at one checkpoint."""

    ARTIFACT = QueryGradients
    TRANSIENT = True

    estimator: TrajectoryEstimator  # at one checkpoint
    record: Recorded
    queries: ImageSet
    rows: tuple[int, int]

    def together(self) -> Hashable:
        e = self.estimator
        return key(self.record, self.queries, self.rows, e.checkpoints, e.measurement, e.draws)

    def cost(self) -> Cost:
        queries = self.rows[1] - self.rows[0]
        size = HALVES * queries * self.record.parameter_count * FLOAT
        return Cost(passes=queries * self.estimator.draws.count, memory=2 * size, disk=size)

    def compute(self, get: Get) -> QueryGradients:
        return self.compute_together([self], get)[0]

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[QueryGradients]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        device = first.estimator.execution.torch_device()
        per_example = engine(first.record, step_of(first.estimator), first.estimator.execution, get)
        images = get(first.queries)
        rows = slice(*first.rows)
        x0 = images.x0(rows).to(device)
        scheme = first.estimator.draws
        draws = scheme.draw("query", images.ids(rows).to(device), first.record.schedule.T)
        columns = [torch.arange(i, scheme.count, HALVES, device=device) for i in range(min(HALVES, scheme.count))]
        sides: list[list[LayerGradients]] = [[] for _ in nodes]
        for half in columns:
            # As many queries at a time as one pass holds: estimators then share it.
            blocks: list[list[LayerGradients]] = [[] for _ in nodes]
            for start, stop in ranges(0, len(x0), max(1, first.estimator.execution.batch_size // len(half))):
                some = slice(start, stop)
                captured = per_example.capture(first.estimator.measurement, x0[some], draws.rows(some).columns(half))
                if len(nodes) > 1:
                    captured.hold()
                for block, node in zip(blocks, nodes, strict=True):
                    block.append(node.estimator.query_side(captured))
            for side, block in zip(sides, blocks, strict=True):
                side.append({layer: torch.cat([part[layer] for part in block]) for layer in block[0]})
        weights = torch.tensor([len(half) / scheme.count for half in columns], dtype=torch.float64)
        return [
            QueryGradients({layer: torch.stack([half[layer] for half in side]).float().cpu() for layer in side[0]}, weights)
            for side in sides
        ]


@dataclass(frozen=True, eq=False)
class Products(Artifact):
    """``⟨Q_k, G_k⟩`` by half of the query draws, float32 ``[2, Q, n]``, and the halves' shares ``[2]``."""

    values: np.ndarray
    weights: np.ndarray

    def save(self, folder: Path) -> None:
        np.save(folder / "products.npy", self.values)
        np.save(folder / "weights.npy", self.weights)

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(np.load(folder / "products.npy"), np.load(folder / "weights.npy"))


@dataclass(frozen=True)
class CheckpointScores(Node[Products]):
    """The products of all queries with the training examples ``rows[0]..rows[1]-1`` at one checkpoint."""

    ARTIFACT = Products
    TRANSIENT = True

    estimator: TrajectoryEstimator  # at one checkpoint
    record: Recorded
    train: ImageSet
    queries: ImageSet
    rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(self.record, self.train, self.rows, self.estimator.checkpoints)

    def cost(self) -> Cost:
        examples = self.rows[1] - self.rows[0]
        block = self.estimator.execution.examples_at_once(self.record.parameter_count)
        held = 2 * block + HALVES * self.queries.count
        return Cost(passes=examples, memory=held * self.record.parameter_count * FLOAT)

    def compute(self, get: Get) -> Products:
        return self.compute_together([self], get)[0]

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[Products]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = nodes[0]
        device = first.estimator.execution.torch_device()
        per_example = engine(first.record, step_of(first.estimator), first.estimator.execution, get)
        record, train = get(first.record), get(first.train)
        queries = [get.many(query_sides(node.estimator, node.record, node.queries)) for node in nodes]
        blocks: list[list[Tensor]] = [[] for _ in nodes]
        for start, stop in ranges(*first.rows, first.estimator.execution.examples_at_once(first.record.parameter_count)):
            rows = slice(start, stop)
            draws = record.latest_draws(step_of(first.estimator), train.index[rows]).to(device)
            captured = per_example.capture(first.record.objective, train.x0(rows).to(device), draws)
            for products, node, sides in zip(blocks, nodes, queries, strict=True):
                gradients = node.estimator.train_side(captured)
                products.append(torch.cat([dot(side.halves, gradients) for side in sides], dim=1).cpu())
        return [
            Products(torch.cat(products, dim=2).float().numpy(), sides[0].weights.numpy())
            for products, sides in zip(blocks, queries, strict=True)
        ]


@dataclass(frozen=True)
class TrajectoryScores(Node[Scores]):
    """``Σ_k η_k ⟨Q_k, G_k⟩`` for all queries and training examples."""

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
        record = get(self.record)
        shards = [part for part in self.parts(get) if isinstance(part, CheckpointScores)]
        total: Any = 0
        weights = np.ones(1)
        refuse_zero_rates({step: record.learning_rate(step) for step in self._steps(get)})
        for step in self._steps(get):
            products = get.many([shard for shard in shards if step_of(shard.estimator) == step])
            weights = products[0].weights
            total = total + record.learning_rate(step) * np.concatenate([p.values.astype(np.float64) for p in products], axis=2)
        return Scores(
            values=np.tensordot(weights, total, axes=1).astype(np.float32),
            query_index=np.array(get(self.queries).index),
            train_index=np.array(get(self.train).index),
            halves=total.astype(np.float32) if len(weights) == HALVES else None,
        )

    def cost(self) -> Cost:
        wanted = self.estimator.checkpoints
        steps = wanted if isinstance(wanted, int) else 1 if isinstance(wanted, str) else len(wanted)  # at least one
        passes = self.queries.count * self.estimator.draws.count + self.train.count
        # All query sides lie on disk until the scores are stored, and those of a checkpoint are in memory at a time.
        sides = FLOAT * HALVES * self.queries.count * self.record.parameter_count
        scores = FLOAT * (1 + HALVES) * self.queries.count * self.train.count
        return Cost(passes=steps * passes, memory=sides, disk=steps * sides + scores)

    def _steps(self, get: Get) -> list[int]:
        record = get(self.record)
        return select(self.estimator.checkpoints, record.steps, record.losses)


def query_sides(estimator: TrajectoryEstimator, record: Recorded, queries: ImageSet) -> list[QuerySide]:
    """The query sides of an estimator at one checkpoint, in order of the queries."""
    blocks = ranges(0, queries.count, estimator.execution.query_shard)
    return [QuerySide(estimator, record, queries, rows) for rows in blocks]


def refuse_zero_rates(rates: Mapping[int, float]) -> None:
    """Raises ValueError: every checkpoint has learning rate 0, so that all scores would be 0."""
    if not any(rates.values()):
        raise ValueError(
            f"the learning rate is 0 at checkpoint {', '.join(map(str, rates))}: all scores would be 0; choose other "
            "estimator.checkpoints, or change optimizer.lr, trainer.warmup or trainer.lr_schedule"
        )


def step_of(estimator: TrajectoryEstimator) -> int:
    """The step of an estimator that is ``at`` one checkpoint."""
    assert isinstance(estimator.checkpoints, tuple)
    (step,) = estimator.checkpoints
    return step
