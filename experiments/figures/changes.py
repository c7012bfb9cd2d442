"""Predicted against actual changes of queries (K-FAC influence, figs. 15 and 16)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.figures.style import DPI, FAINT, plain_frame

_ACROSS = 3


@dataclass(frozen=True)
class Changes:
    """The changes of one measurement: ``predicted [Q, M]`` and ``actual [Q, M]`` for Q queries under M models."""

    name: str
    predicted: np.ndarray
    actual: np.ndarray


def changes(panels: Sequence[Changes], title: str) -> Figure:
    """A panel for each measurement, with a dot for each query and model; the color says the query.

    The title of a panel has the shares of predicted and of actual increases.
    """
    across = min(len(panels), _ACROSS)
    down = -(-len(panels) // across)
    figure = Figure((max(5.0, 3.6 * across), 0.6 + 3.3 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        queries = len(panel.actual)
        color = colormaps["turbo"](np.repeat(np.arange(queries) / max(1, queries - 1), panel.actual.shape[1]))
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.scatter(panel.predicted.ravel(), panel.actual.ravel(), s=5, c=color, alpha=0.5, linewidth=0)
        shares = [
            f"{side} {(values > 0).mean():.0%}" for side, values in (("predicted", panel.predicted), ("actual", panel.actual))
        ]
        axes.set_title(f"{panel.name}\nincreases: {', '.join(shares)}", fontsize=10)
        axes.set_xlabel("predicted change")
        axes.set_ylabel("actual change")
        axes.ticklabel_format(scilimits=(-2, 3))
        plain_frame(axes)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure
