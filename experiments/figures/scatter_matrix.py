"""Measurements of queries under each pair of models (K-FAC influence, fig. 17)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import COLORS, DPI, FAINT, WIDEST, plain_frame

Correlation = Callable[[np.ndarray, np.ndarray], np.ndarray]


def scatter_matrix(values: np.ndarray, names: Sequence[str], title: str, correlations: Mapping[str, Correlation]) -> Figure:
    """A panel for each pair of the models ``names [P]``, with a dot for each query of ``values [P, Q]``.

    ``correlations`` of the two models stand above each panel, by name.
    """
    size = len(values) - 1
    side = min(WIDEST, 0.6 + 1.9 * size)
    figure = Figure((max(4.0, side), max(3.0, side)), dpi=DPI, layout="constrained")
    grid = figure.subplots(size, size, squeeze=False, sharex="col", sharey="row")
    for row in range(size):
        for column in range(size):
            axes = grid[row, column]
            if column > row:
                axes.set_axis_off()
                continue
            x, y = values[column], values[row + 1]
            low, high = min(x.min(), y.min()), max(x.max(), y.max())
            axes.plot([low, high], [low, high], color=FAINT, linewidth=1)
            axes.scatter(x, y, s=8, color=COLORS[0], alpha=0.6, linewidth=0)
            axes.set_title(", ".join(f"{name} = {float(of(x, y)):.3f}" for name, of in correlations.items()), fontsize=8)
            plain_frame(axes)
            axes.tick_params(labelsize=7)
            if column == 0:
                axes.set_ylabel(names[row + 1], fontsize=9)
            if row == size - 1:
                axes.set_xlabel(names[column], fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure
