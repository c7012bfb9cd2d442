"""Several metrics of the same estimators side by side, as dots with intervals."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from experiments.figures.intervals import LEVELS, draw_interval, draw_level
from experiments.figures.style import COLORS, DPI, FAINT, MARKERS, grid_shape, legend, plain_frame, text_width, wrapped
from experiments.report.row import Row

_PANEL = 2.3
"""The width of a panel in inches."""


def panels(rows: Sequence[Row], titles: Mapping[str, str]) -> Figure:
    """A panel for each metric in ``titles``, in this order, and a line for each subject, the first at the top.

    Kinds of queries have their own color and marker. Differences are left out, as are values that are not finite.
    """
    rows = [row for row in rows if row.minus is None and row.metric in titles and math.isfinite(row.estimate.value)]
    kinds = list(dict.fromkeys(row.queries for row in rows))
    names = list(dict.fromkeys(row.subject.label for row in rows))[::-1]
    metrics = [metric for metric in titles if any(row.metric == metric for row in rows)]
    if not rows:
        return Figure(dpi=DPI)
    labels = 0.3 + max(text_width(name, 9) for name in names)
    across, down = grid_shape(len(metrics))
    figure = Figure((labels + _PANEL * across, down * (1.1 + 0.32 * len(names))), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, metric in zip(grid.flat, metrics, strict=False):
        for row in (row for row in rows if row.metric == metric):
            place = kinds.index(row.queries)
            y = names.index(row.subject.label) + 0.3 * ((len(kinds) - 1) / 2 - place)
            color = COLORS[place % len(COLORS)]
            draw_interval(axes, y, row.estimate, horizontal=True, color=color, label=row.estimate.interval.partition(",")[0])
            look = {"color": color, "markersize": 5, "label": f"{row.queries} queries"}
            axes.plot(row.estimate.value, y, MARKERS[place % len(MARKERS)], **look)
            for level in LEVELS:
                if (value := getattr(row.levels, level)) is not None:
                    draw_level(axes, level, value, vertical=True, color=FAINT)
        axes.set_title("\n".join(wrapped(titles[metric], _PANEL - 0.3, 10)), fontsize=10)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        plain_frame(axes)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    for axes in grid.flat[len(metrics) :]:
        axes.set_axis_off()
    legend(figure, figure.axes)
    return figure
