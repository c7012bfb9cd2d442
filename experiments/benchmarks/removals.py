"""Models trained again without the images that estimators rank first, or on these only, and the same with random images."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.execution import FLOAT64_BYTES, Execution
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Arrays, Cost, Get, Node, added, execution
from attribution.precision import FLOAT32
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from experiments.benchmarks.variants import variants_of
from experiments.metrics.ranking import top_k
from experiments.models.models_on_disk import ManyRetrained, at_a_time
from experiments.models.retrained import Retrained
from experiments.models.samples import Samples
from experiments.models.trained import TrainedModel
from experiments.models.truth import Truth

SHARED = ("experiments.metrics.ranking",)


@dataclass(frozen=True)
class Ranking:
    """The ``scores`` of an ``estimator`` for ``queries``, which rank the training images."""

    NAME = "Ranking"
    VERSION = 1

    queries: ImageSet
    estimator: Estimator
    scores: Node[Scores]

    def of_all_timesteps(self, get: Get) -> list[np.ndarray]:
        """The scores ``[Q, N]`` at each swept value, without scores of bins of timesteps."""
        variants = variants_of("", self.estimator, self.scores, get(self.scores), get)
        return [variant.scores.values for variant in variants if variant.all_timesteps]


@dataclass(frozen=True)
class RemovedSets:
    """M different sets of training images, and the indices 0..M-1 of the set that each removal takes away.

    Set 0 is empty, unless models are trained on the sets. ``rows`` are the training rows in each set. ``random [F, R]`` are the
    indices of the sets for each fraction and random removal; ``top`` has an array ``[F, Q]`` of them for each ranking and variant,
    by fraction and query.
    """

    rows: Sequence[np.ndarray]
    random: np.ndarray
    top: Sequence[Sequence[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Outcomes(Arrays):
    """``removed`` bool ``[M, N]``: the images that each model lacks; ``measured`` float64 ``[K, Q, M]``: queries of all kinds."""

    removed: np.ndarray
    measured: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Removals(Node[Outcomes], ManyRetrained):
    """The measurements of all queries under models trained without the top ``fractions`` of each of ``rankings``, for each query.

    Further models are trained without ``random`` random sets of the same sizes, the larger ones containing the smaller, and with
    all images. Each is trained with each of ``seeds``, for ``steps`` steps. All queries are measured under all models, at the same
    ``draws``, in ``precision``. Without ``keep_models`` a model is deleted when its measurements and its generated images are
    stored.

    With ``only`` models are trained on nothing but these sets, and none on all images. Without ``regenerate`` generated queries are
    not generated again beforehand.
    """

    NAME = "Removals"
    VERSION = 1
    TITLE = "retraining without removed images"
    ARTIFACT = Outcomes

    trained: TrainedModel
    rankings: Sequence[Ranking]
    fractions: Sequence[float]
    random: int
    random_seed: int
    seeds: Sequence[int]
    steps: int
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    precision: str = added(default=FLOAT32)
    only: bool = added(default=False)
    regenerate: bool = execution(default=True)
    keep_models: bool = execution(default=True)
    execution: Execution = execution(default=Execution())

    @property
    def queries(self) -> list[ImageSet]:
        """Every kind of queries once, in the order of the rankings."""
        return list({ranking.queries.fingerprint: ranking.queries for ranking in self.rankings}.values())

    def place(self, queries: ImageSet) -> slice:
        """The position of a kind of queries in ``Outcomes.measured``."""
        names = [kind.fingerprint for kind in self.queries]
        position = names.index(queries.fingerprint)
        start = sum(kind.count for kind in self.queries[:position])
        return slice(start, start + queries.count)

    def sets(self, get: Get) -> RemovedSets:
        """The sets of images to remove, or to train on. Equal sets have the same index."""
        get.many([ranking.scores for ranking in self.rankings])  # together, in the passes that they share
        N = self.trained.data.count
        counts = [removed_count(fraction, N) for fraction in self.fractions]
        rows, indices = ([], {}) if self.only else ([np.zeros(0, np.int64)], {b"": 0})

        def index_of(removed: np.ndarray) -> int:
            removed = np.sort(removed).astype(np.int64)
            if (content := removed.tobytes()) not in indices:
                indices[content] = len(rows)
                rows.append(removed)
            return indices[content]

        def prefixes(orders: np.ndarray) -> np.ndarray:
            return np.array([[index_of(order[:k]) for order in orders] for k in counts])

        random = prefixes(random_orders(N, self.random, self.random_seed))
        top = [[prefixes(top_k(scores, max(counts))) for scores in ranking.of_all_timesteps(get)] for ranking in self.rankings]
        return RemovedSets(rows, random, top)

    def truth(self, sets: RemovedSets) -> Truth:
        """The retrained models, with a selection for each set."""
        return Truth(
            trained=self.trained,
            selections=[Selection(rows) if self.only else Selection.without(rows, self.trained.data.count) for rows in sets.rows],
            seeds=self.seeds,
            steps=self.steps,
            draws=self.draws,
            role="measurement",
            mode=self.mode,
            precision=self.precision,
            execution=self.execution,
            keep_models=self.keep_models,
        )

    def regenerated(self, queries: Samples, sets: RemovedSets) -> tuple[list[int], list[Samples]]:
        """The indices of the M' sets that are removed for ``queries``, and the queries sampled again from the same noise.

        There are K·M' nodes, ordered by seed, then by set.
        """
        pairs = zip(self.rankings, sets.top, strict=True)
        top = [variants for ranking, variants in pairs if ranking.queries.fingerprint == queries.fingerprint]
        indices = sorted({0, *sets.random.flat, *(index for variants in top for array in variants for index in array.flat)})
        models, M = self.truth(sets).models(), len(sets.rows)
        return indices, [dataclasses.replace(queries, trained=models[k * M + m]) for k in range(len(self.seeds)) for m in indices]

    def parts(self, get: Get) -> Sequence[Node]:
        sets = self.sets(get)
        truth = self.truth(sets)
        measured = [node for queries in self.queries for node in truth.nodes(self.measurement, queries)]
        samples = [queries for queries in self.queries if isinstance(queries, Samples) and self.regenerate]
        return [*measured, *(node for queries in samples for node in self.regenerated(queries, sets)[1])]

    def compute(self, get: Get) -> Outcomes:
        sets = self.sets(get)
        truth = self.truth(sets)
        measured = [truth.measured(truth.nodes(self.measurement, queries), get) for queries in self.queries]
        removed = np.zeros((len(sets.rows), self.trained.data.count), dtype=bool)
        for mask, rows in zip(removed, sets.rows, strict=True):
            mask[rows] = True
        return Outcomes(removed != self.only, np.concatenate(measured, 1))

    def cost(self) -> Cost:
        """An upper bound for one variant of each estimator: which sets are equal is known only from the scores."""
        model, models = self.most_retrained()
        one = model.cost()
        measuring = sum(queries.count for queries in self.queries) * self.draws.count / 3
        samples = [queries for queries in self.queries if isinstance(queries, Samples) and self.regenerate]
        sampling = sum(queries.cost().passes for queries in samples)
        return Cost(
            passes=models * (one.passes + measuring + sampling),
            inputs=one.inputs,
            memory=one.memory,
            disk=self.most_measured() + (models * one.disk if self.keep_models else 0.0),
            scratch=0.0 if self.keep_models else at_a_time(model, models),
        )

    def most_retrained(self) -> tuple[Retrained, int]:
        sets = (not self.only) + len(self.fractions) * (self.random + sum(ranking.queries.count for ranking in self.rankings))
        all_images = Selection(np.arange(self.trained.data.count))
        model = Retrained.of(self.trained, all_images, self.seeds[0], self.steps, self.mode, self.execution)
        return model, len(self.seeds) * sets

    def most_measured(self) -> float:
        values = FLOAT64_BYTES * sum(queries.count for queries in self.queries)
        images = sum(queries.cost().disk for queries in self.queries if isinstance(queries, Samples) and self.regenerate)
        return self.most_retrained()[1] * (values + images)


def removed_count(fraction: float, examples: int) -> int:
    """The number of images in a fraction of ``examples`` training images.

    Raises:
        ValueError: the fraction rounds to no image or to all images.
    """
    count = round(fraction * examples)
    if not 1 <= count < examples:
        raise ValueError(
            f"benchmark.fractions has {fraction}, which is {count} of {examples} training images: at least one must be removed, "
            f"and at least one kept"
        )
    return count


def random_orders(examples: int, count: int, seed: int) -> np.ndarray:
    """``count`` random orders of the rows, ``[count, N]``. An order does not depend on ``count``."""
    return np.stack([np.random.default_rng([seed, 0xC0F, index]).permutation(examples) for index in range(count)])
