"""Averages of ranks: one ranking of the training images from those of several estimators (Borda 1781; Dwork et al. 2001, WWW).

    τ[q, z] = mean over estimators e of (r_e(q, z) - 1)/(N - 1)

where r_e(q, z) is the rank of z among the N training images by the scores of e for q, 1 for the smallest; images with equal scores
have the mean of their ranks. It is the Borda count, scaled to 0..1. A rank forgets the scale of scores, which differs between
estimators, and with it how far scores are apart. Nothing but the order enters, so any increasing function of an estimator's scores
gives the same average. A score is not a change of a measurement any more; the sum over a set of images is a sum of ranks.

With ``scale="standard"`` the mean is over standard scores: (τ_e[q, z] - mean)/(standard deviation) over training images of a query.
They too have no units, but keep how far scores are apart, which matters where scores are summed, as in the LDS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from scipy.stats import rankdata

from attribution.checks import FieldError
from attribution.estimators.base import Estimator
from attribution.estimators.scores import Scores
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node

SHARED = ("attribution.estimators.base", "attribution.estimators.scores")


@dataclass(frozen=True, kw_only=True)
class RankAverage(Estimator):
    """The mean rank of each training image by the estimators ``of``, by name, or with ``scale="standard"`` its mean standard score.

    The command line gives the names alone, and ``experiments.tasks.composition`` the estimators.
    """

    NAME = "RankAverage"
    VERSION = 1

    of: Sequence[str] | Mapping[str, Estimator]
    scale: Literal["rank", "standard"] = "rank"

    def __post_init__(self):
        if self.scale not in SCALES:
            raise FieldError(self, "scale", f"choose {' or '.join(SCALES)}")
        if self.models != 1:
            raise FieldError(self, "models", "its estimators have models of their own: set those, or choose one of them")
        names = list(self.of)
        if len(names) < 2:
            raise FieldError(self, "of", "an average is over at least two estimators: name another one", names)
        if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
            raise FieldError(self, "of", f"{repeated[0]} is named twice: name each estimator once", names)
        if isinstance(self.of, Mapping):
            for name, part in self.of.items():
                if isinstance(part, RankAverage):
                    raise FieldError(
                        self, "of", f"{name} is an average of ranks itself: name the estimators that it averages", names
                    )

    @property
    def parts(self) -> dict[str, Estimator]:
        """The estimators by name, in the order of names, which does not matter."""
        if not isinstance(self.of, Mapping):
            raise FieldError(self, "of", "these are names: give a mapping of names to estimators", list(self.of))
        return dict(sorted(self.of.items()))

    def of_parts(self, change: Callable[[Estimator], Estimator]) -> Self:
        return replace(self, of={name: change(part) for name, part in self.parts.items()})

    def explains(self, queries: ImageSet) -> bool:
        return all(part.explains(queries) for part in self.parts.values())

    def measuring(self, measure: Measure) -> Self:
        return self.of_parts(lambda part: part.measuring(measure))

    def notes(self) -> list[str]:
        return [note for part in self.parts.values() for note in part.notes()]

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        for part in self.parts.values():
            if isinstance(draws := getattr(part, "draws", None), DrawScheme):
                draws.refuse_lists("an average of ranks", replicates=True)
            for name, values in part.requested().items():
                if len(values) != 1:
                    raise FieldError(part, name, "an average of ranks takes one value", list(values))
        members = tuple(part.scores(trained, train, queries) for part in self.parts.values())
        return RankAverageScores(self, members)


@dataclass(frozen=True)
class RankAverageScores(Node[Scores]):
    """The mean of the ranks (or standard scores) of ``members``, the scores of the estimator's parts: ``[Q, N]``."""

    NAME = "RankAverageScores"
    VERSION = 1
    TITLE = "averages of ranks"
    ARTIFACT = Scores

    estimator: RankAverage
    members: tuple[Node[Scores], ...]

    def cost(self) -> Cost:
        size = min(member.cost().disk for member in self.members)
        return Cost(memory=(len(self.members) + 1) * size, disk=size)

    def passes(self, get: Get) -> float:
        return sum(member.passes(get) for member in self.members)

    def compute(self, get: Get) -> Scores:
        found = get.many(self.members)
        variants = [part.variants(scores) for part, scores in zip(self.estimator.parts.values(), found, strict=True)]
        values = [scores.values for [(_, scores)] in variants]
        scaled = SCALES[self.estimator.scale]
        mean = np.empty(values[0].shape, np.float32)
        for q in range(len(mean)):  # one at a time in float64
            mean[q] = np.mean([scaled(of[q]) for of in values], axis=0)
        return Scores(mean, np.array(found[0].query_index), np.array(found[0].train_index))


def ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of ``values [N]`` from 0 (the smallest) to 1 (the largest); equal values have the mean of their ranks.

    Raises:
        FloatingPointError: a value is not finite.
    """
    return (rankdata(_finite(values)) - 1) / max(1, len(values) - 1)


def standard_scores(values: np.ndarray) -> np.ndarray:
    """``values [N]`` less their mean, over their standard deviation; 0 if they are equal. Raises as ``ranks`` does."""
    deviations = _finite(values).astype(np.float64) - values.mean(dtype=np.float64)
    return deviations / max(deviations.std(), np.finfo(np.float64).tiny)


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise FloatingPointError("scores are not finite: leave this estimator out of the average, or raise its damping")
    return values


SCALES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"rank": ranks, "standard": standard_scores}
"""What scores of a query become before they are averaged, by the value of ``scale``."""
