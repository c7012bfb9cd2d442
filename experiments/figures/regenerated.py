"""Generated images beside what retrained models make of the same noise (D-TRAK, counterfactual evaluation)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from attribution.images import Images
from experiments.figures.style import FAINT, INK, TALLEST, WIDEST, wrapped
from experiments.figures.thumbnails import canvas, thumbnail

_SIZE, _STEP, _LINE, _MARGIN, _BETWEEN, _TEXT = 0.85, 1.12, 1.1, 0.12, 0.2, 0.16


def regenerated(
    title: str, original: Images, anew: Mapping[str, Images], distances: Mapping[str, np.ndarray], rows: Sequence[int]
) -> Figure:
    """A line for each of ``rows``: the original, and the same query under each model, with its distance ``[Q]`` below.

    What 16 × 30 inches do not hold is left out, and the figure says how much.
    """
    kept = list(anew)[: int((WIDEST - 2 * _MARGIN - _STEP - _BETWEEN) / _STEP)]
    heads = [wrapped(text, _STEP - 0.08, 9) for text in ("original", *kept)]
    width = max(2 * _MARGIN + (1 + len(kept)) * _STEP + _BETWEEN, 5.5)
    titles = wrapped(title, width - 2 * _MARGIN, 11, "bold")
    top = 0.1 + 0.22 * len(titles) + 0.1 + _TEXT * max(map(len, heads)) + 0.06
    lines = list(rows)[: max(1, int((TALLEST - top - 1) / _LINE))]
    note = "Below each image: its ℓ2 distance from the original, pixels from 0 to 1. Models of the first seed."
    note += f" {len(anew) - len(kept)} more columns are left out." if len(kept) < len(anew) else ""
    note += f" {len(rows) - len(lines)} more queries are left out." if len(lines) < len(rows) else ""
    foot = wrapped(note, width - 2 * _MARGIN, 8)

    figure, axes = canvas(width, top + len(lines) * _LINE + 0.08 + _TEXT * len(foot) + 0.06)
    for number, line in enumerate(titles):
        axes.text(_MARGIN, 0.1 + 0.22 * number, line, va="top", fontsize=11, weight="bold", color=INK)
    places = [_MARGIN, *(_MARGIN + _BETWEEN + _STEP * (1 + column) for column in range(len(kept)))]
    for x, head in zip(places, heads, strict=True):
        for number, line in enumerate(reversed(head)):
            axes.text(x + _STEP / 2, top - 0.06 - _TEXT * number, line, ha="center", va="bottom", fontsize=9, color=INK)
    axes.plot([_MARGIN, width - _MARGIN], [top - 0.03] * 2, color=FAINT, linewidth=0.6)
    for number, row in enumerate(lines):
        y, inset = top + 0.04 + number * _LINE, (_STEP - _SIZE) / 2
        thumbnail(axes, original, row, places[0] + inset, y, _SIZE, f"#{original.index[row]}")
        for x, name in zip(places[1:], kept, strict=True):
            thumbnail(axes, anew[name], row, x + inset, y, _SIZE, f"{distances[name][row]:.2f}")
    for number, line in enumerate(foot):
        axes.text(_MARGIN, top + len(lines) * _LINE + 0.08 + _TEXT * number, line, va="top", fontsize=8, color="#555555")
    return figure
