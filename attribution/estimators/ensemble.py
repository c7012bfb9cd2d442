"""Scores of an ensemble: the mean over training runs that differ in their seed (Park et al. 2023, "TRAK", section 3.2, step 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution.estimators.scores import Scores
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node

SHARED = ("attribution.estimators.scores",)

FIRST_SEED = 2000
"""The training seed of the first further model, minus that of the explained one. Benchmarks and datamodels retrain with others: a
model with the initialization of a retrained one would be nearer to it than any other model of the same training set."""


def members_of(trained: Trained, models: int) -> list[Trained]:
    """``trained`` and ``models`` - 1 training runs with other seeds. Raises ValueError: it cannot be trained again."""
    return [trained, *(trained.member(FIRST_SEED + i) for i in range(models - 1))]


@dataclass(frozen=True)
class EnsembleScores(Node[Scores]):
    """The mean of the scores of several models, at the swept values that all of them have (a damping may be too small for one).

    The mean of the cross scores of groups of draws belongs to it, because all models take the same draws.
    """

    NAME = "EnsembleScores"
    VERSION = 1
    TITLE = "scores of the ensemble"
    ARTIFACT = Scores

    members: tuple[Node[Scores], ...]

    def cost(self) -> Cost:
        size = self.members[0].cost().disk
        return Cost(memory=2 * size, disk=size)

    def passes(self, get: Get) -> float:
        return sum(member.passes(get) for member in self.members)

    def compute(self, get: Get) -> Scores:
        members = get.many(self.members)
        first = members[0]
        axes = {
            name: [value for value in values if all(value in scores.axes[name] for scores in members)]
            for name, values in first.axes.items()
        }
        rows = [[[list(scores.axes[name]).index(value) for value in axes[name]] for name in axes] for scores in members]
        cross = [scores.cross for scores in members if scores.cross is not None]
        halves = [scores.halves for scores in members if scores.halves is not None]
        return Scores(
            _mean([scores.values for scores in members], rows),
            np.array(first.query_index),
            np.array(first.train_index),
            axes,
            _mean(halves, [[]] * len(halves)) if halves else None,
            _mean(cross, rows) if cross else None,
        )


def _mean(arrays: Sequence[np.ndarray], rows: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """The mean of ``arrays`` in float32; ``rows[m][a]`` are the rows of array m along its leading axis a that enter."""
    shape = [len(kept) for kept in rows[0]]
    mean = np.empty((*shape, *arrays[0].shape[len(shape) :]), np.float32)
    for point in np.ndindex(*shape):  # one at a time in float64
        places = [tuple(kept[place] for kept, place in zip(of, point, strict=True)) for of in rows]
        mean[point] = sum(array[place].astype(np.float64) for array, place in zip(arrays, places, strict=True)) / len(arrays)
    return mean
