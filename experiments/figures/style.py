"""What figures share: colours that the colour-blind tell apart, frames, measured texts, legends that fit."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

DPI = 150
WIDEST, TALLEST = 16.0, 30.0
"""Inches that no figure passes."""
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#555555")
"""Okabe & Ito's palette without its yellow, which white paper swallows; never the only thing that tells two series apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "xx")
RED = "#d62728"
INK, FAINT = "#222222", "#8a8a8a"


def plain_frame(axes: Axes) -> None:
    """No frame above and at the right, and faint lines across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)


def series_label(estimator: str, settings: Mapping[str, Any]) -> str:
    """An estimator and the settings that tell it from others of its name."""
    return ", ".join([estimator, *(f"{name.removeprefix('estimator.')}={value}" for name, value in settings.items())])


def panel_title(metric: str, queries: str | None) -> str:
    """What a panel shows, as "split half spearman, validation queries"."""
    return metric.replace("_", " ") + (f", {queries} queries" if queries else "")


def legend(figure: Figure, axes: Sequence[Axes], order: Sequence[str] = ()) -> None:
    """One legend below the panels, equal labels once, for which the figure grows; labels in ``order`` stand first."""
    handles: dict[str, Artist] = {}
    for panel in axes:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    labels = [*(label for label in order if label in handles), *(label for label in handles if label not in order)]
    if labels:
        longest = max(text_width(label, 9) for label in labels)
        columns = min(len(labels), max(1, int(figure.get_figwidth() / (longest + 0.6))))
        lines = -(-len(labels) // columns)
        columns = -(-len(labels) // lines)  # no nearly empty last column
        figure.set_figheight(figure.get_figheight() + 0.2 * lines)
        figure.legend(
            [handles[x] for x in labels],
            labels,
            loc="outside lower center",
            ncols=columns,
            fontsize=9,
            handlelength=2.6,
            frameon=False,
        )


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches that a line takes in ``size`` points."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), ismath=False)
    return width / 72


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """Lines of at most ``width`` inches in ``size`` points, broken between words where there is a gap."""
    letters = len(text)
    while True:
        lines = textwrap.wrap(text, letters)
        if letters <= 1 or all(text_width(line, size, weight) <= width for line in lines):
            return lines
        letters -= 1
