"""The effect of few timesteps on the query side on scores and on time (ReTrac, app. E)."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from attribution.images.bins import ALL
from experiments.figures.intervals import draw_interval, draw_level, name_intervals
from experiments.figures.style import COLORS, DPI, MARKERS, legend, panel_title, plain_frame
from experiments.report.row import Row

_SETTING = "timesteps"


def sparse_timesteps(rows: Sequence[Row], agreement: str, faster: str) -> Figure:
    """A panel for each metric and kind of queries, over the choices of timesteps; a mark with its interval for each estimator.

    Rows have the choice in their setting ``timesteps``. The metric ``agreement`` is shown by its distance to 1 on a logarithmic
    axis, ``faster`` on a logarithmic axis.
    """
    rows = [row for row in rows if math.isfinite(row.estimate.value)]
    names = list(dict.fromkeys(row.estimator for row in rows))
    schemes = list(dict.fromkeys(row.settings[_SETTING] for row in rows))
    schemes = [scheme for scheme in schemes if scheme == ALL] + [scheme for scheme in schemes if scheme != ALL]
    panels = list(dict.fromkeys((row.metric, row.queries) for row in rows))
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure((max(7.0, 4.6 * across), 0.3 + 3.4 * down), dpi=DPI, layout="constrained")
    plots = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(plots.flat, panels, strict=False):
        in_panel = [row for row in rows if (row.metric, row.queries) == panel]
        shown = [scheme for scheme in schemes if any(row.settings[_SETTING] == scheme for row in in_panel)]
        _marks(axes, in_panel, names, shown, (lambda value: 1 - value) if panel[0] == agreement else float)
        name_intervals(axes, [row.estimate for row in in_panel])
        axes.set_xticks(range(len(shown)), [scheme.replace(" ", "\n") for scheme in shown])
        axes.set_xlabel("timesteps of the query")
        axes.set_title(panel_title(*panel), fontsize=11)
        plain_frame(axes)
        if panel[0] == agreement:
            _distances(axes)
        elif panel[0] == faster:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
    for axes in plots.flat[len(panels) :]:
        axes.set_axis_off()
    legend(figure, figure.axes, names)
    return figure


def _marks(axes: Axes, rows: Sequence[Row], names: Sequence[str], schemes: Sequence[str], scale: Callable[[float], float]) -> None:
    for row in rows:
        group, rank = schemes.index(row.settings[_SETTING]), names.index(row.estimator)
        x, color = group + (rank - (len(names) - 1) / 2) * 0.25, COLORS[rank % len(COLORS)]
        look = {"color": color, "marker": MARKERS[rank % len(MARKERS)], "markersize": 6, "linestyle": "none", "zorder": 3}
        axes.plot(x, scale(row.estimate.value), label=row.estimator, **look)
        draw_interval(axes, x, row.estimate, scale=scale, color=color, linewidth=1.6, zorder=3)
        for level, (middle, width) in {"random": (group, 0.4), "maximum": (group, 0.4), "ceiling": (x, 0.12)}.items():
            if (value := getattr(row.levels, level)) is not None and scale(value) > 0:
                draw_level(axes, level, scale(value), (middle - width, middle + width))


def _distances(axes: Axes) -> None:
    """Make the axis of 1 − ρ logarithmic with ρ = 1 at the top, and label it by ρ."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-8, 1) for m in (1, 2, 5) if low <= m * 10.0**e <= min(high, 2)]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, [f"{1 - tick:.{max(1, -int(np.floor(np.log10(tick) + 1e-9)))}f}".replace("-", "−") for tick in ticks])
    axes.set_ylim(high, low)
