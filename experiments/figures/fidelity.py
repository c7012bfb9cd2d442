"""How well compressed gradients keep the scores (K-FAC paper, app. C, fig. 6)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from experiments.figures.labels import place_labels
from experiments.figures.mappings import differing_settings
from experiments.figures.style import COLORS, DPI, MARKERS, legend, panel_title, plain_frame, series_label

_EXACT = 1e-12
"""Correlations nearer to 1 than this are 1 up to the rounding of float64."""


def compression(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Correlation with the scores of uncompressed gradients against the compression ratio (K-FAC paper, fig. 6).

    A column of panels for each metric, a line of them for each kind of queries; a curve with intervals for each estimator (with
    its settings) and kind of compression. The axis of correlations is logarithmic in the distance to 1, where the good ones crowd.

    Args:
        rows: report rows, with besides ``compression``, the name of a point ("int8", "svd rank 4"), ``kind``, that of its curve
            ("quantised", "svd"), and ``ratio``, bytes before over bytes after. Values of None are not shown;
            without any the figure is empty.
    """
    rows = [row for row in rows if row["value"] is not None]
    if not rows:
        return Figure(dpi=DPI)
    settings = [{n: v for n, v in chosen.items() if "compression" not in n} for chosen in differing_settings(rows)]
    labels = [series_label(row["estimator"], chosen) for row, chosen in zip(rows, settings, strict=True)]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    queries = list(dict.fromkeys(row.get("queries") for row in rows))
    figure = Figure((0.6 + 5.4 * len(metrics), 0.6 + 3.9 * len(queries)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(queries), len(metrics), sharex=True, sharey=True, squeeze=False)
    floor = _floor(rows)
    _ratio_axis(grid[0, 0], [row["ratio"] for row in rows])
    _correlation_axis(grid[0, 0], rows, floor)
    for (line, column), axes in np.ndenumerate(grid):
        panel = (metrics[column], queries[line])
        here = [(row, label) for row, label in zip(rows, labels, strict=True) if (row["metric"], row.get("queries")) == panel]
        _curves(axes, here, list(dict.fromkeys(labels)), list(dict.fromkeys(row["kind"] for row in rows)), floor)
        axes.set_title(panel_title(f"{metrics[column].capitalize()} correlation", queries[line]), fontsize=11)
        plain_frame(axes)
    for axes in grid[-1]:
        axes.set_xlabel("compression ratio (bytes before / bytes after)")
    for axes in grid[:, 0]:
        axes.set_ylabel("correlation with the uncompressed scores")
    legend(figure, figure.axes)
    for (line, column), axes in np.ndenumerate(grid):
        here = [row for row in rows if (row["metric"], row.get("queries")) == (metrics[column], queries[line])]
        best = {(row["compression"], row["ratio"]): row for row in sorted(here, key=lambda row: row["value"])}
        place_labels(figure, axes, [(row["ratio"], _distance(row["value"], floor), row["compression"]) for row in best.values()])
    return figure


def _distance(correlation: float, floor: float) -> float:
    """1 - ρ, as the axis shows it."""
    return max(1 - correlation, floor)


def _floor(rows: Sequence[Mapping[str, Any]]) -> float:
    """Where a correlation of exactly 1 stands, which has no place on a log axis: well below the smallest distance."""
    smallest = min((1 - row["value"] for row in rows if 1 - row["value"] > _EXACT), default=1e-3)
    return 10.0 ** (np.floor(np.log10(smallest)) - 0.5)


def _curves(axes: Axes, here: list[tuple[Mapping[str, Any], str]], names: list[str], kinds: list[str], floor: float) -> None:
    for i, name in enumerate(names):
        for j, kind in enumerate(kinds):
            points = sorted((row for row, label in here if label == name and row["kind"] == kind), key=lambda row: row["ratio"])
            if not points:
                continue
            color = COLORS[(i if len(names) > 1 else j) % len(COLORS)]
            look: dict[str, Any] = {"color": color, "marker": MARKERS[j % len(MARKERS)], "linestyle": ("-", "--", ":")[j % 3]}
            x, y = [row["ratio"] for row in points], [_distance(row["value"], floor) for row in points]
            axes.plot(x, y, label=f"{name}, {kind}" if len(names) > 1 else kind, linewidth=1.6, markersize=6, **look)
            known = [row for row in points if row["low"] is not None and row["high"] is not None]
            low, high = ([_distance(row[end], floor) for row in known] for end in ("low", "high"))
            axes.vlines([row["ratio"] for row in known], low, high, color, linewidth=1.3)


def _ratio_axis(axes: Axes, ratios: Sequence[float]) -> None:
    beside = max(1.3, (max(ratios) / min(ratios)) ** 0.1)  # room for the names of the points
    low, high = min(ratios) / beside, max(ratios) * beside
    axes.set_xscale("log")
    step = max(1, int(np.ceil(np.log2(high / low) / 9)))
    ticks = [2.0**e for e in range(-20, 40, step) if low <= 2.0**e <= high]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(low, high)


def _correlation_axis(axes: Axes, rows: Sequence[Mapping[str, Any]], floor: float) -> None:
    """1 - ρ on a log axis, 1 at the top, labelled by ρ."""
    lows = [row["value"] if row["low"] is None else row["low"] for row in rows]
    exact = any(1 - row["value"] <= _EXACT for row in rows)
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
