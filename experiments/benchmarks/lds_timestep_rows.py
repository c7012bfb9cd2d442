"""The rows of LDS by timestep: those of every target, and those of the shape of each predictor's grid."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attribution.images.bins import ALL
from experiments.benchmarks.compare import pairs
from experiments.benchmarks.subset_benchmark import CEILING
from experiments.metrics.bootstrap import Statistic
from experiments.metrics.estimate import Estimate
from experiments.report.row import Effort, Levels, Row, Subject

TARGETS, SHAPE = "lds_timesteps", "lds_timesteps_shape"
"""The names of the benchmark in rows; each has its own table."""
METRIC = "lds_%"
BY_ALL = "lds_%_by_all"
GAIN = "lds_%_−_by_all"
MIN_TIMESTEPS = 4
"""The fewest timesteps for which each has a non-adjacent one."""

Timestep = int | str
"""A timestep, or ``ALL`` for the whole measurement."""


@dataclass(frozen=True)
class Predictor:
    """An estimator at one value of each of its settings, or exact retraining, which predicts every target at every timestep.

    ``scores`` are fingerprints by prediction; exact retraining has none. The first predictions are at ``timesteps``, the last of
    which is ``ALL``; further ones are of measures that predict every target. ``grid [P, T]`` is the LDS in per cent of every
    prediction for targets at ``timesteps``.
    """

    name: str
    settings: Mapping[str, Any]
    scores: Mapping[Timestep, str | None]
    timesteps: Sequence[Timestep]
    grid: Statistic
    depends_on_target: bool
    """Whether its predictions differ between targets."""
    effort: Effort | None = None
    """The draws and passes of its predictions at one timestep; None for exact retraining."""

    @property
    def predictions(self) -> list[Timestep]:
        """The timesteps and further measures of the predictions, in order."""
        return list(self.scores)

    def subject(self, prediction: Timestep = ALL) -> Subject:
        """The subject of rows about predictions at a timestep."""
        return Subject(self.name, self.settings, self.scores[prediction], self.effort)


@dataclass(frozen=True)
class Target:
    """The reference levels of the LDS of one target, and how many subsets and seeds it was measured with."""

    levels: Levels
    subsets: int
    seeds: int


def rows_of_targets(predictor: Predictor, targets: Sequence[Target], queries: str) -> Iterator[Row]:
    """The LDS of each target, predicted at its own timestep and by the whole measurement, and the difference of the two.

    ``by_predicted`` is the target's column of the grid.
    """
    grid, timesteps = predictor.grid, predictor.timesteps
    for place, (timestep, target) in enumerate(zip(timesteps, targets, strict=True)):
        shared: dict[str, Any] = {"benchmark": TARGETS, "queries": queries, "swept": {"measured_t": timestep}}
        counts = {"subsets": target.subsets, "seeds": target.seeds}
        predicted = {"predicted_t": timestep}
        column = {str(prediction): _ends(rounded(grid[i, place])) for i, prediction in enumerate(predictor.predictions)}
        yield Row(
            metric=METRIC,
            subject=predictor.subject(timestep),
            estimate=rounded(grid[place, place]),
            levels=target.levels,
            about={**predicted, **counts, "by_predicted": column},
            **shared,
        )
        if predictor.depends_on_target and timestep != ALL:
            whole = len(timesteps) - 1
            by_all, gain = rounded(grid[whole, place]), rounded(grid[place, place] - grid[whole, place])
            about = {"predicted_t": ALL, **counts}
            yield Row(metric=BY_ALL, subject=predictor.subject(ALL), estimate=by_all, levels=target.levels, about=about, **shared)
            yield Row(metric=GAIN, subject=predictor.subject(timestep), estimate=gain, about=predicted, **shared)
        if predictor.depends_on_target:
            for position, measure in list(enumerate(predictor.predictions))[len(timesteps) :]:
                yield Row(
                    metric=f"{METRIC}_by_{measure}",
                    subject=predictor.subject(measure),
                    estimate=rounded(grid[position, place]),
                    levels=target.levels,
                    about={"predicted_t": measure, **counts},
                    **shared,
                )


def rows_of_ceilings(
    timesteps: Sequence[Timestep], targets: Sequence[Target], ceilings: Sequence[Estimate | None], queries: str
) -> Iterator[Row]:
    """The noise ceiling of each target with its interval, where it is known."""
    for timestep, target, ceiling in zip(timesteps, targets, ceilings, strict=True):
        if ceiling is not None:
            yield Row(
                benchmark=TARGETS,
                metric=METRIC,
                queries=queries,
                subject=Subject(CEILING),
                estimate=ceiling,
                swept={"measured_t": timestep},
                about={"subsets": target.subsets, "seeds": target.seeds},
            )


def rows_of_shape(predictor: Predictor, queries: str) -> Iterator[Row]:
    """Mean LDS on the diagonal, next to it and farther away; and late minus early timesteps."""
    n = len(predictor.timesteps) - 1
    if n < MIN_TIMESTEPS:
        return
    near, far = neighbors(n), farther(n)
    shapes = {"same_t": diagonal(n), "neighbors": near, "farther": far, "neighbors_−_farther": near - far}
    subject = Subject(predictor.name, predictor.settings, effort=predictor.effort)
    for metric, weights in {**shapes, "later_−_earlier_t": later(n)}.items():
        estimate = rounded((predictor.grid[:n, :n] * weights).sum())
        yield Row(benchmark=SHAPE, metric=metric, queries=queries, subject=subject, estimate=estimate)


def rows_of_differences(predictors: Sequence[Predictor], queries: str) -> Iterator[Row]:
    """The LDS of the first estimator minus that of others at each target, both predicting at the target's timestep."""
    for a, b in pairs([predictor.subject() for predictor in predictors]):
        first, other = predictors[a], predictors[b]
        T = len(first.timesteps)
        difference = first.grid[:T, :T] - other.grid[:T, :T]
        for place, timestep in enumerate(first.timesteps):
            yield Row(
                benchmark=TARGETS,
                metric=METRIC,
                queries=queries,
                subject=first.subject(timestep),
                minus=other.subject(timestep),
                estimate=rounded(difference[place, place]),
                swept={"measured_t": timestep},
            )


def diagonal(n: int) -> np.ndarray:
    """Weights ``[n, n]`` of the mean over targets, each predicted at its own timestep."""
    return np.eye(n) / n


def neighbors(n: int) -> np.ndarray:
    """Weights of the mean over targets of the mean over the predictions at adjacent timesteps, n >= 2."""
    return _mean_over_targets(_distance(n) == 1)


def farther(n: int) -> np.ndarray:
    """Weights of the mean over targets of the mean over the predictions at timesteps two or more places away, n >= 4."""
    return _mean_over_targets(_distance(n) >= 2)


def later(n: int) -> np.ndarray:
    """Weights of the diagonal's second half minus its first, n >= 2; the middle timestep is left out if n is odd."""
    half = n // 2
    return np.diag([-1 / half] * half + [0.0] * (n % 2) + [1 / half] * half)


def rounded(statistic: Statistic) -> Estimate:
    """The estimate, rounded so that differences of equal means are exactly 0."""
    estimate = statistic.estimate()
    value, low, high = (round(end, 9) + 0.0 for end in (estimate.value, estimate.low, estimate.high))
    return replace(estimate, value=value, low=low, high=high)


def _distance(n: int) -> np.ndarray:
    return np.abs(np.arange(n)[:, None] - np.arange(n))


def _mean_over_targets(pairs: np.ndarray) -> np.ndarray:
    return pairs / pairs.sum(0) / len(pairs)


def _ends(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
