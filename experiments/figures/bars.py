"""Shares as bars with intervals and levels."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.figures.mappings import differing_settings
from experiments.figures.style import COLORS, DPI, HATCHES, INK, WIDEST, legend, plain_frame, series_label
from experiments.report.tables import REFERENCES


def distinct_share(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Distinct share of the top k (ReTrac §6.2, table 1) as bars with intervals; a panel for each kind of queries.

    Shows the rows that carry a ``random`` level, grouped by metric (labelled by their ``k``); random level and maximum are lines
    across their group. Panels stand below each other where they would be too wide together.
    """
    rows = [row for row in rows if row.get("random") is not None and row["value"] is not None]
    kinds = list(dict.fromkeys(row.get("queries") for row in rows))
    labels = [series_label(row["estimator"], settings) for row, settings in zip(rows, differing_settings(rows), strict=True)]
    names = list(dict.fromkeys(labels))
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    bar = 0.8 / max(1, len(names))
    panels = max(1, len(kinds))
    panel = min(max(3.2, 0.45 * len(metrics) * (len(names) + 1)), WIDEST - 0.6)
    down, across = (1, panels) if 0.6 + panels * panel <= WIDEST else (panels, 1)
    figure = Figure((0.6 + across * panel, 0.4 + 3.5 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        for row, label in ((row, label) for row, label in zip(rows, labels, strict=True) if row.get("queries") == kind):
            group, rank = metrics.index(row["metric"]), names.index(label)
            x = group + (rank - (len(names) - 1) / 2) * bar
            turn, color = divmod(rank, len(COLORS))
            look = {"color": COLORS[color], "hatch": HATCHES[turn % len(HATCHES)], "edgecolor": "white", "linewidth": 0}
            axes.bar(x, row["value"], 0.9 * bar, label=label, **look)
            if row["low"] is not None and row["high"] is not None:
                axes.plot([x, x], [row["low"], row["high"]], color=INK, linewidth=1.4, label="interval")
            for level, style in (("random", "--"), ("maximum", ":")):
                if row.get(level) is not None:
                    axes.hlines(row[level], group - 0.46, group + 0.46, INK, style, linewidth=1.2, label=REFERENCES[level])
        axes.set_xticks(range(len(metrics)), [_group(rows, metric) for metric in metrics])
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        axes.set_ylim(0, 1.08)
        plain_frame(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel("distinct share")
    legend(figure, figure.axes, [*names, "interval", *REFERENCES.values()])
    return figure


def bars(rows: Sequence[Mapping[str, Any]], value_name: str) -> Figure:
    """Values with intervals as horizontal bars, the largest above; a panel for each kind of queries, ``ceiling`` a dashed line.

    A second metric of the same estimator (one that was tuned) stands below its first, hatched.
    """
    rows = [row for row in rows if row["value"] is not None]
    kinds = list(dict.fromkeys(row.get("queries") for row in rows)) or [None]
    settings = differing_settings(rows)
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    labels = [series_label(row["estimator"], chosen) for row, chosen in zip(rows, settings, strict=True)]
    means = {label: [row["value"] for row, other in zip(rows, labels, strict=True) if other == label] for label in labels}
    names = sorted(means, key=lambda label: sum(means[label]) / len(means[label]))
    figure = Figure((1.5 + 4.2 * len(kinds), 0.8 + 0.42 * len(names)), dpi=DPI, layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        for row, label in zip(rows, labels, strict=True):
            if row.get("queries") != kind:
                continue
            rank = metrics.index(row["metric"])
            y = names.index(label) + (0.2 - 0.4 * rank if len(metrics) > 1 else 0)
            look = {
                "color": COLORS[rank % len(COLORS)],
                "hatch": HATCHES[rank % len(HATCHES)],
                "edgecolor": "white",
                "linewidth": 0,
            }
            axes.barh(y, row["value"], 0.38 if len(metrics) > 1 else 0.7, label=row["metric"].replace("_", " "), **look)
            if row["low"] is not None and row["high"] is not None:
                axes.plot([row["low"], row["high"]], [y, y], color=INK, linewidth=1.4, label="interval")
            if row.get("ceiling") is not None:
                axes.axvline(row["ceiling"], color=INK, linestyle="-.", linewidth=1.2, label=REFERENCES["ceiling"])
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        axes.set_xlabel(value_name)
        plain_frame(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    legend(figure, figure.axes)
    return figure


def _group(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    k = next((row["k"] for row in rows if row["metric"] == metric and row.get("k") is not None), None)
    return metric.replace("_", " ") if k is None else f"top {k}"
