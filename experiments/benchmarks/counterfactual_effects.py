"""The effects of removals on queries in counterfactuals: on their measurement, and on the images generated again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from experiments import figures
from experiments.benchmarks.removals import RemovedSets
from experiments.benchmarks.variants import Variant
from experiments.metrics import counterfactual as metrics
from experiments.report.row import Subject

DELTA, PIXELS, EMBEDDED = "delta_measurement", "image_l2", "embedding_distance"
RANDOM, NOTHING = Subject("random removal"), Subject("nothing removed")
MEASURED = "counterfactual"
"""The benchmark in rows about changes of the measurement."""
ORIGINAL = "counterfactual images"
"""The benchmark in rows about distances from the original images."""
INTACT = "counterfactual images of the same seed"
"""The benchmark in rows about distances from the images that models of all data generate with the same seed."""
REFERENCES = {ORIGINAL: " from the original", INTACT: ", same seed"}
TITLES = {DELTA: "Δ measurement", PIXELS: "image ℓ2", EMBEDDED: "embedding"}


@dataclass(frozen=True, eq=False)
class Removed:
    """The indices of the sets that a variant removes, ``sets [F, Q]``, for each fraction and query."""

    variant: Variant
    sets: np.ndarray


@dataclass(frozen=True, eq=False)
class Outcome:
    """``values [K, Q, M]`` of one metric for one kind of queries, with each of K seeds and without each of M sets."""

    benchmark: str
    metric: str
    queries: str
    values: np.ndarray

    @property
    def title(self) -> str:
        """The name in figures."""
        return TITLES[self.metric] + REFERENCES.get(self.benchmark, "")


def effects_of(outcome: Outcome, removed: Sequence[Removed], sets: RemovedSets, f: int) -> list[tuple[Subject, np.ndarray]]:
    """The effects ``[Q, R, K]`` of removing the fraction ``f``: of every estimator, then of random removals and of no removal."""
    queries, random = outcome.values.shape[1], sets.random[f]
    indices = [(removal.variant.subject, removal.sets[f, :, None]) for removal in removed]
    indices += [(RANDOM, np.broadcast_to(random, (queries, len(random)))), (NOTHING, np.zeros((queries, 1), np.int64))]
    return [(subject, metrics.effect(outcome.values, sets_of_subject)) for subject, sets_of_subject in indices]


def boxes(outcomes: Sequence[Outcome], removed: Sequence[Removed], sets: RemovedSets, fractions: Sequence[float]) -> Figure:
    """The effects of the largest removal as boxes over queries, a panel for each outcome; effects are means over seeds."""
    f = int(np.argmax(fractions))
    panels = {
        outcome.title: {
            subject.label: effect.mean((1, 2))
            for subject, effect in effects_of(outcome, removed, sets, f)
            if subject != NOTHING or outcome.benchmark == ORIGINAL  # elsewhere it is 0
        }
        for outcome in outcomes
    }
    queries = outcomes[0].values.shape[1]
    return figures.boxes(panels, f"{percent(fractions[f])} of the training images removed, {queries} queries")


def percent(fraction: float) -> str:
    """A share as it is part of the names of metrics, such as "2%"."""
    return f"{100 * fraction:g}%"
