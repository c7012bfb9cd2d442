"""Values against a setting that was swept."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from experiments.figures.intervals import LEVELS, draw_band, draw_interval, draw_level, name_intervals
from experiments.figures.style import (
    COLORS,
    DPI,
    LINES,
    MARKERS,
    WIDEST,
    legend,
    panel_title,
    plain_frame,
    series_label,
    text_width,
)
from experiments.report.row import Row
from experiments.report.tables import differing_settings

Point = tuple[float | None, Row]
"""The position of a row on the axis (None: it does not have the setting), and the row."""


def curve(rows: Sequence[Row], x: str, x_name: str | None = None) -> Figure:
    """Values with intervals against the numeric setting ``x``, such as damping or draws (K-FAC influence, figs. 7-10).

    There is a panel for each metric and kind of queries, and in it a line for each estimator and combination of its other settings.
    A row without the setting, such as that of an estimator that does not have it, is a level across the panel. Reference levels of
    the rows are lines too. An unknown value leaves a gap, and a × at the bottom. The axis is logarithmic where the setting's values
    span a factor of ten or more. ``x_name`` labels it, by default with the setting's name.

    Raises:
        ValueError: no row has the setting, or its value is not a number.
    """
    settings = [{name: value for name, value in differing.items() if name != x} for differing in differing_settings(rows)]
    labels = [series_label(row.estimator, others) for row, others in zip(rows, settings, strict=True)]
    points: list[Point] = [(_place(row, x), row) for row in rows]
    ticks = sorted({place for place, _ in points if place is not None})
    if not ticks:
        raise ValueError(f"no row was swept over {x}: run with -m {x}=VALUE,VALUE")
    names = list(dict.fromkeys(labels))
    panels = list(dict.fromkeys((row.metric, row.queries) for row in rows))
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    width = max(0.6 + 4.6 * across, 7.0, 2 * (0.6 + max(text_width(name, 9) for name in names)))
    figure = Figure((min(width, WIDEST), 0.6 + 3.5 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=len({metric for metric, _ in panels}) == 1)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _axis(axes, ticks)
        in_panel = [(p, label) for p, label in zip(points, labels, strict=True) if (p[1].metric, p[1].queries) == panel]
        for rank, name in enumerate(names):
            offset = (rank - (len(names) - 1) / 2) * min(3.0, 12 / len(names))
            _series(axes, [point for point, label in in_panel if label == name], name, rank, offset)
        name_intervals(axes, [row.estimate for (_, row), _ in in_panel])
        for level in LEVELS:
            _reference(axes, [point for point, _ in in_panel], level)
        axes.autoscale_view()
        axes.set_title(panel_title(*panel), fontsize=11)
        axes.set_xlabel(x_name or x)
        plain_frame(axes)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    legend(figure, figure.axes, names)
    return figure


def _place(row: Row, x: str) -> float | None:
    value = row.settings.get(x)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{x}={value!r} is not a number: a curve needs a numeric setting")
    return value


def _axis(axes: Axes, ticks: list[float]) -> None:
    """Put ticks at the values themselves, unless these are too close to each other."""
    low, high = ticks[0], ticks[-1]
    if low >= 0 and high >= 10 * low and high > 0:
        axes.set_xscale("log") if low > 0 else axes.set_xscale("symlog", linthresh=ticks[1])
    axes.xaxis.set_minor_formatter(NullFormatter())
    scaled = axes.transScale.transform([(tick, 1.0) for tick in ticks])[:, 0]
    if len(ticks) == 1 or np.diff(scaled).min() >= 0.11 * (scaled[-1] - scaled[0]):
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _series(axes: Axes, points: list[Point], name: str, rank: int, offset: float) -> None:
    """Draw a line with intervals, ``offset`` points to the side so that the intervals of several lines are side by side."""
    color = COLORS[rank % len(COLORS)]
    look: dict[str, Any] = {"color": color, "linestyle": LINES[rank // len(COLORS) % len(LINES)], "label": name}
    moved = axes.transData + ScaledTranslation(offset / 72, 0, axes.figure.dpi_scale_trans)
    swept = sorted(((place, row) for place, row in points if place is not None), key=lambda point: point[0])
    if swept:
        values = [row.estimate.value for _, row in swept]
        marker = MARKERS[rank % len(MARKERS)]
        axes.plot([place for place, _ in swept], values, marker=marker, markersize=5, linewidth=1.6, transform=moved, **look)
    for place, row in swept:
        numbers = row.estimate.value, row.estimate.low, row.estimate.high
        if math.isfinite(row.estimate.value):
            draw_interval(axes, place, row.estimate, color=color, linewidth=1.2, transform=moved)
        # Matplotlib extends the limits for artists in data coordinates only, not for those that are moved.
        axes.update_datalim([(place, number) for number in numbers if math.isfinite(number)] or [(place, np.nan)])
    unknown = [place for place, row in swept if not math.isfinite(row.estimate.value)]
    if unknown:
        axes.plot(unknown, [0.03] * len(unknown), "x", color=color, markersize=7, transform=_at_bottom(axes, offset))
    for place, row in points:
        if place is None and math.isfinite(row.estimate.value):
            axes.axhline(row.estimate.value, linewidth=1.6, **look)
            draw_band(axes, None, [row.estimate], color, alpha=0.12)


def _at_bottom(axes: Axes, offset: float) -> Transform:
    """The x of the data, ``offset`` points to the side, and the y of the axes."""
    return axes.get_xaxis_transform() + ScaledTranslation(offset / 72, 0, axes.figure.dpi_scale_trans)


def _reference(axes: Axes, points: list[Point], level: str) -> None:
    """Draw a level as a line across if it does not depend on the setting, one for each value, otherwise as a curve."""
    known = {(place, value) for place, row in points if (value := getattr(row.levels, level)) is not None}
    values, places = {value for _, value in known}, {place for place, _ in known}
    if len(values) == 1 or len(known) > len(places):
        for value in sorted(values):
            draw_level(axes, level, value)
    elif swept := sorted((place, value) for place, value in known if place is not None):
        draw_level(axes, level, [value for _, value in swept], [place for place, _ in swept])
