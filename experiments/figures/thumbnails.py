"""Images at positions in inches, with their ids and names below."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attribution.images import Images
from experiments.figures.style import DPI, FAINT, INK, RED, drawable, ending, text_width
from experiments.report.colors import colors

_NAME_LINE = 0.11
"""The height of the line of a name below an image in inches."""
_FONT = 7


def grid(images: Images, columns: int | None = None) -> Figure:
    """All images with their ids and names below, in ``columns``, or by default in about a square."""
    columns = columns or max(1, int(np.ceil(np.sqrt(len(images)))))
    size, gap, text = 0.7, 0.08, 0.19 + names_height(images)
    lines = -(-len(images) // columns)
    figure, axes = canvas(columns * (size + gap) + gap, lines * (size + text) + gap)
    for row in range(len(images)):
        line, column = divmod(row, columns)
        thumbnail(axes, images, row, gap + column * (size + gap), gap + line * (size + text), size, caption(images, row, size))
    return figure


def caption(images: Images, row: int, width: float) -> str:
    """The id of an image, "#3", and its name in a second line, unless this is only its data set and its id.

    The name has no folder; of a long one, the end without the suffix is shown.
    """
    if not _has_name(images, row):
        return f"#{images.index[row]}"
    name = Path(drawable(images.name(row))).name
    fits = text_width(name, _FONT) <= width
    return f"#{images.index[row]}\n{ending(name if fits else Path(name).stem, width, _FONT)}"


def names_height(*sets: Images) -> float:
    """The height that :func:`caption` needs for names, in inches: 0 if no image has one."""
    return _NAME_LINE * any(_has_name(images, row) for images in sets for row in range(len(images)))


def _has_name(images: Images, row: int) -> bool:
    return images.name(row).rpartition("/")[2] != str(images.index[row])


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure and axes that cover it, with coordinates in inches from the top left."""
    figure = Figure((width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def foot(axes: Axes, x: float, y: float, boxed: Sequence[str], notes: Sequence[str]) -> None:
    """Write, from ``y`` down, the explanation of the red box and then the notes; without ``boxed`` there is no box."""
    if boxed:
        axes.add_patch(Rectangle((x, y), 0.18, 0.18, fill=False, edgecolor=RED, linewidth=2))
    for line in boxed:
        axes.text(x + 0.3, y + 0.09, line, va="center", fontsize=9, color=INK)
        y += 0.2
    for line in notes:
        axes.text(x, y + 0.12, line, va="center", fontsize=8, color="#555555")
        y += 0.16


def thumbnail(
    axes: Axes, images: Images, row: int, x: float, y: float, size: float, text: str, box: bool = False, color: str = INK
) -> None:
    """Draw an image with ``text`` below."""
    pixels = colors(images, [int(row)])[0]
    pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
    height, width = (size * side / max(pixels.shape[:2]) for side in pixels.shape[:2])
    left, top = x + (size - width) / 2, y + size - height
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="nearest", aspect="auto")
    edge = {"edgecolor": RED, "linewidth": 2.5} if box else {"edgecolor": FAINT, "linewidth": 0.4}
    axes.add_patch(Rectangle((left, top), width, height, fill=False, **edge))
    look = {"ha": "center", "va": "top", "fontsize": _FONT, "linespacing": 1.0, "color": color}
    axes.text(x + size / 2, y + size + 0.03, text, parse_math=False, **look)


def picture(axes: Axes, images: Images, row: int, text: str, color: str) -> None:
    """Fill axes of their own with an image in a frame of ``color``, with ``text`` below."""
    axes.imshow(colors(images, [row])[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(edgecolor=color, linewidth=2)
    axes.set_xlabel(text, fontsize=8, parse_math=False)
