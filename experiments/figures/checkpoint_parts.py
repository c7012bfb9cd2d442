"""The contributions of checkpoints to the scores of the top proponents (ReTrac, app. B and F.2)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attribution.images import Images
from experiments.figures.style import DPI, INK, WIDEST, legend, plain_frame
from experiments.figures.thumbnails import picture
from experiments.metrics.ranking import top_k

_PANEL, _HEIGHT, _PICTURE = 4.6, 2.3, 0.9


def checkpoint_parts(
    queries: Images,
    train: Images,
    parts: Mapping[str, np.ndarray],
    steps: Mapping[str, Sequence[int]],
    rows: Sequence[int],
    top: int = 10,
) -> Figure:
    """Stacked bars of the contributions to each of the ``top`` scores: a line for each query, a panel for each variant.

    Args:
        queries: Q images; ``rows`` are positions of those to show.
        train: N images, whose ids are below the bars.
        parts: the contributions ``[S, Q, N]`` of each variant.
        steps: the S checkpoints of each variant.
        rows: the shown queries.
        top: the number of proponents.
    """
    across = len(parts)
    width = min(WIDEST, _PICTURE + _PANEL * across)
    figure = Figure((width, 0.4 + _HEIGHT * len(rows)), dpi=DPI, layout="constrained")
    panel = (width - _PICTURE) / across
    grid = figure.add_gridspec(len(rows), across + 1, width_ratios=(_PICTURE, *[panel] * across))
    plots = []
    for line, row in enumerate(rows):
        picture(figure.add_subplot(grid[line, 0]), queries, row, f"query #{queries.index[row]}", INK)
        for column, (name, values) in enumerate(parts.items()):
            axes = figure.add_subplot(grid[line, column + 1])
            plots.append(axes)
            best = top_k(np.asarray(values).sum(0)[[row]], min(top, len(train)))[0]
            _stacked(axes, np.asarray(values)[:, row, best], steps[name])
            axes.set_xticks(range(len(best)), [f"#{train.index[i]}" for i in best], rotation=45, ha="right", fontsize=7)
            axes.tick_params(axis="x", pad=0)
            plain_frame(axes)
            axes.tick_params(labelsize=7)
            if line == 0:
                axes.set_title(name, fontsize=11)
            if column == 0:
                axes.set_ylabel("score", fontsize=9)
    legend(figure, plots)
    return figure


def _stacked(axes: Axes, values: np.ndarray, steps: Sequence[int]) -> None:
    """Bars of ``values [S, k]``: positive contributions up from 0, negative ones down."""
    colors = colormaps["viridis"](np.linspace(0, 0.92, len(steps)))
    up, down = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for step, part, color in zip(steps, values, colors, strict=True):
        base = np.where(part >= 0, up, down)
        axes.bar(range(len(part)), part, bottom=base, color=color, width=0.75, label=f"checkpoint {step}")
        up, down = up + np.maximum(part, 0), down + np.minimum(part, 0)
    axes.axhline(0, color=INK, linewidth=0.8)
