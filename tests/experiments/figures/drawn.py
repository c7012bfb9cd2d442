"""The positions of a figure's texts and images, and whether they overlap."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def texts(figure: Figure) -> list[str]:
    """All texts put into the first axes."""
    return [text.get_text() for text in figure.axes[0].texts]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of horizontal or vertical texts and images that overlap, and those that leave the page."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    shown = [text for text in _texts(figure) if text.get_text().strip() and text.get_visible() and text.get_rotation() in (0, 90)]
    drawn = [(text.get_text(), Text.get_window_extent(text)) for text in shown]  # of an annotation without its arrow
    if not figure.axes[0].axison:  # thumbnails; elsewhere numbers stand on the one image on purpose
        drawn += [("image", image.get_window_extent()) for image in figure.axes[0].images]
    names, places = [name for name, _ in drawn], np.array([place.padded(-0.5).extents for _, place in drawn])
    low, high = places[:, None, :2], places[:, None, 2:]
    covered = ((low < high.swapaxes(0, 1)) & (low.swapaxes(0, 1) < high)).all(2)
    found = [(names[a], names[b]) for a, b in zip(*np.nonzero(np.triu(covered, 1)), strict=True)]
    beyond = (places[:, :2] < -1).any(1) | (places[:, 2:] > np.add(canvas.get_width_height(), 1)).any(1)
    return found + [(names[a], "page") for a in np.flatnonzero(beyond)]


def _texts(figure: Figure) -> list[Text]:
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += axes.texts
        if axes.axison:
            found += [axes.title, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                found += [
                    tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()
                ]
    return found
