"""What groups of training images do to each query, by retraining and by estimators, as matrices of colors."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.figures.style import DPI, FAINT, grid_shape, text_width, wrapped

_PANEL, _CELL, _LABELED = 2.6, 0.16, 40
"""The width of a panel and the height of a row in inches, and the largest number of labels on an axis."""
_LIMIT = 2.5
"""The deviation from the mean of a query, in standard deviations, at which colors end."""


def group_matrices(values: Mapping[str, np.ndarray], queries: Sequence[str], groups: Sequence[str], title: str) -> Figure:
    """A panel for each of ``values``, matrices ``[Q, G]``: a row for each query, a column for each group.

    Every row has its own unit: colors are deviations from its mean, in its standard deviations. Blue is more than the mean.
    """
    across, down = grid_shape(len(values))
    height = max(1.6, _CELL * len(queries))
    side = 0.5 + max(text_width(label, 8) for label in queries)
    figure = Figure((side + _PANEL * across + 0.9, 0.5 + down * (height + 0.75)), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    image = None
    for axes, (name, matrix) in zip(grid.flat, values.items(), strict=False):
        image = axes.imshow(
            _standardized(matrix), vmin=-_LIMIT, vmax=_LIMIT, cmap=colormaps["RdBu"], aspect="auto", interpolation="nearest"
        )
        axes.set_title("\n".join(wrapped(name, _PANEL - 0.2, 10)), fontsize=10)
        slanted = len(groups) * max(text_width(label, 8) + 0.05 for label in groups) > _PANEL - 0.3
        axes.set_xticks(*_ticks(groups), rotation=90 if slanted else 0)
        axes.set_yticks(*_ticks(queries))
        axes.tick_params(labelsize=8, length=0)
        axes.spines[:].set_color(FAINT)
    for axes in grid.flat[len(values) :]:
        axes.set_axis_off()
    figure.supxlabel("group of training images", fontsize=10)
    figure.supylabel("query", fontsize=10)
    figure.suptitle("\n".join(wrapped(title, figure.get_figwidth() - 0.3, 11)), fontsize=11)
    if image is not None:
        figure.colorbar(image, ax=grid, label="deviation from the mean\nof the query, in its unit", fraction=0.04, aspect=25)
    return figure


def _standardized(matrix: np.ndarray) -> np.ndarray:
    centered = matrix - matrix.mean(1, keepdims=True)
    scale = centered.std(1, keepdims=True)
    return np.divide(centered, scale, out=np.zeros_like(centered), where=scale > 0)


def _ticks(labels: Sequence[str]) -> tuple[range, Sequence[str]]:
    step = -(-len(labels) // _LABELED)
    return range(0, len(labels), step), labels[::step]
