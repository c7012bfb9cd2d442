"""Images at positions in inches, with their ids below."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attribution.images import Images
from experiments.figures.style import DPI, FAINT, INK, RED


def grid(images: Images, columns: int | None = None) -> Figure:
    """All images with their ids below, in ``columns``, or by default in about a square."""
    columns = columns or max(1, int(np.ceil(np.sqrt(len(images)))))
    size, gap, text = 0.7, 0.08, 0.19
    lines = -(-len(images) // columns)
    figure, axes = canvas(columns * (size + gap) + gap, lines * (size + text) + gap)
    for row in range(len(images)):
        line, column = divmod(row, columns)
        thumbnail(axes, images, row, gap + column * (size + gap), gap + line * (size + text), size, f"#{images.index[row]}")
    return figure


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


def thumbnail(axes: Axes, images: Images, row: int, x: float, y: float, size: float, text: str, box: bool = False) -> None:
    """Draw an image with ``text`` below. Values outside [-1, 1], as of generated images, are clipped to black and white."""
    pixels = np.clip((images.x0([int(row)])[0].numpy().transpose(1, 2, 0) + 1) / 2, 0, 1)
    pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
    axes.imshow(pixels, extent=(x, x + size, y + size, y), interpolation="nearest", aspect="auto")
    edge = {"edgecolor": RED, "linewidth": 2.5} if box else {"edgecolor": FAINT, "linewidth": 0.4}
    axes.add_patch(Rectangle((x, y), size, size, fill=False, **edge))
    axes.text(x + size / 2, y + size + 0.03, text, ha="center", va="top", fontsize=7, linespacing=1.0, color=INK)
