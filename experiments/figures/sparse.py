"""What few timesteps on the query side cost and save (ReTrac app. E)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.figures.style import COLORS, DPI, INK, MARKERS, legend, panel_title, plain_frame
from experiments.report.tables import REFERENCES

Row = Mapping[str, Any]


def sparse_timesteps(rows: Sequence[Row], agreement: str, faster: str) -> Figure:
    """A panel for each metric and kind of queries, over what timesteps are used; a mark with its interval for each estimator.

    The metric ``agreement`` is shown by its distance to 1 on a logarithmic axis, ``faster`` on a logarithmic axis.
    """
    rows = [row for row in rows if row["value"] is not None and "−" not in row["swept"]["timesteps"]]
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    schemes = list(dict.fromkeys(row["swept"]["timesteps"] for row in rows))
    schemes = [scheme for scheme in schemes if scheme == "all"] + [scheme for scheme in schemes if scheme != "all"]
    panels = list(dict.fromkeys((row["metric"], row.get("queries")) for row in rows))
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure((max(7.0, 4.6 * across), 0.3 + 3.4 * down), dpi=DPI, layout="constrained")
    plots = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(plots.flat, panels, strict=False):
        here = [row for row in rows if (row["metric"], row.get("queries")) == panel]
        shown = [scheme for scheme in schemes if any(row["swept"]["timesteps"] == scheme for row in here)]
        _marks(axes, here, names, shown, (lambda value: 1 - value) if panel[0] == agreement else lambda value: value)
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


def _marks(axes: Axes, rows: Sequence[Row], names: Sequence[str], schemes: Sequence[str], place: Any) -> None:
    for row in rows:
        group, rank = schemes.index(row["swept"]["timesteps"]), names.index(row["estimator"])
        x = group + (rank - (len(names) - 1) / 2) * 0.25
        look: dict[str, Any] = {"color": COLORS[rank % len(COLORS)], "zorder": 3}
        axes.plot(
            x, place(row["value"]), MARKERS[rank % len(MARKERS)], markersize=6, linestyle="none", label=row["estimator"], **look
        )
        if row["low"] is not None and row["high"] is not None:
            axes.plot([x, x], [place(row["low"]), place(row["high"])], linewidth=1.6, **look)
        for level, style in (("random", "--"), ("maximum", ":"), ("ceiling", "-.")):
            if row.get(level) is not None and place(row[level]) > 0:
                wide = (x - 0.12, x + 0.12) if level == "ceiling" else (group - 0.4, group + 0.4)
                axes.plot(wide, [place(row[level])] * 2, style, color=INK, linewidth=1.1, label=REFERENCES[level])


def _distances(axes: Axes) -> None:
    """1 - ρ on a logarithmic axis with 1 at the top, labelled by ρ."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-8, 1) for m in (1, 2, 5) if low <= m * 10.0**e <= min(high, 2)]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, [f"{1 - tick:.{max(1, -int(np.floor(np.log10(tick) + 1e-9)))}f}".replace("-", "−") for tick in ticks])
    axes.set_ylim(high, low)
