"""Numbers against a setting that was swept."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from experiments.figures.mappings import differing_settings
from experiments.figures.style import COLORS, DPI, INK, MARKERS, WIDEST, legend, panel_title, plain_frame, series_label, text_width
from experiments.report.tables import REFERENCES

_LEVELS = {"random": "--", "maximum": ":", "ceiling": "-."}
_NAMES = {**REFERENCES, "ceiling": "noise ceiling"}

Point = tuple[float | None, Mapping[str, Any]]
"""Where a row stands on the axis (None: it does not have the setting), and the row."""


def curve(rows: Sequence[Mapping[str, Any]], x: str, x_name: str | None = None) -> Figure:
    """Values with intervals against the numeric setting ``x``, as damping or draws (K-FAC paper, figs. 7-10).

    A panel for each metric and kind of queries; in it a line for each estimator and combination of its other settings. Rows hold
    the setting in ``swept``; one without it (of an estimator that has no such setting) is a level all across. ``random``,
    ``maximum`` and ``ceiling`` of the rows are lines too. A value of None leaves a gap. The axis is logarithmic where the
    setting's values span a factor of ten or more. ``x_name`` labels it, by default with the setting's name.

    Raises:
        ValueError: no row has the setting, or its value is no number.
    """
    settings = [{name: value for name, value in chosen.items() if name != x} for chosen in differing_settings(rows)]
    labels = [series_label(row["estimator"], others) for row, others in zip(rows, settings, strict=True)]
    points: list[Point] = [(_place(row, x), row) for row in rows]
    ticks = sorted({place for place, _ in points if place is not None})
    if not ticks:
        raise ValueError(f"no row was swept over {x}: run with -m {x}=VALUE,VALUE")
    names = list(dict.fromkeys(labels))
    panels = list(dict.fromkeys((row["metric"], row.get("queries")) for row in rows))
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    width = max(0.6 + 4.6 * across, 7.0, 2 * (0.6 + max(text_width(name, 9) for name in names)))
    figure = Figure((min(width, WIDEST), 0.6 + 3.5 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=len({metric for metric, _ in panels}) == 1)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _axis(axes, ticks)
        here = [(p, label) for p, label in zip(points, labels, strict=True) if (p[1]["metric"], p[1].get("queries")) == panel]
        for rank, name in enumerate(names):
            aside = (rank - (len(names) - 1) / 2) * min(3.0, 12 / len(names))
            _series(axes, [point for point, label in here if label == name], name, rank, aside)
        for level in _LEVELS:
            _reference(axes, [point for point, _ in here], level)
        axes.autoscale_view()
        axes.set_title(panel_title(*panel), fontsize=11)
        axes.set_xlabel(x_name or x)
        plain_frame(axes)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    legend(figure, figure.axes, names)
    return figure


def _place(row: Mapping[str, Any], x: str) -> float | None:
    value = (row.get("swept") or {}).get(x)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{x}={value!r} is no number: a curve needs a numeric setting")
    return value


def _axis(axes: Axes, ticks: list[float]) -> None:
    """Ticks at the values themselves, unless these stand too close."""
    low, high = ticks[0], ticks[-1]
    if low >= 0 and high >= 10 * low and high > 0:
        axes.set_xscale("log") if low > 0 else axes.set_xscale("symlog", linthresh=ticks[1])
    axes.xaxis.set_minor_formatter(NullFormatter())
    scaled = axes.transScale.transform([(tick, 1.0) for tick in ticks])[:, 0]
    if len(ticks) == 1 or np.diff(scaled).min() >= 0.11 * (scaled[-1] - scaled[0]):
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _series(axes: Axes, points: list[Point], name: str, rank: int, aside: float) -> None:
    """A line with intervals, moved aside by some points so that those of several lines stand beside each other."""
    look: dict[str, Any] = {
        "color": COLORS[rank % len(COLORS)],
        "linestyle": ("-", "--", ":")[rank // len(COLORS) % 3],
        "label": name,
    }
    moved = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    swept = sorted(((place, row) for place, row in points if place is not None), key=lambda point: point[0])
    if swept:
        values = [np.nan if row["value"] is None else row["value"] for _, row in swept]
        marker = MARKERS[rank % len(MARKERS)]
        axes.plot([place for place, _ in swept], values, marker=marker, markersize=5, linewidth=1.6, transform=moved, **look)
    for place, row in swept:
        if None not in (row["value"], row["low"], row["high"]):
            axes.plot([place, place], [row["low"], row["high"]], color=look["color"], linewidth=1.2, transform=moved)
        # Limits follow by themselves only what is not moved.
        axes.update_datalim([(place, row[end]) for end in ("value", "low", "high") if row[end] is not None] or [(place, np.nan)])
    for place, row in points:
        if place is None and row["value"] is not None:
            axes.axhline(row["value"], linewidth=1.6, **look)
            if row["low"] is not None and row["high"] is not None:
                axes.axhspan(row["low"], row["high"], color=look["color"], alpha=0.12, linewidth=0)


def _reference(axes: Axes, points: list[Point], level: str) -> None:
    """A line across where the level is the same for all, else a curve of it."""
    known = {(place, row[level]) for place, row in points if row.get(level) is not None}
    look: dict[str, Any] = {"color": INK, "linestyle": _LEVELS[level], "linewidth": 1.1, "label": _NAMES[level]}
    if len({value for _, value in known}) == 1:
        axes.axhline(next(iter(known))[1], **look)
    elif swept := sorted((place, value) for place, value in known if place is not None):
        axes.plot(*zip(*swept, strict=True), **look)
