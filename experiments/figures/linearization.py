"""Predicted against true changes over the number of images that are removed: how much is lost where."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from experiments.figures.style import COLORS, DPI, INK, MARKERS, legend, plain_frame, series_label
from experiments.report.row import Row
from experiments.report.tables import differing_settings

_PANELS = {"spearman": "Spearman's correlation, %", "scaled_error": "error after the best scale, %"}
_APART = 1.04
"""The distance between the markers of two estimators at the same size, as a factor."""


def linearization(rows: Sequence[Row], exact: str) -> Figure:
    """A row of panels for each kind of queries: correlation, and relative error after the best scale, over sizes of removed sets.

    The black curve is that of the ``exact`` derivative with retraining. Each estimator has a dashed curve with the exact derivative
    and a solid one with retraining.

    Args:
        rows: with the metrics ``QUANTITY_with_AGAINST_%`` and the setting ``removed``.
    """
    rows = [row for row in rows if row.minus is None and row.metric.partition("_with_")[0] in _PANELS]
    labels = [
        series_label(row.subject.name, {name: value for name, value in settings.items() if name != "removed"})
        for row, settings in zip(rows, differing_settings(rows), strict=True)
    ]
    kinds = list(dict.fromkeys(row.queries for row in rows))
    names = [exact, *(label for label in dict.fromkeys(labels) if label != exact)]
    figure = Figure((9.6, 0.6 + 3.2 * len(kinds)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(kinds), len(_PANELS), squeeze=False, sharex=True)
    for line, kind in zip(grid, kinds, strict=True):
        for axes, (quantity, title) in zip(line, _PANELS.items(), strict=True):
            for name in names:
                for against in ("retraining", exact):
                    metric = f"{quantity}_with_{against}_%"
                    chosen = [
                        row for row, of in zip(rows, labels, strict=True) if (row.queries, row.metric, of) == (kind, metric, name)
                    ]
                    _curve(axes, chosen, f"{name} with {against}", names.index(name), against == exact)
            axes.set_title(f"{title}, {kind} queries", fontsize=10)
            plain_frame(axes)
    sizes = sorted({row.settings["removed"] for row in rows})
    for axes in grid[-1]:
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("training images that are removed", fontsize=10)
    legend(figure, [*grid.flat])
    return figure


def _curve(axes: Axes, rows: Sequence[Row], label: str, rank: int, dashed: bool) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row.settings["removed"])
    color = INK if rank == 0 else COLORS[(rank - 1) % len(COLORS)]
    sizes = [row.settings["removed"] * _APART**rank for row in rows]
    values, low, high = np.array([(row.estimate.value, row.estimate.low, row.estimate.high) for row in rows]).T
    axes.errorbar(
        sizes,
        values,
        [values - low, high - values],
        label=label,
        color=color,
        marker=MARKERS[rank % len(MARKERS)],
        markersize=4.5,
        markerfacecolor="white" if dashed else color,
        linestyle="--" if dashed else "-",
        linewidth=1.4,
        elinewidth=0.7,
    )
