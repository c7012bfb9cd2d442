"""Proponents under several variants side by side, with a row for each query (ReTrac, fig. 11)."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from attribution.images import Images
from experiments.figures.style import FAINT, INK, TALLEST, WIDEST, wrapped
from experiments.figures.thumbnails import canvas, caption, foot, names_height, thumbnail
from experiments.metrics.ranking import top_k

MAX_VARIANTS = 6
"""The largest number of variants side by side; of more variants, some are shown in even steps."""
_SIZE, _GAP, _LINE, _MARGIN, _BETWEEN = 0.62, 0.06, 0.84, 0.1, 0.3


def side_by_side(
    queries: Images,
    train: Images,
    scores: Mapping[str, np.ndarray],
    rows: Sequence[int],
    top: int = 6,
    boxed: Mapping[str, Collection[int]] | None = None,
    box_caption: str = "generally influential: among the top proponents of many queries",
) -> Figure:
    """For each query, the training images with the largest scores under each variant, in descending order.

    The figure has at most 16 × 30 inches; it leaves out images, queries, or variants in even steps, that do not fit, and says how
    many.

    Args:
        queries: Q images; ``rows`` are positions of those to show.
        train: N images, in the order of the columns of the scores.
        scores: τ ``[Q, N]`` for each variant.
        top: the number of images for each query and variant.
        boxed: for each variant, positions of training images with a red box.
        box_caption: the explanation of a red box in the legend.
    """
    line_height = _LINE + names_height(train, queries.take(list(rows)))
    names = [list(scores)[i] for i in np.linspace(0, len(scores) - 1, min(MAX_VARIANTS, len(scores))).round().astype(int)]
    room = WIDEST - 2 * _MARGIN - _SIZE - len(names) * _BETWEEN
    count = min(top, len(train), int((room / len(names) + _GAP) / (_SIZE + _GAP)))
    across = count * (_SIZE + _GAP) - _GAP
    width = 2 * _MARGIN + _SIZE + len(names) * (_BETWEEN + across)
    titles = [wrapped(name, across, 10, "bold") for name in names]
    head = 0.18 * max(len(title) for title in titles) + 0.14
    shown = list(rows)[: int((TALLEST - head - 1.2) / line_height)]
    notes = [
        "Below each image: its id, and its name if it has one. "
        f"The {count} training images with the largest scores are in descending order."
    ]
    if len(shown) < len(rows):
        notes.append(f"{len(rows) - len(shown)} more queries are left out.")
    if len(names) < len(scores):
        notes.append(f"{len(scores) - len(names)} of {len(scores)} variants are left out, in even steps.")
    below = [line for note in notes for line in wrapped(note, width - 2 * _MARGIN, 8)]
    legend = wrapped(box_caption, width - 2 * _MARGIN - 0.4, 9) if boxed else []

    figure, axes = canvas(width, head + len(shown) * line_height + 0.2 * len(legend) + 0.16 * len(below) + 0.16)
    axes.text(_MARGIN + _SIZE / 2, head - 0.1, "query", ha="center", va="bottom", fontsize=9, color=INK)
    axes.plot([_MARGIN, width - _MARGIN], [head - 0.06] * 2, color=FAINT, linewidth=0.6)
    for line, row in enumerate(shown):
        thumbnail(axes, queries, row, _MARGIN, head + line * line_height, _SIZE, caption(queries, row, _SIZE))
    for column, (name, title) in enumerate(zip(names, titles, strict=True)):
        x = _MARGIN + _SIZE + _BETWEEN + column * (across + _BETWEEN)
        axes.text(
            x + across / 2, head - 0.1, "\n".join(title), ha="center", va="bottom", fontsize=10, weight="bold", color=INK
        )  # fmt: skip
        red = {int(position) for position in (boxed or {}).get(name, ())}
        tops = top_k(np.asarray(scores[name])[shown], count)
        for line, positions in enumerate(tops):
            for place, position in enumerate(positions.tolist()):
                corner = x + place * (_SIZE + _GAP), head + line * line_height
                thumbnail(axes, train, position, *corner, _SIZE, caption(train, position, _SIZE), position in red)
    y = head + len(shown) * line_height + 0.04
    foot(axes, _MARGIN, y, legend, below)
    return figure
