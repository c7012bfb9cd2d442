"""The rows of LDS by timestep: what predictors' grids say about every target, and about the shape of the whole."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attribution.images.bins import ALL
from experiments.metrics import lds_grids
from experiments.metrics.common import Estimate
from experiments.metrics.lds_grids import Grid

METRIC = "lds_%"
BY_ALL = "lds_%_by_all"
GAIN = "lds_%_−_by_all"
PERCENT = 100
ENOUGH = 4
"""Timesteps of which every one has some that are not beside it."""

Timestep = int | str
"""A timestep, or ``ALL`` for the whole measurement."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Predictor:
    """What predicts, at one value of each of its swept settings: its grid, and the fingerprints of its scores by timestep.

    The grid's rows are predictions for each of ``origins`` and its columns the targets, ``ALL`` being the last. Exact retraining
    has no scores.
    """

    estimator: str
    settings: Mapping[str, Any]
    label: str
    origins: Mapping[Timestep, str | None]
    grid: Grid
    measures: bool
    """Whether it predicts something else for another target."""

    @property
    def timesteps(self) -> list[Timestep]:
        """The targets, in order."""
        return list(self.origins)

    def row(self, target: Timestep, prediction: Timestep) -> Row:
        """What rows about a pair share."""
        origin = self.origins[prediction]
        about = {"estimator": self.estimator, "swept": {**self.settings, "measured_t": target}, "predicted_t": prediction}
        return about if origin is None else {**about, "scores": origin}


def of_targets(predictor: Predictor, levels: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """LDS of each target: predicted at its own timestep and by the whole measurement, and the gain of the former.

    ``by_predicted`` is the target's column of the matrix. ``levels``: for each target what its rows have besides.
    """
    grid, targets = predictor.grid, predictor.timesteps
    for place, (target, level) in enumerate(zip(targets, levels, strict=True)):
        column = {str(prediction): percent(grid.at(i, place)) for i, prediction in enumerate(targets)}
        own = {**predictor.row(target, target), **level}
        yield {**own, "metric": METRIC, **percent(grid.at(place, place)), "by_predicted": column}
        if predictor.measures and target != ALL:
            gain = Grid(grid.values - grid.values[-1:], grid.spread - grid.spread[:, -1:])
            yield {**predictor.row(target, ALL), **level, "metric": BY_ALL, **percent(grid.at(-1, place))}
            yield {**predictor.row(target, target), "metric": GAIN, **percent(gain.at(place, place))}


def of_shape(predictor: Predictor) -> Iterator[Row]:
    """How predictions fare at their own timestep, beside it and farther off, and late in the diffusion against early."""
    n = len(predictor.timesteps) - 1
    if n < ENOUGH:
        return
    near, far = lds_grids.neighbours(n), lds_grids.farther(n)
    shapes = {"same_t": lds_grids.diagonal(n), "neighbours": near, "farther": far, "neighbours_−_farther": near - far}
    for metric, weights in {**shapes, "later_−_earlier_t": lds_grids.later(n)}.items():
        about = {"estimator": predictor.estimator, "swept": dict(predictor.settings), "metric": metric}
        yield {**about, **percent(predictor.grid.combined(weights))}


def of_difference(first: Predictor, other: Predictor) -> Iterator[Row]:
    """LDS of the first minus that of the other at each target, both predicting at its own timestep."""
    grid = first.grid - other.grid
    for place, target in enumerate(first.timesteps):
        about = {"estimator": f"{first.label} − {other.label}", "swept": {"measured_t": target}, "metric": METRIC}
        yield {**about, **percent(grid.at(place, place))}


def percent(estimate: Estimate) -> dict[str, float]:
    """An estimate's fields, in per cent."""
    # What is equal shall be: differences of equal means leave rounding.
    return {name: round(PERCENT * value, 9) + 0.0 for name, value in estimate._asdict().items()}
