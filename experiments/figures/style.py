"""The style that figures share: colors that color-blind readers can tell apart, frames, text sizes, legends that fit."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

DPI = 150
WIDEST, TALLEST = 16.0, 30.0
"""The largest width and height of a figure in inches."""
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#555555")
"""Okabe & Ito's palette without yellow, which is faint on white. Color alone never distinguishes two series."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
"""One more than colors, so that series with the same color have different markers."""
HATCHES = ("", "///", "...", "xx")
LINES = ("-", "--", ":")
"""Line styles of series that have the same color."""
RED = "#d62728"
INK, FAINT = "#222222", "#8a8a8a"
_HINTING = 1.04
"""How much wider text is drawn than its outlines, since letters begin at whole pixels: measured 1.00 to 1.07 at 7 to 12 points."""


def grid_shape(panels: int, across: int = 4) -> tuple[int, int]:
    """The numbers of columns and of rows of a grid that ``panels`` fill as evenly as possible, with at most ``across`` columns."""
    down = -(-panels // across)
    return -(-panels // down), down


def plain_frame(axes: Axes) -> None:
    """Remove the frame at the top and the right, and draw faint horizontal grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)


def series_label(estimator: str, settings: Mapping[str, Any]) -> str:
    """The label of an estimator: its name and the settings in which it differs from others of that name."""
    return ", ".join([estimator, *(f"{name.removeprefix('estimator.')}={value}" for name, value in settings.items())])


def panel_title(metric: str, queries: str | None) -> str:
    """The title of a panel, such as "split half spearman, validation queries"."""
    return metric.replace("_", " ") + (f", {queries} queries" if queries else "")


def legend(figure: Figure, axes: Sequence[Axes], order: Sequence[str] = ()) -> None:
    """Add one legend of all panels below them and enlarge the figure for it; labels in ``order`` come first."""
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
    """The width of a line of text in inches, at a font size of ``size`` points."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), ismath=False)
    return _HINTING * width / 72


def drawable(text: str) -> str:
    """The text with boxes for characters that the font lacks."""
    return "".join(letter if letter.isprintable() and ord(letter) in _characters() else "□" for letter in text)


@functools.cache
def _characters() -> frozenset[int]:
    """The characters of the font."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def ending(text: str, width: float, size: float) -> str:
    """A line of text, or as much of its end as fits ``width`` inches."""
    start = 0
    while text_width(shown := "…" * (start > 0) + text[start:], size) > width and start < len(text):
        start += 1
    return shown


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """Break text into lines of at most ``width`` inches at a font size of ``size`` points, between words if possible."""
    letters = len(text)
    while True:
        lines = textwrap.wrap(text, letters)
        if letters <= 1 or all(text_width(line, size, weight) <= width for line in lines):
            return lines
        letters -= 1
