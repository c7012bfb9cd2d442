"""Shares as bars with intervals and levels."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.figures.style import COLORS, DPI, HATCHES, INK, WIDEST, legend, plain_frame, series_label
from experiments.tables import REFERENCES, differing_settings


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


def _group(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    k = next((row["k"] for row in rows if row["metric"] == metric and row.get("k") is not None), None)
    return metric.replace("_", " ") if k is None else f"top {k}"
