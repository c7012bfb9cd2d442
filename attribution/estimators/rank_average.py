"""Averages of ranks: one ranking of the training images from those of several estimators (Borda 1781; Dwork et al. 2001, WWW).

    τ[q, z] = mean over estimators e of (r_e(q, z) - 1)/(N - 1)

where r_e(q, z) is the rank of z among the N training images by the scores of e for q, 1 for the smallest; images with equal scores
have the mean of their ranks. It is the Borda count, scaled to 0..1. A rank forgets the scale of scores, which differs between
estimators, and with it how far scores are apart. Nothing but the order enters, so any increasing function of an estimator's scores
gives the same average. A score is not a change of a measurement any more; the sum over a set of images is a sum of ranks.

With ``normalize="standard"`` the mean is over standard scores: (τ_e[q, z] - mean)/(standard deviation) over training images of a
query. They too have no units, but keep how far scores are apart, which matters where scores are summed, as in the LDS. For a fixed
mean and deviation, those of the scores from all draws, standard scores are linear, so that cross scores of groups of draws can be
averaged. If an estimator draws but has no groups, the average has no cross scores, because its noise would be missing.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from scipy.stats import rankdata

from attribution.checks import FieldError
from attribution.estimators.base import SETTINGS, Estimator
from attribution.estimators.scores import Scores
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node

SHARED = ("attribution.estimators.base", "attribution.estimators.scores")


@dataclass(frozen=True, kw_only=True)
class RankAverage(Estimator):
    """The mean rank of each training image by the estimators ``of``, or with ``normalize="standard"`` its mean standard score.

    The command line gives the names alone, and ``experiments.tasks.composition`` the estimators.
    """

    NAME = "RankAverage"
    VERSION = 1

    of: Sequence[str] | Mapping[str, Estimator]
    normalize: Literal["rank", "standard"] = "rank"

    def __post_init__(self):
        if self.normalize not in NORMALIZED:
            raise FieldError(self, "normalize", f"choose {' or '.join(NORMALIZED)}")
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

    def requested(self) -> Mapping[str, Sequence[Any]]:
        """The values that parts sweep, which are the same in all parts that sweep them.

        Raises:
            FieldError: two parts sweep different values, or one has none.
        """
        swept: dict[str, Sequence[Any]] = {}
        for part in self.parts.values():
            if empty := [axis for axis, values in part.requested().items() if not values]:
                raise FieldError(part, empty[0], "give at least one value")
            for axis, values in _swept(part).items():
                if swept.setdefault(axis, values) != values:
                    message = f"another part of the average has {list(swept[axis])}: give both the same values, or one"
                    raise FieldError(part, axis, message, list(values))
        return swept

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        for part in self.parts.values():
            if isinstance(draws := getattr(part, "draws", None), DrawScheme):
                draws.refuse_lists("an average of ranks", replicates=True)
        _ = self.requested()  # raises if values differ
        members = tuple(part.scores(trained, train, queries) for part in self.parts.values())
        return RankAverageScores(self, members)


@dataclass(frozen=True)
class RankAverageScores(Node[Scores]):
    """The mean of the ranks (or standard scores) of ``members``, the scores of the estimator's parts: ``[.., Q, N]``.

    The leading axes are the values that parts sweep. A part that sweeps none of them is the same everywhere.
    """

    NAME = "RankAverageScores"
    VERSION = 2
    TITLE = "averages of ranks"
    ARTIFACT = Scores

    estimator: RankAverage
    members: tuple[Node[Scores], ...]

    def cost(self) -> Cost:
        sizes = [member.cost().disk for member in self.members]
        return Cost(memory=sum(sizes) + max(sizes), disk=max(sizes))

    def passes(self, get: Get) -> float:
        return sum(member.passes(get) for member in self.members)

    def compute(self, get: Get) -> Scores:
        found, parts = get.many(self.members), list(self.estimator.parts.values())
        variants = [part.variants(scores) for part, scores in zip(parts, found, strict=True)]
        axes = self.estimator.requested()
        points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        means = [self._mean([_at(point, *each) for each in zip(parts, variants, strict=True)]) for point in points]
        shape = [len(values) for values in axes.values()]

        def joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
            present = [array for array in arrays if array is not None]
            return np.stack(present).reshape(*shape, *present[0].shape) if present else None

        values, cross = (joined(arrays) for arrays in zip(*means, strict=True))
        assert values is not None
        return Scores(values, np.array(found[0].query_index), np.array(found[0].train_index), axes, cross=cross)

    def _mean(self, members: Sequence[Scores]) -> tuple[np.ndarray, np.ndarray | None]:
        """The mean over ``members``, ``[Q, N]`` each, and its cross scores ``[R, S, Q, N]``, if there are any."""
        for name, scores in zip(self.estimator.parts, members, strict=True):
            if not np.isfinite(scores.values).all():
                raise FloatingPointError(f"scores of {name} are not finite: leave it out of the average, or raise its damping")
        groups = self._groups(members)
        mean = np.empty(members[0].values.shape, np.float32)
        cross = np.empty((*groups, *mean.shape), np.float32) if groups else None
        for q in range(len(mean)):  # one at a time in float64
            if cross is None:
                mean[q] = np.mean([NORMALIZED[self.estimator.normalize](scores.values[q]) for scores in members], axis=0)
            else:
                parts = [standard_scores(_of_groups(scores, q), scores.values[q]) for scores in members]
                cross[:, :, q] = sum(np.broadcast_to(part, cross[:, :, q].shape) for part in parts) / len(parts)
                mean[q] = cross[:, :, q].mean((0, 1), dtype=np.float64)
        return mean, cross

    def _groups(self, members: Sequence[Scores]) -> tuple[int, int] | None:
        """The numbers of groups of draws on the side of queries and of training images; None if the average has none."""
        drawn = [scores for part, scores in zip(self.estimator.parts.values(), members, strict=True) if part.draws_of({})]
        shapes = {None if scores.cross is None else scores.cross.shape[:2] for scores in drawn}
        groups = [shape for shape in shapes if shape is not None]
        if self.estimator.normalize != "standard" or not groups or None in shapes:
            return None
        queries, trains = {R for R, _ in groups}, {S for _, S in groups if S > 1} or {1}
        return (*queries, *trains) if len(queries) == len(trains) == 1 else None  # pyright: ignore[reportReturnType]


def _swept(estimator: Estimator) -> dict[str, Sequence[Any]]:
    return {axis: list(values) for axis, values in estimator.requested().items() if len(values) > 1}


def _at(point: Mapping[str, Any], part: Estimator, variants: Sequence[tuple[dict[str, Any], Scores]]) -> Scores:
    """The variant of ``part`` at its values of ``point``."""
    settings = {SETTINGS[axis]: value for axis, value in point.items() if axis in _swept(part)}
    return next(scores for found, scores in variants if found == settings)


def _of_groups(scores: Scores, q: int) -> np.ndarray:
    """The cross scores of query q, ``[R, S, N]``, which are equal in all groups where nothing is drawn, ``[1, 1, N]``."""
    return scores.values[None, None, q] if scores.cross is None else scores.cross[:, :, q]


def ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of ``values [N]`` from 0 (the smallest) to 1 (the largest); equal values have the mean of their ranks."""
    return (rankdata(values) - 1) / max(1, len(values) - 1)


def standard_scores(values: np.ndarray, all_draws: np.ndarray | None = None) -> np.ndarray:
    """``values [.., N]`` less the mean of ``all_draws [N]``, over its standard deviation; 0 if all of these are equal.

    By default ``all_draws`` are the values.
    """
    of = np.asarray(values if all_draws is None else all_draws, np.float64)
    return (values - of.mean()) / max(of.std(), np.finfo(np.float64).tiny)


NORMALIZED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"rank": ranks, "standard": standard_scores}
"""What scores of a query become before they are averaged, by the value of ``normalize``."""
