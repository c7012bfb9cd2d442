"""Chosen training images, such as those of another source, with their ranks among all proponents (ReTrac, fig. 16)."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from attribution.images import Images
from experiments.figures.style import FAINT, INK, WIDEST, text_width, wrapped
from experiments.figures.thumbnails import canvas, caption, foot, names_height, thumbnail
from experiments.metrics.ranking import ranks

_SIZE, _GAP, _TEXT, _MARGIN, _BETWEEN, _WIDEST_NAME = 0.62, 0.06, 0.33, 0.1, 0.16, 1.5
_STEP = _SIZE + _GAP


def ranks_of_chosen(
    queries: Images,
    train: Images,
    scores: Mapping[str, np.ndarray],
    rows: Sequence[int],
    chosen: Collection[int],
    top: int = 8,
) -> Figure:
    """For each query and variant, the ``top`` of the ``chosen`` training images in descending order of their scores.

    Below each are its rank among all N training images, its id and its score.

    Args:
        queries: Q images; ``rows`` are positions of those to show.
        train: N images, in the order of the columns of the scores.
        scores: τ ``[Q, N]`` for each variant.
        rows: the shown queries.
        chosen: positions of training images.
        top: the number of images in a line.
    """
    names = {name: wrapped(name, _WIDEST_NAME, 9, "bold") for name in scores}
    beside = 0.15 + max(text_width(line, 9, "bold") for lines in names.values() for line in lines)
    room = int((WIDEST - 2 * _MARGIN - _STEP - beside) / _STEP)
    count, positions = min(top, len(chosen), room), np.array(sorted(chosen))
    line = _SIZE + _TEXT + names_height(train) + 0.1
    width = 2 * _MARGIN + _STEP + beside + max(count, 5) * _STEP
    about = "Below each training image: its rank among all training images, its id, its name if it has one, and its score."
    notes = wrapped(about, width - 2 * _MARGIN, 8)
    height = len(rows) * (len(scores) * line + _BETWEEN) + 0.16 * len(notes) + 0.2
    figure, axes = canvas(width, height)
    y = 0.08
    for row in rows:
        thumbnail(axes, queries, row, _MARGIN, y, _SIZE, caption(queries, row, _SIZE))
        for name, values in scores.items():
            of_query = np.asarray(values[row], np.float64)
            rank = ranks(of_query)
            label = "\n".join(names[name])
            axes.text(_MARGIN + _STEP, y + _SIZE / 2, label, va="center", fontsize=9, weight="bold", color=INK)
            for place, position in enumerate(positions[np.argsort(rank[positions])][:count].tolist()):
                text = f"{rank[position]}. {caption(train, position, _SIZE)}\n{of_query[position]:.2g}"
                thumbnail(axes, train, position, _MARGIN + _STEP + beside + place * _STEP, y, _SIZE, text)
            y += line
        axes.plot([_MARGIN, width - _MARGIN], [y + _BETWEEN / 4] * 2, color=FAINT, linewidth=0.5)
        y += _BETWEEN
    foot(axes, _MARGIN, y, [], notes)
    return figure
