"""Labels next to points, placed where they cover as little as possible."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox, BboxBase

from experiments.figures.style import FAINT, INK, text_width

_SIZE, _MARKER = 8, 4.0
_NEAR, _FAR = 7, (14, 22, 32, 44)
_DIRECTIONS = ((0, 1), (0, -1), (1, 0.5), (-1, 0.5), (1, -0.5), (-1, -0.5), (1, 0), (-1, 0))
_PLACES = [(np.array(direction), distance) for distance in (_NEAR, *_FAR) for direction in _DIRECTIONS]
"""Places to try, best first: the direction from the point, and the distance in units of 1/72 inch."""
_POINTER = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}


def place_labels(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name next to its point (x, y), where it covers the fewest names, markers and lines, or farther off with a line.

    Call it after everything else has been drawn: the free places depend on the final layout.
    """
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    lines = [Path(np.asarray(axes.transData.transform(line.get_xydata()))) for line in axes.lines]
    marked = [path for path, line in zip(lines, axes.lines, strict=True) if line.get_marker() != "None"]
    markers = [Bbox.from_bounds(x, y, 0, 0).padded(_MARKER * pixels) for path in marked for x, y in np.asarray(path.vertices)]
    lines += [path.transformed(axes.transData) for collection in axes.collections for path in collection.get_paths()]
    taken: list[Bbox] = []
    for x, y, name in points:
        size = np.array([text_width(name, _SIZE) * 72, 1.25 * _SIZE])
        center = np.asarray(axes.transData.transform((x, y))) / pixels
        offsets = [side * distance + size / 2 * (np.abs(side) == 1) for side, distance in _PLACES]
        places = [Bbox(pixels * (center + offset + size / 2 * np.array([[-1], [1]]))) for offset in offsets]
        pointers = [Path([pixels * center, pixels * (center + offset)]) for offset in offsets]
        hidden = [_hidden(place, taken, markers, lines, axes.bbox) for place in places]
        hidden = [10 * sum(pointer.intersects_bbox(box) for box in taken) + n for pointer, n in zip(pointers, hidden, strict=True)]
        best = int(np.argmin(hidden))  # the nearest of equal ones
        far = _PLACES[best][1] > _NEAR
        taken.append(places[best])
        lines += [pointers[best]] if far else []
        label = axes.annotate(
            name,
            (x, y),
            tuple(offsets[best]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SIZE,
            color=INK,
            arrowprops=_POINTER if far else None,
        )
        label.set_in_layout(False)


def _hidden(place: Bbox, taken: list[Bbox], markers: list[Bbox], lines: list[Path], panel: BboxBase) -> float:
    """The amount that a name at ``place`` would hide, or how far it would leave the panel."""
    inside = Bbox.intersection(place, panel)
    outside = inside is None or not np.allclose(inside.extents, place.extents)
    hidden = 10 * place.count_overlaps(taken) + 5 * place.count_overlaps(markers) + 5 * outside
    return hidden + sum(line.intersects_bbox(place, filled=False) for line in lines)
