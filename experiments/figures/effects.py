"""Effects of removed groups of several sizes on single queries, in units of the smallest effect that is no noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import COLORS, DPI, INK, LINES, MARKERS, legend, plain_frame, wrapped

_PANEL = 3.4
_MOST_NAMED = 14
"""The largest number of queries that the legend names."""


@dataclass(frozen=True, eq=False)
class Effects:
    """A panel: group ``sizes [F]``, ``ratios [F, Q]`` of effect to threshold, and which are ``found``, bool ``[F, Q]``."""

    title: str
    sizes: Sequence[int]
    ratios: np.ndarray
    found: np.ndarray


def effects(title: str, panels: Sequence[Effects], names: Sequence[str]) -> Figure:
    """A line for each query over the size of its group. Filled markers are found; at 1 an effect would be significant alone."""
    figure = Figure((max(5.0, 0.6 + _PANEL * len(panels)), 4.2), dpi=DPI, layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        for q, name in enumerate(names):
            color = COLORS[q % len(COLORS)]
            look = {"color": color, "linestyle": LINES[q // len(COLORS) % len(LINES)], "linewidth": 1.2}
            marker = MARKERS[q % len(MARKERS)]
            axes.plot(panel.sizes, panel.ratios[:, q], **look, label=name if len(names) <= _MOST_NAMED else None)
            for size, ratio, found in zip(panel.sizes, panel.ratios[:, q], panel.found[:, q], strict=True):
                axes.plot(size, ratio, marker, color=color, markersize=6, markerfacecolor=color if found else "white")
        axes.axhline(1, color=INK, linewidth=1.2, linestyle="--", label="p = significance, for one size alone")
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.plot([], [], "o", color=INK, linestyle="none", label="attributable")
        axes.plot([], [], "o", color=INK, linestyle="none", markerfacecolor="white", label="not attributable")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(sorted(set(panel.sizes)), [f"{size}" for size in sorted(set(panel.sizes))])
        axes.set_xlabel("top images removed")
        axes.set_title(panel.title, fontsize=11)
        plain_frame(axes)
    grid[0].set_ylabel("effect / smallest effect beyond noise")
    figure.suptitle("\n".join(wrapped(title, figure.get_figwidth() - 0.4, 11)), fontsize=11)
    legend(figure, figure.axes)
    return figure
