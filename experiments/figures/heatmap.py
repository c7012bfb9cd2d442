"""A matrix of numbers as colors, with each number in its cell."""

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
    """Heat map of ``values [rows, columns]``, such as scores of pairs of (query, training) timesteps (K-FAC influence, fig. 11).

    If ``symmetric``, values above zero are blue and values below zero red, equally strong at equal distance; otherwise one color
    goes from the smallest value to the largest. NaN is gray, with a dash. Cells that are large enough show their numbers.

    Raises:
        ValueError: the numbers of labels and of values differ.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(row_labels), len(column_labels)):
        raise ValueError(
            f"a matrix of {values.shape} with {len(row_labels)} row and {len(column_labels)} column labels: give a label for "
            "every row and column"
        )
    rows, columns = values.shape
    texts = np.vectorize(_text(values), otypes=[object])(values)
    preferred = max(_CELL, 0.12 + max(text_width(text, 8) for text in texts.flat))
    margin = 1.5 + max(text_width(label, 9) for label in row_labels)
    cell = max(_SMALLEST, min(preferred, (WIDEST - margin) / max(rows, columns)))
    slanted = max(text_width(label, 9) for label in column_labels) > 0.9 * cell
    below = (0.2 + 0.7 * max(text_width(label, 9) for label in column_labels)) if slanted else 0.3
    width = max(4.0, margin + cell * columns)
    head = wrapped(title, width - 0.3, 11)
    figure = Figure((width, 0.5 + 0.2 * len(head) + below + max(1.6, cell * rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    norm, colors = _colors(values, symmetric)
    image = axes.imshow(np.ma.masked_invalid(values), norm=norm, cmap=colors, aspect="auto", interpolation="nearest")
    axes.set_facecolor("#dddddd")
    if cell >= 0.95 * preferred:
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
    """The scale and the color map. Color-blind readers can tell red from blue."""
    known = values[np.isfinite(values)]
    largest = float(np.abs(known).max(initial=0)) or 1.0
    if symmetric:
        return Normalize(-largest, largest), colormaps["RdBu"]
    return Normalize(known.min(initial=largest), largest if not len(known) else known.max()), colormaps["Blues"]


def _text(values: np.ndarray):
    """A function that formats all numbers alike: the largest has three digits. Very large and small numbers get powers of ten."""
    largest = float(np.nanmax(np.abs(values), initial=0))
    decimals = 2 - int(np.floor(np.log10(largest))) if largest > 0 else 0

    def write(value: float) -> str:
        if not np.isfinite(value):
            return "–"
        return f"{value:.{max(0, decimals)}f}" if -3 <= decimals <= 4 else f"{value:.1e}"

    return write


def _ticks(labels: Sequence[str], cell: float) -> tuple[range, Sequence[str]]:
    """Positions and labels of the ticks; some are skipped where lines of text would overlap."""
    step = int(np.ceil(0.17 / cell))
    return range(0, len(labels), step), labels[::step]


def _luminance(color: Sequence[float]) -> float:
    red, green, blue = color[:3]
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
