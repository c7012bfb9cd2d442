"""How well scores of compressed gradients agree with those of uncompressed ones (K-FAC influence, app. C, fig. 6)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from experiments.figures.intervals import draw_interval, name_intervals
from experiments.figures.labels import place_labels
from experiments.figures.style import COLORS, DPI, LINES, MARKERS, legend, panel_title, plain_frame, series_label
from experiments.report.row import Row
from experiments.report.tables import differing_settings

_POINT, _CURVE, _RATIO = "compression", "kind", "ratio"
"""Settings of the rows: the name of the point, the name of its curve, and bytes before over bytes after."""
_EXACT = 1e-12
"""Correlations nearer to 1 than this are 1 up to the rounding of float64."""


def compression(rows: Sequence[Row]) -> Figure:
    """Correlation with the scores of uncompressed gradients against the compression ratio (K-FAC influence, fig. 6).

    There is a column of panels for each metric, a row for each kind of queries, and a curve with intervals for each
    estimator, with its settings, and kind of compression. The axis of correlations is logarithmic in the distance to 1.

    Args:
        rows: with the settings ``compression``, the name of a point ("int8", "svd rank 4"), ``kind``, the curve's name
            ("quantized", "svd"), and ``ratio``, bytes before over bytes after. Unknown values are not shown; without any value the
            figure is empty.
    """
    rows = [row for row in rows if math.isfinite(row.estimate.value)]
    if not rows:
        return Figure(dpi=DPI)
    labels = [
        series_label(row.estimator, _others(differing)) for row, differing in zip(rows, differing_settings(rows), strict=True)
    ]
    names, kinds = list(dict.fromkeys(labels)), list(dict.fromkeys(row.settings[_CURVE] for row in rows))
    metrics, queries = list(dict.fromkeys(row.metric for row in rows)), list(dict.fromkeys(row.queries for row in rows))
    figure = Figure((0.6 + 5.4 * len(metrics), 0.6 + 3.9 * len(queries)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(queries), len(metrics), sharex=True, sharey=True, squeeze=False)
    floor = _floor(rows)
    _ratio_axis(grid[0, 0], [row.settings[_RATIO] for row in rows])
    _correlation_axis(grid[0, 0], rows, floor)
    for (line, column), axes in np.ndenumerate(grid):
        panel = (metrics[column], queries[line])
        in_panel = [(row, label) for row, label in zip(rows, labels, strict=True) if (row.metric, row.queries) == panel]
        _curves(axes, in_panel, names, kinds, floor)
        name_intervals(axes, [row.estimate for row, _ in in_panel])
        axes.set_title(panel_title(f"{metrics[column].capitalize()} correlation", queries[line]), fontsize=11)
        plain_frame(axes)
    for axes in grid[-1]:
        axes.set_xlabel("compression ratio (bytes before / bytes after)")
    for axes in grid[:, 0]:
        axes.set_ylabel("correlation with the uncompressed scores")
    legend(figure, figure.axes)
    for (line, column), axes in np.ndenumerate(grid):
        in_panel = [row for row in rows if (row.metric, row.queries) == (metrics[column], queries[line])]
        ascending = sorted(in_panel, key=lambda row: row.estimate.value)
        best = {(row.settings[_POINT], row.settings[_RATIO]): row.estimate.value for row in ascending}
        place_labels(figure, axes, [(ratio, _distance(value, floor), name) for (name, ratio), value in best.items()])
    return figure


def _others(settings: dict[str, object]) -> dict[str, object]:
    """The settings that have nothing to do with compression."""
    return {name: value for name, value in settings.items() if "compression" not in name and name not in (_CURVE, _RATIO)}


def _distance(correlation: float, floor: float) -> float:
    """The position 1 − ρ on the axis."""
    return max(1 - correlation, floor)


def _floor(rows: Sequence[Row]) -> float:
    """The position of a correlation of exactly 1, which a logarithmic axis does not have: well below the smallest distance."""
    smallest = min((1 - row.estimate.value for row in rows if 1 - row.estimate.value > _EXACT), default=1e-3)
    return 10.0 ** (np.floor(np.log10(smallest)) - 0.5)


def _curves(axes: Axes, rows: Sequence[tuple[Row, str]], names: list[str], kinds: list[str], floor: float) -> None:
    scale = partial(_distance, floor=floor)
    for i, name in enumerate(names):
        for j, kind in enumerate(kinds):
            of_curve = (row for row, label in rows if label == name and row.settings[_CURVE] == kind)
            points = {row.settings[_RATIO]: row.estimate for row in sorted(of_curve, key=lambda row: row.settings[_RATIO])}
            if not points:
                continue
            color = COLORS[(i if len(names) > 1 else j) % len(COLORS)]
            look: dict[str, Any] = {"color": color, "marker": MARKERS[j % len(MARKERS)], "linestyle": LINES[j % len(LINES)]}
            label = f"{name}, {kind}" if len(names) > 1 else kind
            values = [scale(estimate.value) for estimate in points.values()]
            axes.plot(list(points), values, label=label, linewidth=1.6, markersize=6, **look)
            for ratio, estimate in points.items():
                draw_interval(axes, ratio, estimate, scale=scale, color=color, linewidth=1.3)


def _ratio_axis(axes: Axes, ratios: Sequence[float]) -> None:
    margin = max(1.3, (max(ratios) / min(ratios)) ** 0.1)  # room for the names of the points
    low, high = min(ratios) / margin, max(ratios) * margin
    axes.set_xscale("log")
    step = max(1, int(np.ceil(np.log2(high / low) / 9)))
    ticks = [2.0**e for e in range(-20, 40, step) if low <= 2.0**e <= high]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(low, high)


def _correlation_axis(axes: Axes, rows: Sequence[Row], floor: float) -> None:
    """Make the axis of 1 − ρ logarithmic with ρ = 1 at the top, and label it by ρ."""
    estimates = [row.estimate for row in rows]
    lows = [e.low if math.isfinite(e.low) else e.value for e in estimates]
    exact = any(1 - e.value <= _EXACT for e in estimates)
    smallest = floor if exact else 10**0.5 * floor
    largest = max(1.6 * max(_distance(low, floor) for low in lows), 10 * smallest)
    decades = np.log10(largest / smallest)
    steps = (1, 2, 5) if decades < 3 else (1, 3) if decades < 5 else (1,)
    ticks = sorted({m * 10.0**e for e in range(-16, 1) for m in steps if smallest * 1.01 <= m * 10.0**e <= min(largest, 2)})
    ticks = [tick for tick in ticks if tick >= 10**0.5 * floor]
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([floor, *ticks] if exact else ticks, [*(["1"] if exact else []), *map(_correlation, ticks)])
    axes.set_ylim(largest, smallest / 1.6)


def _correlation(distance: float) -> str:
    exponent = int(np.floor(np.log10(distance) + 1e-9))
    if exponent >= -4:
        return f"{1 - distance:.{max(0, -exponent)}f}"
    digit = round(distance / 10.0**exponent)
    times = "" if digit == 1 else rf"{digit}\cdot "
    return rf"$1-{times}10^{{{exponent}}}$"
