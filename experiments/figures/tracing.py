"""The ranks of a source's images: shares over k (ReTrac, fig. 4), and the first images of a ranking (ReTrac, figs. 15, 16)."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from attribution.images import Images
from experiments.figures.intervals import draw_band, draw_level, name_intervals
from experiments.figures.style import COLORS, DPI, INK, LINES, MARKERS, RED, WIDEST, legend, plain_frame, series_label, wrapped
from experiments.figures.thumbnails import canvas, caption, names_height, thumbnail
from experiments.metrics.ranking import ranks
from experiments.report.row import Row
from experiments.report.tables import REFERENCES, differing_settings

_LEVELS = ("random", "maximum")
_PANEL, _ACROSS = 4.0, 4
_SIZE, _GAP, _TEXT, _COLUMNS = 0.62, 0.06, 0.33, 12


def over_k(rows: Sequence[Row], value_name: str) -> Figure:
    """Values against ``k``, intervals as bands, levels as lines; a panel for each kind of queries.

    Rows have ``k`` in ``about``, and the number of queries, if known, as ``queries_n``.
    """
    rows = [row for row in rows if math.isfinite(row.estimate.value)]
    labels = [series_label(row.estimator, settings) for row, settings in zip(rows, differing_settings(rows), strict=True)]
    names = list(dict.fromkeys(labels))
    kinds = list(dict.fromkeys(row.queries for row in rows)) or [None]
    across = min(_ACROSS, len(kinds)) if len(kinds) != _ACROSS else 2
    down = -(-len(kinds) // across)
    figure = Figure((min(WIDEST, 0.8 + max(_PANEL * across, 6.0)), 0.5 + 3.1 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        in_panel = [(row, label) for row, label in zip(rows, labels, strict=True) if row.queries == kind]
        for rank, name in enumerate(names):
            _line(axes, [row for row, label in in_panel if label == name], name, rank)
        for level in _LEVELS:
            pairs = ((row.about["k"], getattr(row.levels, level)) for row, _ in in_panel)
            if known := sorted({(k, value) for k, value in pairs if value is not None}):
                draw_level(axes, level, [value for _, value in known], [k for k, _ in known])
        name_intervals(axes, [row.estimate for row, _ in in_panel], linewidth=6, alpha=0.18)
        n = next((row.about["queries_n"] for row, _ in in_panel if "queries_n" in row.about), None)
        axes.set_title((kind or "") + (f" queries (n = {n})" if n is not None else ""), fontsize=11)
        _axis(axes, [row for row, _ in in_panel])
    for axes in grid.flat[len(kinds) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(value_name)
    legend(figure, figure.axes, [*names, *REFERENCES.values()])
    return figure


def ranked(
    train: Images, lists: Mapping[str, Sequence[int] | np.ndarray], values: np.ndarray, boxed: Collection[int], box_caption: str
) -> Figure:
    """Training images in the order of each of ``lists``, by title, with rank among all ``values [N]``, id and value below.

    ``boxed`` are positions of images with a red box, which the legend explains by ``box_caption``.
    """
    rank = ranks(values)
    columns = max(6, min(_COLUMNS, max(len(positions) for positions in lists.values())))
    step, line, head = _SIZE + _GAP, _SIZE + _TEXT + names_height(train), 0.3
    foot = wrapped("Below each training image: its rank, its id, its name if it has one, and its value.", columns * step, 8)
    lines = {title: -(-len(positions) // columns) for title, positions in lists.items()}
    height = sum(head + count * (line + 0.1) + 0.1 for count in lines.values()) + 0.3 + 0.16 * len(foot)
    figure, axes = canvas(columns * step + 2 * _GAP, height)
    y, red = 0.05, {int(position) for position in boxed}
    for title, positions in lists.items():
        axes.text(_GAP, y, title, va="top", fontsize=11, weight="bold", color=INK)
        for place, position in enumerate(np.asarray(positions).tolist()):
            down, right = divmod(place, columns)
            text = f"{rank[position]}. {caption(train, position, _SIZE)}\n{values[position]:.2g}"
            thumbnail(axes, train, position, _GAP + right * step, y + head + down * (line + 0.1), _SIZE, text, position in red)
        y += head + lines[title] * (line + 0.1) + 0.1
    axes.add_patch(Rectangle((_GAP, y), 0.18, 0.18, fill=False, edgecolor=RED, linewidth=2))
    axes.text(_GAP + 0.3, y + 0.09, box_caption, va="center", fontsize=9, color=INK)
    for number, text in enumerate(foot):
        axes.text(_GAP, y + 0.3 + 0.16 * number, text, va="center", fontsize=8, color="#555555")
    return figure


def _line(axes: Axes, rows: Sequence[Row], name: str, rank: int) -> None:
    rows = sorted(rows, key=lambda row: row.about["k"])
    ks, color = [row.about["k"] for row in rows], COLORS[rank % len(COLORS)]
    marker, line = MARKERS[rank % len(MARKERS)], LINES[rank // len(COLORS) % len(LINES)]
    values = [row.estimate.value for row in rows]
    axes.plot(ks, values, color=color, marker=marker, linestyle=line, markersize=5, linewidth=1.6, label=name)
    draw_band(axes, ks, [row.estimate for row in rows], color, alpha=0.18)


def _axis(axes: Axes, rows: Sequence[Row]) -> None:
    """Begin the vertical axis at 0, or just below the smallest number if all are at least 1/2, as for a common source."""
    ks = sorted({row.about["k"] for row in rows})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xlabel("k")
    numbers = [n for row in rows for n in (row.estimate.value, row.estimate.low, row.levels.random, row.levels.maximum)]
    smallest = min((n for n in numbers if n is not None and math.isfinite(n)), default=0.0)
    bottom = max(0.0, smallest - 0.1 * (1 - smallest)) if smallest >= 0.5 else 0.0
    axes.set_ylim(bottom, 1 + 0.05 * (1 - bottom))
    plain_frame(axes)
