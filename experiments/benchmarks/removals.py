"""Training once more without the images that estimators name, and without random ones: what counterfactuals compare."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.execution import Execution
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Arrays, Cost, Get, Node, execution
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from experiments.benchmarks.variants import is_whole
from experiments.metrics.ranking import top_k
from experiments.models.retrained import Retrained
from experiments.models.samples import Samples
from experiments.models.trained import TrainedModel
from experiments.models.truth import Truth

SHARED = ("experiments.metrics.common",)


@dataclass(frozen=True)
class Ranking:
    """The ``scores`` of an ``estimator`` for ``queries``."""

    NAME = "Ranking"
    VERSION = 1

    queries: ImageSet
    estimator: Estimator
    scores: Node[Scores]

    def whole(self, get: Get) -> list[np.ndarray]:
        """Scores of all timesteps ``[Q, N]``, at each swept value."""
        return [found.values for settings, found in self.estimator.variants(get(self.scores)) if is_whole(settings)]


@dataclass(frozen=True)
class RemovedSets:
    """M different sets of training images, and by their numbers 0..M-1 who removes which; 0 is empty.

    ``rows``: the training rows of each set. ``random`` ``[F, R]``: of each fraction and random removal. ``top``: for each ranking
    and variant ``[F, Q]``, of each fraction and query.
    """

    rows: Sequence[np.ndarray]
    random: np.ndarray
    top: Sequence[Sequence[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Outcomes(Arrays):
    """``removed`` bool ``[M, N]``: each set; ``measured`` float64 ``[K, Q, M]``, the queries of all kinds one after another."""

    removed: np.ndarray
    measured: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Removals(Node[Outcomes]):
    """What the queries measure when ``record`` is trained without the top ``fractions`` of each of ``rankings``, for each query.

    Also without ``random`` random sets of the same sizes, the larger ones containing the smaller, and with all images; every time
    with each of ``seeds``, for ``steps`` steps. All queries are measured under all models, at the same ``draws``.
    """

    NAME = "Removals"
    VERSION = 1
    TITLE = "retraining without removed images"
    ARTIFACT = Outcomes

    record: TrainedModel
    rankings: Sequence[Ranking]
    fractions: Sequence[float]
    random: int
    random_seed: int
    seeds: Sequence[int]
    steps: int
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    execution: Execution = execution(default=Execution())

    @property
    def queries(self) -> list[ImageSet]:
        """Each kind once, in the order of the rankings."""
        return list({ranking.queries.fingerprint: ranking.queries for ranking in self.rankings}.values())

    def place(self, queries: ImageSet) -> slice:
        """Where a kind of queries stands in ``Outcomes.measured``."""
        names = [kind.fingerprint for kind in self.queries]
        position = names.index(queries.fingerprint)
        start = sum(kind.count for kind in self.queries[:position])
        return slice(start, start + queries.count)

    def sets(self, get: Get) -> RemovedSets:
        """Who removes what. Equal sets have one number, whoever asks for them."""
        get.many([ranking.scores for ranking in self.rankings])  # in the passes that they share
        N = self.record.data.count
        counts = [removed_count(fraction, N) for fraction in self.fractions]
        rows, numbers = [np.zeros(0, np.int64)], {b"": 0}

        def numbered(removed: np.ndarray) -> int:
            removed = np.sort(removed).astype(np.int64)
            if (name := removed.tobytes()) not in numbers:
                numbers[name] = len(rows)
                rows.append(removed)
            return numbers[name]

        def prefixes(orders: np.ndarray) -> np.ndarray:
            return np.array([[numbered(order[:k]) for order in orders] for k in counts])

        random = prefixes(random_orders(N, self.random, self.random_seed))
        top = [[prefixes(top_k(scores, max(counts))) for scores in ranking.whole(get)] for ranking in self.rankings]
        return RemovedSets(rows, random, top)

    def truth(self, sets: RemovedSets) -> Truth:
        """The models, a selection for each set."""
        return Truth(
            record=self.record,
            selections=[Selection.without(removed, self.record.data.count) for removed in sets.rows],
            seeds=self.seeds,
            steps=self.steps,
            draws=self.draws,
            mode=self.mode,
            execution=self.execution,
        )

    def regenerated(self, queries: Samples, sets: RemovedSets) -> tuple[list[int], list[Samples]]:
        """The sets of M' that concern ``queries``, and these queries sampled anew, from the same noise: K·M' nodes, by seed."""
        top = [
            of for ranking, of in zip(self.rankings, sets.top, strict=True) if ranking.queries.fingerprint == queries.fingerprint
        ]
        concern = sorted({0, *sets.random.flat, *(number for of in top for numbers in of for number in numbers.flat)})
        models, M = self.truth(sets).models(), len(sets.rows)
        return concern, [dataclasses.replace(queries, record=models[k * M + m]) for k in range(len(self.seeds)) for m in concern]

    def parts(self, get: Get) -> Sequence[Node]:
        sets = self.sets(get)
        truth = self.truth(sets)
        measured = [node for queries in self.queries for node in truth.nodes(self.measurement, queries)]
        samples = [queries for queries in self.queries if isinstance(queries, Samples)]
        return [*measured, *(node for queries in samples for node in self.regenerated(queries, sets)[1])]

    def compute(self, get: Get) -> Outcomes:
        sets = self.sets(get)
        truth = self.truth(sets)
        measured = [truth.measured(truth.nodes(self.measurement, queries), get) for queries in self.queries]
        removed = np.zeros((len(sets.rows), self.record.data.count), dtype=bool)
        for mask, rows in zip(removed, sets.rows, strict=True):
            mask[rows] = True
        return Outcomes(removed, np.concatenate(measured, 1))

    def cost(self) -> Cost:
        """At most, of one variant of each estimator: which sets are equal, only the scores tell."""
        sets = 1 + len(self.fractions) * (self.random + sum(ranking.queries.count for ranking in self.rankings))
        everything = Selection(np.arange(self.record.data.count))
        one = Retrained.of(self.record, everything, self.seeds[0], self.steps, self.mode, self.execution).cost()
        measuring = sum(queries.count for queries in self.queries) * self.draws.count / 3
        sampling = sum(queries.cost().passes for queries in self.queries if isinstance(queries, Samples))
        models = len(self.seeds) * sets
        return Cost(passes=models * (one.passes + measuring + sampling), memory=one.memory, disk=models * one.disk)


def removed_count(fraction: float, examples: int) -> int:
    """How many of ``examples`` training images a fraction is.

    Raises:
        ValueError: none of them, or all.
    """
    count = round(fraction * examples)
    if not 1 <= count < examples:
        raise ValueError(
            f"benchmark.fractions has {fraction}, which is {count} of {examples} training images: at least one must be removed, "
            f"and one be left"
        )
    return count


def random_orders(examples: int, count: int, seed: int) -> np.ndarray:
    """``count`` random orders of the rows ``[count, N]``; the first do not depend on how many there are."""
    return np.stack([np.random.default_rng([seed, 0xC0F, number]).permutation(examples) for number in range(count)])
