"""How measured quantities grow with sizes."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.figures.style import COLORS, DPI, MARKERS, legend, plain_frame


class Law(Protocol):
    """The values of a ``metric`` of an estimator at several ``sizes`` along an ``axis``, and a fit to them."""

    @property
    def estimator(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def axis(self) -> str: ...

    @property
    def sizes(self) -> Sequence[float]: ...

    @property
    def values(self) -> Sequence[float]: ...

    @property
    def extrapolates(self) -> bool:
        """Whether the fit is good enough to draw."""
        ...

    def at(self, size: float) -> float:
        """The value of the fit at a size."""
        ...


def scaling(laws: Sequence[Law], axes: Mapping[str, str], target: Mapping[str, float]) -> Figure:
    """Measured values against sizes with logarithmic axes: a row of panels for each metric, and a column for each size that grows.

    ``axes`` names the sizes. Good fits are lines: solid where sizes were measured, and dotted up to the ``target`` size, where an
    open marker is extrapolated.
    """
    axes = {axis: name for axis, name in axes.items() if axis in {law.axis for law in laws}}
    metrics = list(dict.fromkeys(law.metric for law in laws))
    names = list(dict.fromkeys(law.estimator for law in laws))
    figure = Figure((max(3.3 * len(axes), 5), 0.4 + 2.7 * len(metrics)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(metrics), len(axes), squeeze=False, sharex="col", sharey="row")
    for law in laws:
        column, rank = list(axes).index(law.axis), names.index(law.estimator)
        _draw(grid[metrics.index(law.metric), column], law, target[law.axis], rank)
    for row, metric in zip(grid, metrics, strict=True):
        row[0].set_ylabel(metric, fontsize=10)
        for panel in row:
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_minor_formatter(NullFormatter())
            plain_frame(panel)
    for panel, name in zip(grid[-1], axes.values(), strict=True):
        panel.set_xlabel(name, fontsize=10)
    legend(figure, [*grid.flat], names)
    return figure


def _draw(axes: Axes, law: Law, target: float, rank: int) -> None:
    color, marker = COLORS[rank % len(COLORS)], MARKERS[rank % len(MARKERS)]
    first, last = min(law.sizes), max(law.sizes)
    axes.plot(law.sizes, law.values, marker, color=color, markersize=5, label=law.estimator)
    if not law.extrapolates:
        return
    axes.plot(*_line(law, first, last), color=color, linewidth=1.4)
    if target > last:
        axes.plot(*_line(law, last, target), ":", color=color, linewidth=1.4)
        axes.plot([target], [law.at(target)], marker, color=color, markerfacecolor="white", markersize=6, label="extrapolated")


def _line(law: Law, first: float, last: float) -> tuple[np.ndarray, list[float]]:
    sizes = np.geomspace(first, last, 50)
    return sizes, [law.at(size) for size in sizes]
