"""How often outliers are influential against the distance of their timesteps to t_max (ReTrac §6.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import COLORS, DPI, FAINT, RED, grid_shape, legend, plain_frame


@dataclass(frozen=True)
class Influential:
    """A panel: for each of P outliers, the mean ``distance [P]`` and the share of queries with it in the top k, ``share [P]``."""

    title: str
    distance: np.ndarray
    share: np.ndarray


def distance_to_t_max(panels: Sequence[Influential], k: int) -> Figure:
    """Share of queries against |t_train − t_max| with a dot for each outlier, and means of both groups as vertical lines."""
    across, down = grid_shape(len(panels))
    figure = Figure((max(7.0, 0.6 + 3.4 * across), 0.5 + 3.0 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        inside = panel.share > 0
        for mask, color, name in ((inside, RED, f"outlier in the top {k} of a query"), (~inside, COLORS[0], "another outlier")):
            axes.plot(panel.distance[mask], panel.share[mask], "o", color=color, markersize=4.5, alpha=0.75, label=name)
        axes.axvline(panel.distance.mean(), color=FAINT, linewidth=1.4, linestyle="--", label="mean distance of all outliers")
        if inside.any():
            mean = np.average(panel.distance, weights=panel.share)
            axes.axvline(mean, color=RED, linewidth=1.4, label="mean distance, weighted by the share of queries")
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("|t_train − t_max|")
        plain_frame(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of queries")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    legend(figure, figure.axes)
    return figure
