"""Values as bars with intervals and reference levels."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.figures.intervals import draw_interval, draw_level
from experiments.figures.style import COLORS, DPI, HATCHES, WIDEST, legend, plain_frame, series_label
from experiments.report.interval_kinds import common_kind
from experiments.report.row import Row
from experiments.report.tables import REFERENCES, differing_settings


def distinct_share(rows: Sequence[Row]) -> Figure:
    """Distinct share of the top k (ReTrac §6.2, table 1) as bars with intervals; a panel for each kind of queries.

    Bars are grouped by metric, labeled by ``k`` in ``about``. Random level and maximum are lines across their group. Panels are
    stacked if they would be too wide side by side.
    """
    rows = [row for row in rows if math.isfinite(row.estimate.value)]
    kinds = list(dict.fromkeys(row.queries for row in rows))
    labels, interval = _labels(rows), common_kind(row.estimate for row in rows)
    names = list(dict.fromkeys(labels))
    metrics = list(dict.fromkeys(row.metric for row in rows))
    bar = 0.8 / max(1, len(names))
    panels = max(1, len(kinds))
    panel = min(max(3.2, 0.45 * len(metrics) * (len(names) + 1)), WIDEST - 0.6)
    down, across = (1, panels) if 0.6 + panels * panel <= WIDEST else (panels, 1)
    figure = Figure((0.6 + across * panel, 0.4 + 3.5 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        for row, label in ((row, label) for row, label in zip(rows, labels, strict=True) if row.queries == kind):
            group, rank = metrics.index(row.metric), names.index(label)
            x = group + (rank - (len(names) - 1) / 2) * bar
            turn, color = divmod(rank, len(COLORS))
            axes.bar(x, row.estimate.value, 0.9 * bar, label=label, **_look(color, turn))
            draw_interval(axes, x, row.estimate, label=interval)
            for level in ("random", "maximum"):
                if (value := getattr(row.levels, level)) is not None:
                    draw_level(axes, level, value, (group - 0.46, group + 0.46))
        axes.set_xticks(range(len(metrics)), [_group(rows, metric) for metric in metrics])
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        axes.set_ylim(0, 1.08)
        plain_frame(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel("distinct share")
    legend(figure, figure.axes, [*names, *([] if interval is None else [interval]), *REFERENCES.values()])
    return figure


def bars(rows: Sequence[Row], value_name: str) -> Figure:
    """Values with intervals as horizontal bars, the largest at the top; a panel for each kind of queries, the noise ceiling a line.

    A second metric of the same estimator, such as the LDS at a tuned damping, is a hatched bar below the first.
    """
    rows = [row for row in rows if math.isfinite(row.estimate.value)]
    kinds = list(dict.fromkeys(row.queries for row in rows)) or [None]
    metrics = list(dict.fromkeys(row.metric for row in rows))
    labels, interval = _labels(rows), common_kind(row.estimate for row in rows)
    values = {label: [row.estimate.value for row, other in zip(rows, labels, strict=True) if other == label] for label in labels}
    names = sorted(values, key=lambda label: sum(values[label]) / len(values[label]))
    drawn = {(label, row.metric) for row, label in zip(rows, labels, strict=True)}
    metrics_of = {label: [metric for metric in metrics if (label, metric) in drawn] for label in names}
    figure = Figure((1.5 + 4.2 * len(kinds), 0.8 + 0.42 * len(names)), dpi=DPI, layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        for row, label in ((row, label) for row, label in zip(rows, labels, strict=True) if row.queries == kind):
            rank = metrics.index(row.metric)
            place = metrics_of[label].index(row.metric)
            y = names.index(label) + 0.4 * ((len(metrics_of[label]) - 1) / 2 - place)
            height = 0.38 if len(metrics) > 1 else 0.7
            axes.barh(y, row.estimate.value, height, label=row.metric.replace("_", " "), **_look(rank, rank))
            draw_interval(axes, y, row.estimate, horizontal=True, label=interval)
            if row.levels.ceiling is not None:
                draw_level(axes, "ceiling", row.levels.ceiling, vertical=True)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, max(len(names), 1) - 0.4)
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        axes.set_xlabel(value_name)
        plain_frame(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    legend(figure, figure.axes)
    return figure


def _labels(rows: Sequence[Row]) -> list[str]:
    return [series_label(row.estimator, settings) for row, settings in zip(rows, differing_settings(rows), strict=True)]


def _look(color: int, hatch: int) -> dict[str, Any]:
    return {
        "color": COLORS[color % len(COLORS)],
        "hatch": HATCHES[hatch % len(HATCHES)],
        "edgecolor": "white",
        "linewidth": 0,
    }


def _group(rows: Sequence[Row], metric: str) -> str:
    k = next((row.about["k"] for row in rows if row.metric == metric and "k" in row.about), None)
    return metric.replace("_", " ") if k is None else f"top {k}"
