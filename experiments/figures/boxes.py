"""Distributions over queries as boxes (D-TRAK, counterfactual evaluation)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import COLORS, DPI, INK, WIDEST, plain_frame, text_width


def boxes(panels: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Values of queries ``[Q]`` by panel and subject, as horizontal boxes.

    A box covers the middle half with a line at the median; whiskers reach the last value within 1.5 times its length, dots are
    values beyond, and the diamond is the mean.
    """
    names = list(dict.fromkeys(name for values in panels.values() for name in values))
    labels = 0.3 + max(text_width(name, 9) for name in names)
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure((min(WIDEST, labels + 3.6 * across), 0.9 + down * (0.7 + 0.42 * len(names))), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    places = {name: len(names) - rank for rank, name in enumerate(names)}
    for axes, (panel, values) in zip(grid.flat, panels.items(), strict=False):
        for name, numbers in values.items():
            color = COLORS[names.index(name) % len(COLORS)]
            axes.boxplot(
                numbers[np.isfinite(numbers)],
                positions=[places[name]],
                orientation="horizontal",
                widths=0.6,
                patch_artist=True,
                showmeans=True,
                boxprops={"facecolor": color, "alpha": 0.45, "edgecolor": INK},
                medianprops={"color": INK, "linewidth": 1.6},
                meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": INK, "markersize": 5},
                flierprops={"marker": ".", "markersize": 4, "markeredgecolor": INK},
            )
        axes.set_yticks(list(places.values()), list(places))
        axes.set_ylim(0.4, len(names) + 0.6)
        axes.set_title(panel, fontsize=11)
        plain_frame(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("line: median, diamond: mean over queries", fontsize=9)
    return figure
