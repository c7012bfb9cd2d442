"""A matrix of numbers as colours, each number written in its cell."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from experiments.figures.style import DPI, FAINT, INK, WIDEST, text_width, wrapped

_CELL, _SMALLEST = 0.62, 0.12


def matrix(
    values: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    value_name: str,
    symmetric: bool = True,
    row_name: str = "",
    column_name: str = "",
) -> Figure:
    """Heat map of ``values [rows, columns]``, as of a score for each pair of (query, training) timesteps (K-FAC paper, fig. 11).

    ``symmetric``: blue above and red below zero, equally strong at equal distance; otherwise one colour from the smallest value to
    the largest. NaN is grey, with a dash. Numbers stand in the cells as long as these are large enough.

    Raises:
        ValueError: labels that do not fit the values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(row_labels), len(column_labels)):
        raise ValueError(f"a matrix of {values.shape} with {len(row_labels)} row and {len(column_labels)} column labels")
    rows, columns = values.shape
    texts = np.vectorize(_text(values), otypes=[object])(values)
    wanted = max(_CELL, 0.12 + max(text_width(text, 8) for text in texts.flat))
    beside = 1.5 + max(text_width(label, 9) for label in row_labels)
    cell = max(_SMALLEST, min(wanted, (WIDEST - beside) / max(rows, columns)))
    slanted = max(text_width(label, 9) for label in column_labels) > 0.9 * cell
    below = (0.2 + 0.7 * max(text_width(label, 9) for label in column_labels)) if slanted else 0.3
    width = max(4.0, beside + cell * columns)
    head = wrapped(title, width - 0.3, 11)
    figure = Figure((width, 0.5 + 0.2 * len(head) + below + max(1.6, cell * rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    norm, colors = _colors(values, symmetric)
    image = axes.imshow(np.ma.masked_invalid(values), norm=norm, cmap=colors, aspect="auto", interpolation="nearest")
    axes.set_facecolor("#dddddd")
    if cell >= 0.95 * wanted:
        for (row, column), text in np.ndenumerate(texts):
            dark = np.isfinite(values[row, column]) and _luminance(tuple(colors(norm(values[row, column])))) < 0.22
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.set_xticks(
        *_ticks(column_labels, cell), rotation=45 if slanted else 0, ha="right" if slanted else "center", rotation_mode="anchor"
    )
    axes.set_yticks(*_ticks(row_labels, cell))
    axes.tick_params(labelsize=9, length=0)
    axes.set_xlabel(column_name)
    axes.set_ylabel(row_name)
    figure.suptitle("\n".join(head), fontsize=11)
    axes.spines[:].set_color(FAINT)
    figure.colorbar(image, ax=axes, label=value_name, fraction=0.05, aspect=25).ax.tick_params(labelsize=9)
    return figure


def _colors(values: np.ndarray, symmetric: bool):
    """Red-blue is a pair that the colour-blind tell apart."""
    known = values[np.isfinite(values)]
    largest = float(np.abs(known).max(initial=0)) or 1.0
    if symmetric:
        return Normalize(-largest, largest), colormaps["RdBu"]
    return Normalize(known.min(initial=largest), largest if not len(known) else known.max()), colormaps["Blues"]


def _text(values: np.ndarray):
    """One format for all: so many decimals that the largest has two digits after its first, powers of ten where these hide it."""
    largest = float(np.nanmax(np.abs(values), initial=0))
    decimals = 2 - int(np.floor(np.log10(largest))) if largest > 0 else 0

    def write(value: float) -> str:
        if not np.isfinite(value):
            return "–"
        return f"{value:.{max(0, decimals)}f}" if -3 <= decimals <= 4 else f"{value:.1e}"

    return write


def _ticks(labels: Sequence[str], cell: float) -> tuple[range, Sequence[str]]:
    """All labels, or every so many where lines of text would lie on each other."""
    step = int(np.ceil(0.17 / cell))
    return range(0, len(labels), step), labels[::step]


def _luminance(color: Sequence[float]) -> float:
    red, green, blue = color[:3]
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
